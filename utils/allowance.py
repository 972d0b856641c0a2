"""What a key may still have, looked at when a job is submitted: its place in line, and its budget of the day."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from config.errors import RateLimited
from models.types import GenerationRequest
from utils.clock import rfc3339, utc_now
from utils.database import SpentBy
from utils.keys import Limits
from utils.usage import Spent, Usage

EVERYBODY = "*"  # no key's digest
EXACT_USD = 1e-9  # sums of prices are no exact numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """`limits_of(owner)` are a key's, `estimate(request)` the US dollars that a cloud will charge.

    `daily_usd` is what clouds may charge everybody together in a day; 0: no limit.
    """

    limits_of: Callable[[str], Limits] = lambda owner: Limits()
    estimate: Callable[[GenerationRequest], float] = lambda request: 0.0
    usage: Usage | None = None
    daily_usd: float = 0.0
    now: Callable[[], datetime] = utc_now
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict, init=False, repr=False)

    @asynccontextmanager
    async def room(self, owner: str, request: GenerationRequest, usd: float) -> AsyncIterator[None]:
        """Raises RateLimited unless the budget has room; nobody else of the owner's comes in until the block ends.

        What waits or runs counts as spent.
        """
        budgets = self._budgets(owner, usd)
        if not budgets or self.usage is None:
            yield
            return
        async with AsyncExitStack() as stack:
            for budget in budgets:
                await stack.enter_async_context(self._lock(budget.owner or EVERYBODY))
                now = self.now()
                spent = await self.usage.spent(budget.owner, _day(now))
                refused = budget.why_not(spent, request.num_images, usd, now)
                if refused is not None:
                    raise refused
            yield

    def why_not(self, owner: str, request: GenerationRequest, spent: SpentBy) -> RateLimited | None:
        """Why a request has no room, by what was spent at this moment; where others take requests of the owner, too."""
        usd, now = self.estimate(request), self.now()
        for budget in self._budgets(owner, usd):
            refused = budget.why_not(spent(budget.owner, _day(now)), request.num_images, usd, now)
            if refused is not None:
                return refused
        return None

    def _budgets(self, owner: str, usd: float) -> list[_Budget]:
        """Those that a request of an owner and of so many dollars falls under."""
        limits, budgets = self.limits_of(owner), []
        if self.daily_usd and usd:
            of_all = Limits(daily_usd=self.daily_usd)
            budgets.append(_Budget(None, of_all, "FLUX_BFL_DAILY_BUDGET_USD allows"))
        if limits.daily_images is not None or limits.daily_usd is not None:
            budgets.append(_Budget(owner, limits, "this key may have"))
        return budgets

    def _lock(self, owner: str) -> asyncio.Lock:
        return self._locks.setdefault(owner, asyncio.Lock())


@dataclass(frozen=True, slots=True)
class _Budget:
    owner: str | None  # None: everybody's together
    limits: Limits
    words: str

    def why_not(self, spent: Spent, images: int, usd: float, now: datetime) -> RateLimited | None:
        limits = self.limits
        if limits.daily_images is not None and spent.images + images > limits.daily_images:
            return _over(
                f"{self.words} {limits.daily_images} images a day, and with this request it would be "
                f"{spent.images + images}",
                now,
            )
        if limits.daily_usd is not None and usd and spent.usd + usd > limits.daily_usd + EXACT_USD:
            return _over(
                f"{self.words} cloud images for {limits.daily_usd:g} USD a day, {spent.usd:.4f} are spent or on "
                f"their way, and this request needs about {usd:.4f}",
                now,
            )
        return None


def _day(now: datetime) -> str:
    return rfc3339(now)[:10]


def _over(what: str, now: datetime) -> RateLimited:
    tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return RateLimited(
        f"{what}; the next day begins at {rfc3339(tomorrow)}",
        retry_after_seconds=max(1, math.ceil((tomorrow - now).total_seconds())),
    )
