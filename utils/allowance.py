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
        limits = self.limits_of(owner)
        has_budget = limits.daily_images is not None or limits.daily_usd is not None
        if not has_budget and not (self.daily_usd and usd):
            yield
            return
        async with AsyncExitStack() as stack:
            if self.daily_usd and usd:
                everybody = Limits(daily_usd=self.daily_usd)
                await stack.enter_async_context(self._lock(EVERYBODY))
                await self._require(
                    everybody, None, request, usd, "FLUX_BFL_DAILY_BUDGET_USD allows"
                )
            if has_budget:
                await stack.enter_async_context(self._lock(owner))
                await self._require(limits, owner, request, usd, "this key may have")
            yield

    def _lock(self, owner: str) -> asyncio.Lock:
        return self._locks.setdefault(owner, asyncio.Lock())

    async def _require(
        self, limits: Limits, owner: str | None, request: GenerationRequest, usd: float, who: str
    ) -> None:
        """Raises RateLimited when one owner, or all of them (None), have no room left."""
        if self.usage is None:
            return
        now = self.now()
        spent = await self.usage.spent(owner, rfc3339(now)[:10])
        what = _why_not(limits, spent, request.num_images, usd)
        if what is not None:
            raise _over(f"{who} {what}", now)


def _why_not(limits: Limits, spent: Spent, images: int, usd: float) -> str | None:
    if limits.daily_images is not None and spent.images + images > limits.daily_images:
        return f"{limits.daily_images} images a day, and with this request it would be {spent.images + images}"
    if limits.daily_usd is not None and usd and spent.usd + usd > limits.daily_usd + EXACT_USD:
        return (
            f"cloud images for {limits.daily_usd:g} USD a day, {spent.usd:.4f} are spent or on their way, "
            f"and this request needs about {usd:.4f}"
        )
    return None


def _over(what: str, now: datetime) -> RateLimited:
    tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return RateLimited(
        f"{what}; the next day begins at {rfc3339(tomorrow)}",
        retry_after_seconds=max(1, math.ceil((tomorrow - now).total_seconds())),
    )
