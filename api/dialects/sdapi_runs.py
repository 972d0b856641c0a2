"""What A1111's clients have under way, for `progress`, `interrupt` and `skip`, and the model each has set.

A1111 has one user and one job. Here each key has its own: nobody's interrupt ends another's pictures,
and nobody's choice of a model changes what others get.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from api.services import Services
from utils.event_bus import Subscription
from utils.job import Job
from utils.queue_manager import QueueManager

WAKE_SECONDS = 30.0


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """One call of txt2img or img2img: a job for each of its iterations."""

    NONE: ClassVar[Run]

    owner: str
    asked: int  # iterations
    is_interrupted: bool = False
    jobs: list[Job] = field(default_factory=list)
    preview: str | None = None  # of the newest step, base64
    _over: set[str] = field(default_factory=set)
    _watches: list[asyncio.Task[None]] = field(default_factory=list)

    def add(self, queue: QueueManager, job: Job) -> None:
        """At once after it was submitted: a preview is made for those who listen when it begins."""
        self.jobs.append(job)
        subscription = queue.bus.subscribe(job.id)
        self._watches.append(asyncio.create_task(self._watch(queue, subscription)))

    async def ended(self, queue: QueueManager) -> list[Job]:
        """The jobs when all have ended, in their order."""
        ended = []
        for job in self.jobs:
            ended.append(await queue.wait(job))
            self._over.add(job.id)
        return ended

    def close(self) -> None:
        for watch in self._watches:
            watch.cancel()

    @property
    def first_open(self) -> Job | None:
        """The job that is drawn, or is next."""
        return next((job for job in self.jobs if job.id not in self._over), None)

    async def _watch(self, queue: QueueManager, subscription: Subscription) -> None:
        try:
            while not subscription.is_closed:
                await subscription.wait(WAKE_SECONDS)
                for event in subscription.take():
                    self.preview = event.preview or self.preview
        finally:
            queue.bus.unsubscribe(subscription)

    def progress_json(self, queue: QueueManager, *, with_image: bool) -> dict[str, Any]:
        job = self.first_open
        number = len(self._over)
        there = None if job is None else queue.progress(job.id)
        step, steps = (0, 0) if there is None else (there.step, there.steps)
        share = (number + (step / steps if steps else 0)) / self.asked if self.asked else 0.0
        eta_ms = None if there is None else there.eta_ms
        words = f"Batch {number + 1} out of {self.asked}" if job is not None else ""
        return {
            "progress": round(min(share, 0.99), 4),
            "eta_relative": 0.0 if eta_ms is None else round(eta_ms / 1000, 2),
            "state": {
                "skipped": False,
                "interrupted": self.is_interrupted,
                "stopping_generation": False,
                "job": words,
                "job_count": self.asked,
                "job_timestamp": "0" if job is None else _timestamp(job),
                "job_no": number,
                "sampling_step": step,
                "sampling_steps": steps,
            },
            "current_image": self.preview if with_image else None,
            "textinfo": "Waiting..." if job is not None and there is None else None,
            "current_task": None if job is None else job.id,
        }


# Nobody draws: 0 of 0, which clients wait for after they have changed the model.
Run.NONE = Run(owner="", asked=0)


class Runs:
    """The calls that somebody waits for, the oldest first. Kept in memory: they end with the process."""

    def __init__(self) -> None:
        self._runs: list[Run] = []
        self._checkpoints: dict[str, str] = {}

    @contextmanager
    def under_way(self, run: Run) -> Iterator[None]:
        self._runs.append(run)
        try:
            yield
        finally:
            self._runs.remove(run)
            run.close()

    def current(self, owner: str) -> Run | None:
        """The oldest call of this key."""
        return next((run for run in self._runs if run.owner == owner), None)

    def checkpoint(self, services: Services, owner: str) -> str:
        """The model that a caller has set; the service's default before that."""
        return self._checkpoints.get(owner, services.plan.default.id)

    def set_checkpoint(self, owner: str, model: str) -> None:
        self._checkpoints[owner] = model


def _timestamp(job: Job) -> str:
    """`20261126120000` of `2026-11-26T12:00:00.000Z`."""
    return "".join(filter(str.isdigit, job.created_at[:19]))
