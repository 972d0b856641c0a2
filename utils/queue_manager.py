"""The queue: first in, first out, on disk; and the dispatcher that feeds the workers.

A job's row is the truth. Every change of state is one guarded UPDATE, and only the change that
found the row in the expected state wins: a cancel and a finish that meet have one winner, and
the loser's pictures are thrown away.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from config.errors import (
    ConfigurationError,
    FluxError,
    IdempotencyMismatch,
    NotFound,
    QueueFull,
    StorageUnavailable,
    Unavailable,
)
from config.settings import Settings
from models.types import GenerationRequest, GenerationResult
from utils import disk, images
from utils.clock import Chance, rfc3339
from utils.job import Job, JobError, JobStatus
from utils.job_store import JobStore
from utils.worker import events
from utils.worker.parent import Worker, WorkerState

log = logging.getLogger(__name__)

# Before any job was measured: what one is thought to take.
FIRST_GUESS_SECONDS = 5.0
MEASURED_JOBS = 20
MAX_RETRY_AFTER_SECONDS = 3600
STORE_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a running job is: `step` of `steps` (over all its images) in `stage`."""

    stage: str
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class WorkerOutcome:
    """What a load or unload did on one worker."""

    worker: str
    done: bool
    reason: str | None = None


class QueueManager:
    """Owns the jobs and the workers. `start`, then `submit`, `wait`, `cancel`; `drain` and `stop` end it.

    `make_worker(listener)` is called once per slot. Methods raise FluxError for people.
    """

    def __init__(
        self,
        store: JobStore,
        make_workers: Callable[[QueueManager], list[Worker]],
        settings: Settings,
        chance: Chance,
        default_model: str,
    ) -> None:
        self.store = store
        self.workers = make_workers(self)
        self.is_draining = False
        self._settings = settings
        self._output_dir = settings.storage.output_dir
        self._chance = chance
        self._default_model = default_model
        self._progress: dict[str, JobProgress] = {}
        self._waiters: dict[str, asyncio.Future[Job]] = {}
        # Jobs cancelled after their claim was committed and before a worker had them.
        self._cancelled_in_claim: set[str] = set()
        self._seconds: collections.deque[float] = collections.deque(maxlen=MEASURED_JOBS)
        self._waiting = 0
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()
        self._dispatcher: asyncio.Task[None] | None = None

    # Life

    async def start(self) -> None:
        """Put back what an earlier process left running, then start workers and dispatcher."""
        try:
            self._output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"FLUX_OUTPUT_DIR = {self._output_dir}: the folder cannot be made: {error.strerror}"
            ) from error
        await self._clear_staging()
        for job in await self.store.running():
            await self._give_up(job, "worker_lost", "the service ended while the job ran")
        self._waiting = await self.store.count_queued()
        for worker in self.workers:
            worker.start()
        self._dispatcher = asyncio.create_task(self._dispatch(), name="dispatcher")
        self._wake.set()

    def drain(self) -> None:
        """Take no more jobs and answer those who wait for a job that has not begun. Call once, from the loop."""
        if self.is_draining:
            return
        self.is_draining = True
        running = {worker.job_id for worker in self.workers}
        for job_id in [job_id for job_id in self._waiters if job_id not in running]:
            self._release_waiter(job_id)
        loop = asyncio.get_running_loop()
        self._drained_at = loop.time() + self._settings.server.drain_seconds
        loop.call_at(self._drained_at, self._release_all_waiters)

    async def stop(self) -> None:
        """Wait for running jobs as long as settings allow, stop the workers, close the store."""
        self.drain()
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            await asyncio.gather(self._dispatcher, return_exceptions=True)
        try:
            async with asyncio.timeout_at(self._drained_at):
                await self._until(lambda: all(worker.job_id is None for worker in self.workers))
        except TimeoutError:
            log.warning("running jobs go back into the queue", extra={"action": "drain_timeout"})
        await asyncio.gather(*(worker.stop() for worker in self.workers))
        self._release_all_waiters()
        await self.store.close()

    # Jobs

    async def submit(
        self,
        request: GenerationRequest,
        *,
        idempotency_key: str | None = None,
        body_sha256: str | None = None,
    ) -> Job:
        """Append a job; it is on disk when this returns. Raises QueueFull, StorageUnavailable, Unavailable."""
        if idempotency_key is not None:
            earlier = await self._earlier(idempotency_key, body_sha256)
            if earlier is not None:
                return earlier
        self._require_open()
        self._waiting += 1
        try:
            job = await self.store.insert(
                self._chance.job_id(),
                request,
                self._now(),
                idempotency_key=idempotency_key,
                body_sha256=body_sha256,
            )
        except Exception as error:
            self._waiting -= 1
            if idempotency_key is not None and not isinstance(error, FluxError):
                # The same key came twice at once, and the other one was first.
                earlier = await self._earlier(idempotency_key, body_sha256)
                if earlier is not None:
                    return earlier
            raise
        log.info(
            "job queued",
            extra={"action": "job_queued", "job_id": job.id, "model": request.model},
        )
        self._wake.set()
        return job

    async def wait(self, job: Job) -> Job:
        """The job when it has ended. Raises Unavailable when the service stops before."""
        future = self._waiters.get(job.id)
        if future is None:
            future = self._waiters[job.id] = asyncio.get_running_loop().create_future()
        try:
            # It may have ended before anybody waited.
            current = await self.get(job.id)
            if current.status.is_final:
                return current
            if self.is_draining and job.id not in self.running_ids:
                self._release_waiter(job.id)
            return await asyncio.shield(future)
        finally:
            self._waiters.pop(job.id, None)

    async def get(self, job_id: str) -> Job:
        job = await self.store.get(job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id[:64]!r}")
        return job

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job, waiting or running; one that has ended stays as it is.

        A running job is cancelled at once; its worker leaves it at the next step.
        """
        job = await self.get(job_id)
        ended = await self.store.cancel_queued(job_id, self._now())
        if ended is not None:
            self._waiting -= 1
        else:
            ended = await self.store.cancel_running(job_id, self._now())
            if ended is not None:
                await self._tell_worker_to_leave(job_id)
        if ended is None:
            return await self.get(job.id)
        self._announce(ended)
        return ended

    def progress(self, job_id: str) -> JobProgress | None:
        return self._progress.get(job_id)

    # The line

    @property
    def waiting(self) -> int:
        """Jobs in line."""
        return self._waiting

    @property
    def running_ids(self) -> list[str]:
        return [worker.job_id for worker in self.workers if worker.job_id is not None]

    def wait_seconds(self, jobs_before: int) -> float:
        """How long that many jobs are thought to take: the mean of the last ones, over the workers."""
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else FIRST_GUESS_SECONDS
        return mean * jobs_before / len(self.workers)

    @property
    def mean_seconds(self) -> float | None:
        """Mean seconds a job ran, over the last ones; None before the first."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else None

    def require_worker(self) -> None:
        """Raises Unavailable when nobody can say whether a job will ever be drawn."""
        if all(worker.is_degraded for worker in self.workers):
            raise Unavailable(f"{self.why_not_ready()}", retry_after_seconds=30)

    def why_not_ready(self) -> str | None:
        """Why no job can be taken now; None when one can."""
        if self.is_draining:
            return "the service is stopping"
        if all(worker.is_degraded for worker in self.workers):
            deaths = "; ".join(
                f"worker {worker.name}: {worker.last_death}" for worker in self.workers
            )
            return f"every worker died again and again ({deaths}); jobs wait, the service's log has the reason"
        return disk.why_no_room(self._output_dir, self._settings.storage.min_free_mib)

    # Models

    async def load_model(self, model_id: str) -> list[WorkerOutcome]:
        """Load a model on every worker that has no job, and wait until it is there or failed."""
        return list(
            await asyncio.gather(*(self._load_on(worker, model_id) for worker in self.workers))
        )

    async def unload_model(self) -> list[WorkerOutcome]:
        """Give back the memory of every worker that has no job."""
        return list(await asyncio.gather(*(self._unload_on(worker) for worker in self.workers)))

    # WorkerListener

    async def on_event(self, worker: Worker, event: Any) -> None:
        match event:
            case events.Ready():
                log.info(
                    "worker %s is up on %s",
                    worker.name,
                    event.device,
                    extra={"action": "worker_ready"},
                )
                if self._settings.worker.preload:
                    await worker.load(self._default_model)
            case events.Progress():
                self._progress[event.job_id] = JobProgress(event.stage, event.step, event.steps)
            case events.Loaded():
                log.info(
                    "worker %s loaded %s in %.0f ms",
                    worker.name,
                    event.model,
                    event.milliseconds,
                    extra={"action": "model_loaded", "model": event.model},
                )
            case events.LoadFailed():
                log.error(
                    "%s",
                    event.message,
                    extra={"action": "load_failed", "model": event.model},
                )
            case events.Finished():
                await self._end(event.job_id, self._finish(event))
            case events.Failed():
                error = JobError(code=event.code, message=event.message)
                await self._end(event.job_id, self.store.fail(event.job_id, error, self._now()))
            case events.WasCancelled():
                await self._end(event.job_id, self.store.cancel_running(event.job_id, self._now()))
        await self._notify()

    async def on_death(self, worker: Worker, job_id: str | None, exit_text: str) -> None:
        if job_id is not None:
            images.discard_staged(self._output_dir, job_id)
            self._progress.pop(job_id, None)
            try:
                await self._give_up(
                    await self.get(job_id), "poison", f"worker {worker.name} died: {exit_text}"
                )
            except FluxError as error:
                log.error(
                    "%s",
                    error.message,
                    extra={"action": "store_refused", "job_id": job_id},
                )
        await self._notify()

    # Inside

    async def _clear_staging(self) -> None:
        """Remove what jobs of ours left in staging. Another service may share the folder: its files stay."""
        for job_id in images.staged_jobs(self._output_dir):
            if await self.store.get(job_id) is not None:
                images.discard_staged(self._output_dir, job_id)

    async def _dispatch(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for worker in self.workers:
                try:
                    await self._feed(worker)
                except StorageUnavailable:
                    await asyncio.sleep(STORE_PAUSE_SECONDS)
                    self._wake.set()

    async def _feed(self, worker: Worker) -> None:
        """Give an idle worker the oldest job."""
        if worker.state is not WorkerState.IDLE or self.is_draining:
            return
        job = await self.store.claim_next(worker.name, self._now())
        if job is None:
            return
        self._waiting -= 1
        if job.id in self._cancelled_in_claim:
            self._cancelled_in_claim.discard(job.id)
            self._wake.set()
            return
        if (
            worker.state is not WorkerState.IDLE or self.is_draining
        ):  # it died, or began to load, meanwhile
            await self._put_back(job, take_attempt_back=True)
            return
        log.info(
            "job started",
            extra={"action": "job_started", "job_id": job.id, "worker": worker.name},
        )
        await worker.run(job.id, job.request.to_json())

    async def _tell_worker_to_leave(self, job_id: str) -> None:
        for worker in self.workers:
            if worker.job_id == job_id:
                await worker.cancel(job_id)
                return
        self._cancelled_in_claim.add(job_id)

    async def _finish(self, event: events.Finished) -> Job | None:
        now = self._now()  # before anything is awaited: the worker may have its next job by then
        job = await self.get(event.job_id)
        result = _with_waits(job, GenerationResult.from_json(event.result), now)
        done = await self.store.succeed(
            job,
            result,
            now,
            publish=lambda: images.publish(self._output_dir, result.images),
        )
        if done is not None:
            self._seconds.append(
                result.timings_ms["total"] / 1000 - result.timings_ms["queued"] / 1000
            )
        return done

    async def _end(self, job_id: str, change: Any) -> None:
        """Commit an end; whoever lost the race to another end leaves nothing behind."""
        self._progress.pop(job_id, None)
        self._cancelled_in_claim.discard(job_id)
        try:
            job = await change
        except FluxError as error:
            await self._fail_for_storage(job_id, error)
            return
        finally:
            images.discard_staged(self._output_dir, job_id)
        if job is not None:
            self._announce(job)

    async def _fail_for_storage(self, job_id: str, error: FluxError) -> None:
        log.error("%s", error.message, extra={"action": "job_not_stored", "job_id": job_id})
        images.discard_published(self._output_dir, job_id)
        try:
            failed = await self.store.fail(
                job_id, JobError(code=error.code, message=error.message), self._now()
            )
        except FluxError:
            # The row stays "running" and is tried again at the next start.
            self._resolve(job_id, error)
            return
        if failed is not None:
            self._announce(failed)

    async def _give_up(self, job: Job, code: str, why: str) -> None:
        """A job whose worker is gone: once more from its old place, or the end with `code`."""
        if job.status is not JobStatus.RUNNING:
            return
        if self.is_draining:
            await self._put_back(job, take_attempt_back=True)
        elif job.attempts < self._settings.queue.max_attempts:
            log.warning(
                "job goes back: %s",
                why,
                extra={"action": "job_requeued", "job_id": job.id},
            )
            await self._put_back(job, take_attempt_back=False)
        else:
            error = JobError(
                code=code,
                message=f"given up after {job.attempts} attempts, none of which came to its end: {why}",
            )
            failed = await self.store.fail(job.id, error, self._now())
            if failed is not None:
                self._announce(failed)

    async def _put_back(self, job: Job, *, take_attempt_back: bool) -> None:
        if await self.store.requeue(job.id, take_attempt_back=take_attempt_back) is not None:
            self._waiting += 1
            self._wake.set()

    async def _load_on(self, worker: Worker, model_id: str) -> WorkerOutcome:
        await self._until(lambda: worker.state is not WorkerState.STARTING)
        if worker.state is not WorkerState.IDLE:
            return WorkerOutcome(worker.name, False, f"the worker is {worker.state.value}")
        if worker.model != model_id:
            await worker.load(model_id)
            await self._until(lambda: worker.state is not WorkerState.LOADING)
        if worker.model != model_id:
            return WorkerOutcome(worker.name, False, worker.last_load_error or worker.last_death)
        return WorkerOutcome(worker.name, True)

    async def _unload_on(self, worker: Worker) -> WorkerOutcome:
        if worker.state is not WorkerState.IDLE:
            return WorkerOutcome(worker.name, False, f"the worker is {worker.state.value}")
        if worker.model is not None:
            await worker.unload()
            await self._until(lambda: worker.model is None)
        return WorkerOutcome(worker.name, True)

    async def _earlier(self, idempotency_key: str, body_sha256: str | None) -> Job | None:
        found = await self.store.by_idempotency_key(idempotency_key)
        if found is None:
            return None
        job, digest = found
        if digest != body_sha256:
            raise IdempotencyMismatch(
                f"Idempotency-Key {idempotency_key[:64]!r} was used with another body; use a new key for a new request"
            )
        return job

    def _require_open(self) -> None:
        if self.is_draining:
            raise Unavailable(
                "the service is stopping; try again in a moment", retry_after_seconds=5
            )
        no_room = disk.why_no_room(self._output_dir, self._settings.storage.min_free_mib)
        if no_room is not None:
            raise StorageUnavailable(no_room, retry_after_seconds=60)
        limit = self._settings.queue.max_queue_size
        if self._waiting >= limit:
            # One place is free when the next job ends.
            seconds = min(MAX_RETRY_AFTER_SECONDS, max(1, math.ceil(self.wait_seconds(1))))
            raise QueueFull(
                f"{self._waiting} jobs wait, and {limit} may (FLUX_MAX_QUEUE_SIZE); try again in about {seconds} s",
                retry_after_seconds=seconds,
            )

    def _announce(self, job: Job) -> None:
        log.info(
            "job %s",
            job.status.value,
            extra={"action": f"job_{job.status.value}", "job_id": job.id},
        )
        future = self._waiters.get(job.id)
        if future is not None and not future.done():
            future.set_result(job)

    def _resolve(self, job_id: str, error: FluxError) -> None:
        future = self._waiters.get(job_id)
        if future is not None and not future.done():
            future.set_exception(error)

    def _release_waiter(self, job_id: str) -> None:
        self._resolve(
            job_id,
            Unavailable(
                f"the service is stopping; job {job_id} is kept and runs after the next start, GET /jobs/{job_id}",
                retry_after_seconds=10,
            ),
        )

    def _release_all_waiters(self) -> None:
        for job_id in list(self._waiters):
            self._release_waiter(job_id)

    async def _notify(self) -> None:
        self._wake.set()
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(condition)

    def _now(self) -> str:
        return rfc3339(self._chance.now())


def _with_waits(job: Job, result: GenerationResult, now: str) -> GenerationResult:
    """Add what only the parent knows to the worker's timings: ms in line, ms in all."""
    assert job.started_at is not None
    queued = _ms_between(job.created_at, job.started_at)
    timings: Mapping[str, float] = {
        "queued": queued,
        **result.timings_ms,
        "total": _ms_between(job.created_at, now),
    }
    return GenerationResult(
        images=result.images,
        engine=result.engine,
        precision=result.precision,
        device=result.device,
        timings_ms=timings,
    )


def _ms_between(earlier: str, later: str) -> float:
    from datetime import datetime

    return round(
        (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds() * 1000,
        1,
    )
