"""Feeds the workers from the line, and looks after them: who hangs, who waits too long, who is idle.

The oldest job goes to a worker that can run it as soon as there is one; jobs beside it that can be
drawn together go with it when that is faster. A worker whose last steps are done gets its next
jobs while it still decodes. A job that was tried before is given alone, so that a worker's death
blames the right one.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from config.errors import FluxError, StorageUnavailable
from config.settings import Settings
from models.types import EXACT_BATCH_SIZE
from utils import disk
from utils.event_bus import EventBus
from utils.job import Job, JobError, JobStatus
from utils.ledger import Ledger
from utils.line import Lane
from utils.pace import Pace
from utils.worker.parent import GivenJob, Worker, WorkerState

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
STORE_PAUSE_SECONDS = 1.0
STOP_SECONDS = 7.0  # a claim that waits for a locked database takes 5
LATE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What decides how long a step takes."""

    model: str
    width: int
    height: int

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Kind:
        return cls(request["model"], request["width"], request["height"])


class Dispatcher:
    """One task that gives out jobs when it is woken, and one that ticks every second.

    `models_on(worker)` names the models a worker can run. `why_held()` says why no job may begin.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        ledger: Ledger,
        bus: EventBus,
        pace: Pace,
        settings: Settings,
        models_on: Callable[[Worker], Sequence[str]],
        why_held: Callable[[], str | None],
    ) -> None:
        self.no_room: str | None = None  # why the disk takes no picture, as of the last look
        self._workers = workers
        self._ledger = ledger
        self._bus = bus
        self._pace = pace
        self._settings = settings
        self._models_on = models_on
        self._why_held = why_held
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_stopping = False
        self._ticked_at = 0.0
        self._told: Any = None  # the last state of the queue that listeners were told

    def start(self) -> None:
        self._look_at_disk()
        self._tasks = [
            asyncio.create_task(self._give_out(), name="dispatcher"),
            asyncio.create_task(self._tick_on(), name="dispatcher's clock"),
        ]
        self.wake()

    async def stop(self) -> None:
        """End both tasks; a job that is being given out is put back or given first."""
        self._is_stopping = True
        self.wake()
        await asyncio.wait(self._tasks[:1], timeout=STOP_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def wake(self) -> None:
        """Something has changed: a job came, a worker is free, the queue goes on."""
        self._wake.set()

    @property
    def is_alive(self) -> bool:
        """Whether both tasks go on and the clock's work was done lately."""
        late = asyncio.get_running_loop().time() - self._ticked_at > LATE_SECONDS
        return not late and all(not task.done() for task in self._tasks)

    # Giving out

    async def _give_out(self) -> None:
        while not self._is_stopping:
            await self._wake.wait()
            self._wake.clear()
            # Idle workers first: one that is still busy must not take what an idle one could begin.
            for worker in sorted(self._workers, key=lambda worker: not worker.is_free):
                try:
                    await self._feed(worker)
                except StorageUnavailable:
                    await asyncio.sleep(STORE_PAUSE_SECONDS)
                    self.wake()
                except Exception:
                    log.exception(
                        "a worker was not fed",
                        extra={"action": "feed_failed", "worker": worker.name},
                    )
                    await asyncio.sleep(STORE_PAUSE_SECONDS)
                    self.wake()

    async def _feed(self, worker: Worker) -> None:
        if self._ledger.line.count(worker.lane) == 0:
            return
        self._look_at_disk()
        if not self._may_feed(worker):
            return
        jobs = await self._ledger.claim(
            worker.name,
            models=self._models_on(worker),
            limit=max(1, self._batch_limit(worker)),
            choose=self._chooser(worker),
        )
        if not jobs:
            return
        if not self._may_feed(worker):  # it died, or began to load, or the service stops, meanwhile
            for job in jobs:
                await self._put_back(job)
            return
        is_alone = any(job.attempts > 1 for job in jobs)
        await worker.want_previews(self._bus.listeners > 0)  # a short job would end before the tick
        await worker.run([(job.id, job.request.to_json()) for job in jobs], is_alone=is_alone)
        for job in jobs:  # a cancel that came between the claim and now found no worker to tell
            current = await self._ledger.store.get(job.id)
            if current is not None and current.status is JobStatus.CANCELLED:
                await worker.cancel(job.id)
        self.wake()  # the line may have more for it, or for another worker

    async def _put_back(self, job: Job) -> None:
        """Until it is stored: a row that runs on no worker would wait for the next start."""
        while True:
            try:
                why = "its worker was gone"
                return await self._ledger.put_back(job, take_attempt_back=True, why=why)
            except StorageUnavailable:
                await asyncio.sleep(STORE_PAUSE_SECONDS)

    def _may_feed(self, worker: Worker) -> bool:
        return worker.takes_jobs and self._why_held() is None

    def _batch_limit(self, worker: Worker) -> int:
        """How many pictures the worker may be given together."""
        limit = self._settings.worker.max_batch_size
        if limit == 0:
            limit = EXACT_BATCH_SIZE if worker.batches_exactly else 1
        return limit

    def _chooser(self, worker: Worker) -> Callable[[list[Job]], list[Job]]:
        is_free, limit = worker.is_free, self._batch_limit(worker)
        # Two that wait for two idle workers are one for each.
        idle = sum(other.is_free and other.lane is worker.lane for other in self._workers)
        limit = min(limit, math.ceil(self._ledger.line.count(worker.lane) / max(1, idle)))

        def choose(head: list[Job]) -> list[Job]:
            if not head:
                return []
            first = head[0]
            if first.attempts > 0:
                return [first] if is_free else []
            if limit < 2 or not self._pace.batch_pays(Kind.of(first.request.to_json())):
                return [first]
            chosen, pictures = [], 0
            for job in head:
                pictures += job.request.num_images
                is_alike = job.request.batch_key == first.request.batch_key
                if not is_alike or job.attempts > 0 or (chosen and pictures > limit):
                    break
                chosen.append(job)
            return chosen

        return choose

    # Looking after

    async def _tick_on(self) -> None:
        while True:
            self._ticked_at = asyncio.get_running_loop().time()
            await asyncio.sleep(TICK_SECONDS)
            try:
                await self._tick()
            except FluxError as error:
                log.error("%s", error.message, extra={"action": "tick_refused"})
            except Exception:
                log.exception("the clock's work failed", extra={"action": "tick_failed"})

    async def _tick(self) -> None:
        self._look_at_disk()
        now = asyncio.get_running_loop().time()
        for worker in self._workers:  # first of all: what follows may be refused by the store
            self._end_stalled(worker, now)
        for worker in self._workers:
            await self._end_overtime(worker, now)
            await self._unload_idle(worker, now)
            await worker.want_previews(self._bus.listeners > 0)
        await self._expire_waiting()
        await self._tell_listeners()
        self.wake()
        if self._ledger.store.refusal is not None:
            await self._ledger.store.probe()  # nobody else may ask: the service is not ready

    def _look_at_disk(self) -> None:
        storage = self._settings.storage
        before, self.no_room = (
            self.no_room,
            disk.why_no_room(storage.output_dir, storage.min_free_mib),
        )
        if self.no_room != before:
            words = self.no_room or "there is room again"
            log.warning("%s", words, extra={"action": "disk"})

    async def _end_overtime(self, worker: Worker, now: float) -> None:
        """A job that runs longer than it may fails; its worker leaves it at the next step."""
        limit = self._settings.queue.max_run_seconds
        for job in list(worker.jobs.values()) if limit else ():
            since = job.drawing_since
            if job.unwanted_since is None and since is not None and now - since > limit:
                message = f"the job ran for more than {limit:g} s (FLUX_MAX_RUN_SECONDS)"
                await self._ledger.fail(job.id, JobError(code="timeout", message=message))
                await worker.cancel(job.id)

    def _end_stalled(self, worker: Worker, now: float) -> None:
        settings = self._settings.worker
        late = settings.cancel_timeout_seconds
        if any(
            job.unwanted_since is not None and now - job.unwanted_since > late
            for job in worker.jobs.values()
        ):
            return worker.kill("timeout", f"it did not leave a cancelled job within {late:g} s")
        if worker.state not in (WorkerState.BUSY, WorkerState.LOADING):
            return
        is_loading = worker.loading is not None or worker.state is WorkerState.LOADING
        # A model of another program loads its weights for every job, and says so by the job's stage.
        is_loading |= any(job.is_loading for job in worker.jobs.values())
        limit = settings.load_timeout_seconds if is_loading else settings.stall_timeout_seconds
        if now - worker.last_sign > limit:
            what = "loading made no progress" if is_loading else "no step was done"
            worker.kill("timeout", f"{what} for {limit:g} s")

    async def _unload_idle(self, worker: Worker, now: float) -> None:
        limit = self._settings.worker.idle_unload_seconds
        held = list(worker.models) or ([worker.model] if worker.model else [])
        if limit and worker.is_free and held and now - worker.last_sign > limit:
            log.info(
                "worker %s gives %s back after %g s without a job",
                worker.name,
                ", ".join(held),
                limit,
                extra={"action": "idle_unload", "model": held},
            )
            await worker.unload()

    async def _expire_waiting(self) -> None:
        limit = self._settings.queue.max_wait_seconds
        if not limit:
            return
        for job_id in self._ledger.waiting_longer_than(limit):
            await self._ledger.expire(
                job_id, f"the job waited for more than {limit:g} s (FLUX_MAX_WAIT_SECONDS)"
            )

    async def _tell_listeners(self) -> None:
        """`queue` when it has changed, `gpu` each time: for those who watch the whole service."""
        if not self._bus.hears_everything:
            self._told = None
            return
        state = (
            len(self._ledger.line),
            self._why_held(),
            [(w.state, w.model, w.loading, tuple(w.jobs)) for w in self._workers],
        )
        if state != self._told:
            self._told = state
            self._bus.publish("queue")
        # In a thread: a driver may take its time.
        self._bus.publish("gpu", data=await asyncio.to_thread(gpu_data, self._workers))


def gpu_data(workers: Sequence[Worker]) -> dict[str, Any]:
    """What each worker's device holds and does now."""
    return {
        "gpus": [
            {
                "worker": worker.name,
                "state": worker.state.value,
                "model": worker.model,
                "memory_mib": worker.memory_mib,
                "cards": [
                    {"index": gpu.index, "name": gpu.name, "memory_total_mib": gpu.memory_total_mib}
                    | load
                    for gpu, load in zip(worker.slot.gpus, worker.read_cards(), strict=True)
                ],
            }
            for worker in workers
            if worker.lane is Lane.LOCAL
        ]
    }


def is_to_blame(job: GivenJob) -> bool:
    """Whether a worker's death counts against a job: it was begun, and somebody still wanted it."""
    return job.begun_at is not None and job.unwanted_since is None
