"""The real queue on a real database, with stand-in workers, clocks that tests move and a store that refuses when told."""

from __future__ import annotations

import asyncio
import functools
import itertools
import sqlite3
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

from config.errors import StorageUnavailable
from config.settings import load_settings
from models.types import GenerationRequest, OutputFormat
from tests.utils.soak.fake_worker import FakeWorker
from utils import dispatcher, ledger, queue_manager
from utils.clock import Chance, utc_now
from utils.event_bus import Subscription
from utils.job import Job
from utils.job_store import JobStore
from utils.queue_manager import QueueManager
from utils.worker import parent
from utils.worker.parent import Worker

HANG_SECONDS = 60  # a guard: nothing here takes so long
CALM_ROUNDS = 3
PAUSE_SECONDS = 0.002
NEVER_SECONDS = 3600.0  # the clock's work is done when a test asks for it
MODEL = "embedded"
REQUEST = GenerationRequest(
    prompt="a red balloon",
    negative_prompt=None,
    model=MODEL,
    backend="flux",
    width=128,
    height=128,
    num_inference_steps=4,
    guidance_scale=0.0,
    true_cfg_scale=2.0,
    seed=1,
    num_images=1,
    output_format=OutputFormat.PNG,
    output_quality=95,
    tags=(),
)


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest.from_json({**REQUEST.to_json(), **fields})


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine, run in a loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def guarded() -> None:
            async with asyncio.timeout(HANG_SECONDS):
                await test(*args, **kwargs)

        asyncio.run(guarded())

    return run


class Clock:
    """Time that is moved by hand: `ahead` has passed; by `moved` somebody set the wall clock."""

    def __init__(self) -> None:
        self.ahead = self.moved = timedelta()

    def now(self) -> Any:
        return utc_now() + self.ahead + self.moved

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead.total_seconds()


class Bench:
    """`async with Bench(folder)`: a started queue, stopped at the end unless a test did it.

    `settings` are FLUX_* variables. `models` names what a worker can run, by the worker's name.
    """

    _numbers = itertools.count(1)

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 1,
        models: Callable[[str], Sequence[str]] = lambda name: [MODEL],
        **settings: str,
    ) -> None:
        self.folder = folder
        self.output_dir = folder / "pictures"
        self.settings = load_settings(
            "bf16",
            {
                "FLUX_OUTPUT_DIR": str(self.output_dir),
                "FLUX_DATA_DIR": str(folder / "data"),
                "FLUX_MIN_FREE_MIB": "0",
                "FLUX_DRAIN_SECONDS": "0",
                **settings,
            },
        )
        self.clock = Clock()
        self._count = workers
        self._models = models
        self._patches = ExitStack()
        self.manager: QueueManager
        self.store: JobStore
        self.ear: Subscription  # hears everything

    async def __aenter__(self) -> Bench:
        for module, name, value in (
            (dispatcher, "TICK_SECONDS", NEVER_SECONDS),
            (dispatcher, "STORE_PAUSE_SECONDS", PAUSE_SECONDS),
            (ledger, "STORE_PAUSE_SECONDS", PAUSE_SECONDS),
            (queue_manager, "STORE_PAUSE_SECONDS", PAUSE_SECONDS),
            (parent, "RESTART_DELAY_SECONDS", 0.0),
        ):
            self._patches.enter_context(patch.object(module, name, value))
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.let_write()
        if not self.manager.is_draining:
            await self.manager.stop()
        self._patches.close()

    async def start(self) -> None:
        """Open the database and start the queue on it, as after a start of the service."""
        self.store = await JobStore.open(self.folder / "data" / "jobs.sqlite3")
        self.manager = QueueManager(
            self.store,
            self._make_workers,
            lambda worker: self._models(worker.name),
            self.settings,
            Chance(
                now=self.clock.now,
                monotonic=self.clock.monotonic,
                job_id=lambda: f"job{next(self._numbers):06d}",
            ),
            MODEL,
        )
        self.ear = self.manager.bus.subscribe(None)
        await self.manager.start()
        await self.settle()

    async def restart(self) -> None:
        await self.manager.stop()
        await self.start()

    def _make_workers(self, listener: QueueManager) -> list[Worker]:
        return [FakeWorker(f"w{i}", self.settings, listener) for i in range(self._count)]

    @property
    def workers(self) -> list[FakeWorker]:
        return self.manager.workers  # type: ignore[return-value]

    @property
    def worker(self) -> FakeWorker:
        return self.workers[0]

    async def submit(self, prompt: str = "a", **fields: Any) -> Job:
        return await self.manager.submit(request(prompt=prompt, **fields))

    async def submit_held(self, *requests: GenerationRequest) -> list[Job]:
        """Jobs that come while the queue is paused, and then go on together."""
        await self.manager.pause()
        jobs = [await self.manager.submit(one) for one in requests]
        await self.manager.resume()
        await self.settle()
        return jobs

    async def job(self, job: Job) -> Job:
        return await self.manager.get(job.id)

    async def tick(self) -> None:
        """The clock's work, which is otherwise done every second."""
        await self.manager._dispatcher._tick()
        await self.settle()

    async def settle(self) -> None:
        """Until nothing moves any more: no task, no thread, no word of a worker on its way."""
        calm = 0
        while calm < CALM_ROUNDS:
            before = self._signs()
            for _ in range(6):
                await asyncio.sleep(0)
            try:
                await self.store._write(lambda db: None)
                await self.store.counts()
            except StorageUnavailable:
                await asyncio.sleep(2 * PAUSE_SECONDS)
            is_ending = self._writes and (
                self.manager._ledger._endings or any(w.died_unheard for w in self.workers)
            )
            calm = calm + 1 if self._signs() == before and not is_ending else 0
            if is_ending:
                await asyncio.sleep(PAUSE_SECONDS)

    def _signs(self) -> tuple[Any, ...]:
        manager = self.manager
        return (
            manager.bus._last_id,
            manager.waiting,
            manager._dispatcher._wake.is_set(),
            [(w.unheard, len(w.sent), w.state, w.is_up, len(w.jobs)) for w in self.workers],
            len(manager._ledger._endings) if self._writes else 0,
        )

    # The disk

    _writes = True

    def refuse_writes(self) -> None:
        """From now on every change is made and then rolled back: the disk is full at the commit."""
        self._writes = False
        store = self.store

        def refuse(group: list[Any]) -> list[tuple[Any, Exception | None]]:
            error = sqlite3.OperationalError("database or disk is full")
            for pending in group:
                store._apply(pending.change)
            store._write_db.execute("ROLLBACK")
            return [(None, error)] * len(group)

        store._commit = refuse  # type: ignore[method-assign]

    def let_write(self) -> None:
        self._writes = True
        self.store.__dict__.pop("_commit", None)

    def files(self) -> set[str]:
        """What lies in the output folder, staging included."""
        found = (path for path in self.output_dir.rglob("*") if path.is_file())
        return {str(path.relative_to(self.output_dir)) for path in found}
