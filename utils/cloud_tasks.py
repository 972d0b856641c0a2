"""What a cloud was asked for, on disk before it is asked: a picture is paid for once.

One row for each picture of a job. After a crash the row tells how far it came: a picture that was
`taken` is looked after again, one that was being asked for is not asked for a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from models.bfl_errors import BudgetSpent
from models.bfl_request import CloudTask
from utils.database import Connection, Row
from utils.job_store import JobStore

SECONDS_OF_DAY = 86_400


class Asked(StrEnum):
    ASKING = "asking"  # it was about to be sent, or was; no answer yet
    TAKEN = "taken"  # the cloud has it, and said where to look after it
    REFUSED = "refused"  # the cloud has it not: it may be asked for again
    UNCLEAR = "unclear"  # nobody knows whether the cloud has it


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedPicture:
    """One row. `cost_usd` is None until the cloud has told it."""

    state: Asked
    estimate_usd: float
    cost_usd: float | None
    task_id: str | None
    polling_url: str | None

    @property
    def usd(self) -> float:
        """What it costs, as far as is known."""
        return self.estimate_usd if self.cost_usd is None else self.cost_usd

    @property
    def task(self) -> CloudTask | None:
        """The task of one that was taken."""
        if self.state is not Asked.TAKEN or self.polling_url is None:
            return None
        return CloudTask(
            id=self.task_id or "", polling_url=self.polling_url, cost_usd=self.cost_usd
        )


class CloudTasks:
    """The rows. `budget_usd` is what a day (UTC) may cost; 0: no limit."""

    def __init__(self, store: JobStore, now: Callable[[], datetime], budget_usd: float) -> None:
        self._store = store
        self._now = now
        self.budget_usd = budget_usd

    async def begin(
        self, job_id: str, picture: int, estimate_usd: float
    ) -> tuple[AskedPicture, bool]:
        """The row of a picture, and whether it may be asked for now: it is new, or was refused before.

        Raises BudgetSpent when the day's budget does not allow it.
        """
        values = {
            "job_id": job_id,
            "picture": picture,
            "day": self._day(),
            "estimate_usd": estimate_usd,
        }

        def change(db: Connection) -> tuple[AskedPicture, bool]:
            there = db.rows("cloud_task", values)
            if there and there[0]["state"] != Asked.REFUSED:
                return _asked(there[0]), False
            self._require_budget(db.rows("cloud_spent", values)[0]["usd"], estimate_usd)
            db.rows("insert_cloud_task", values)
            return _asked(db.rows("cloud_task", values)[0]), True

        return await self._store.write(change)

    async def taken(self, job_id: str, picture: int, task: CloudTask) -> None:
        await self._note(
            job_id,
            picture,
            state=Asked.TAKEN,
            task_id=task.id,
            polling_url=task.polling_url,
            cost_usd=task.cost_usd,
        )

    async def blocked(self, job_id: str, picture: int) -> None:
        """The cloud took it and charges nothing for it. It stays taken: it is not to be asked for again."""
        await self._note(job_id, picture, state=Asked.TAKEN, cost_usd=0.0)

    async def ended(self, job_id: str, picture: int, state: Asked) -> None:
        """The picture was refused, or nobody knows."""
        await self._note(job_id, picture, state=state)

    async def of_job(self, job_id: str) -> list[AskedPicture]:
        rows = await self._store.read("cloud_tasks_of_job", {"job_id": job_id})
        return [_asked(row) for row in rows]

    async def spent_usd(self) -> float:
        """What this day (UTC) cost so far, pictures that are on their way included."""
        (row,) = await self._store.read("cloud_spent", {"day": self._day()})
        return row["usd"]

    async def require_budget(self, estimate_usd: float) -> None:
        """Raises BudgetSpent when the day's budget has no room for it."""
        if self.budget_usd:
            self._require_budget(await self.spent_usd(), estimate_usd)

    def _require_budget(self, spent_usd: float, estimate_usd: float) -> None:
        # A tenth of a cent of a cent: sums of prices are no exact numbers.
        if not self.budget_usd or spent_usd + estimate_usd <= self.budget_usd + 1e-6:
            return
        now = self._now()
        since_midnight = now.hour * 3600 + now.minute * 60 + now.second
        raise BudgetSpent(
            f"BFL's budget of a day is ${self.budget_usd:g} (FLUX_BFL_DAILY_BUDGET_USD), ${spent_usd:.3f} of it are "
            f"spent, and this needs ${estimate_usd:.3f}; wait for the next day (UTC) or raise the budget",
            retry_after_seconds=SECONDS_OF_DAY - since_midnight,
        )

    async def _note(self, job_id: str, picture: int, **values: Any) -> None:
        row = {"task_id": None, "polling_url": None, "cost_usd": None, **values}
        row |= {"job_id": job_id, "picture": picture}
        await self._store.write(lambda db: db.rows("note_cloud_task", row))

    def _day(self) -> str:
        return self._now().date().isoformat()


def _asked(row: Row) -> AskedPicture:
    return AskedPicture(
        state=Asked(row["state"]),
        estimate_usd=row["estimate_usd"],
        cost_usd=row["cost_usd"],
        task_id=row["task_id"],
        polling_url=row["polling_url"],
    )
