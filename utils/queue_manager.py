"""The queue: first in, first out, on disk. What routes may do with jobs and workers.

Who does what: `ledger.Ledger` changes the states of jobs, `dispatcher.Dispatcher` gives them to
workers, this module is the door to both and hears what the workers say.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from config.errors import (
    ConfigurationError,
    FluxError,
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    QueueFull,
    StorageUnavailable,
    Unavailable,
)
from config.settings import Settings
from models.types import GenerationRequest, GenerationResult, Stage
from utils import disk, images, log_context
from utils.allowance import Allowance
from utils.clock import Chance
from utils.database import SpentBy
from utils.dispatcher import Dispatcher, Kind, is_to_blame
from utils.event_bus import EventBus
from utils.input_pictures import InputPictures
from utils.job import Job, JobError, JobStatus
from utils.job_store import JobStore
from utils.ledger import Ledger, to_the_end
from utils.line import Lane
from utils.lora_pins import LoraPins
from utils.meter import Meter
from utils.pace import Pace
from utils.worker import events
from utils.worker.parent import DEATHS_DEGRADED, Death, Worker, WorkerState

log = logging.getLogger(__name__)

MAX_RETRY_AFTER_SECONDS = 3600
STORE_PAUSE_SECONDS = 1.0
JOB_ERRORS = ("oom", "poison", "timeout", "worker_lost", "storage", "internal")
WAITING_BY_MODEL = """
SELECT model, count(*) AS jobs FROM job WHERE status = 'queued' GROUP BY model ORDER BY model
"""
PAUSED = "paused"  # the key of what is remembered


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a running job is: `step` of `steps` (over all its images) in `stage`, and ms until its end."""

    stage: str
    step: int
    steps: int
    eta_ms: float | None
    at: float  # the loop's clock


@dataclass(frozen=True, slots=True)
class WorkerOutcome:
    """What a load or unload did on one worker."""

    worker: str
    done: bool
    reason: str | None = None


class QueueManager:
    """Owns the jobs and the workers. `start`, then `submit`, `wait`, `cancel`; `drain` and `stop` end it.

    `make_workers(listener)` is called once; `models_on(worker)` names what a worker can run.
    Methods raise FluxError for people.
    """

    def __init__(
        self,
        store: JobStore,
        make_workers: Callable[[QueueManager], list[Worker]],
        models_on: Callable[[Worker], Sequence[str]],
        settings: Settings,
        chance: Chance,
        default_model: str,
        pins: LoraPins | None = None,
        inputs: InputPictures | None = None,
        allowance: Allowance | None = None,
    ) -> None:
        self.store = store
        self.bus = EventBus(int(chance.now().timestamp() * 1000))
        self.pace = Pace()
        self.meter = Meter()
        self.workers = make_workers(self)
        self.local_workers = [each for each in self.workers if each.lane is Lane.LOCAL]
        self.meter.expect([each.name for each in self.local_workers], JOB_ERRORS)
        self.is_draining = False
        self.is_paused = False
        self._settings = settings
        self._output_dir = settings.storage.output_dir
        self._default_model = default_model
        self._progress: dict[str, JobProgress] = {}
        self._pins = pins
        self._inputs = inputs
        self._allowance = allowance or Allowance()
        self._ledger = Ledger(
            store, self.bus, self.pace, self._output_dir, chance, on_end=self._let_go,
            log_prompts=settings.log.log_prompts,
        )  # fmt: skip
        self.bus.owner_of = self._ledger.owner_of
        self._models_on = models_on
        self._dispatcher = self._make_dispatcher(models_on)
        self._has_room = False  # as of a look in this turn of the loop
        self._changed = asyncio.Condition()

    def _make_dispatcher(self, models_on: Callable[[Worker], Sequence[str]]) -> Dispatcher:
        return Dispatcher(
            self.workers,
            self._ledger,
            self.bus,
            self.pace,
            self._settings,
            models_on=models_on,
            why_held=self.why_held,
        )

    # Life

    async def start(self) -> None:
        """Put back what an earlier process left running, then start workers and dispatcher."""
        try:
            self._output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"FLUX_OUTPUT_DIR = {self._output_dir}: the folder cannot be made: {error.strerror}"
            ) from error
        for job in await self._ledger.open(is_alone=self._is_alone):
            await self._take_back(job)
        if self._pins is not None:
            await self._pins.start(self.store.loras_of_open_jobs)
        if self._inputs is not None:
            await self._inputs.start(self.store.inputs_of_open_jobs)
        self.is_paused = await self.store.read_state(PAUSED) == "true"
        for worker in self.workers:
            worker.start()
        self._dispatcher.start()

    async def tell_stranded(self) -> None:
        """Say which jobs wait for what no worker here can draw: a card or a row of the catalog may have gone since.

        They are left as they are, because it may come back.
        """
        drawn = {model for worker in self.workers for model in self._models_on(worker)}
        for row in await self.store.select(WAITING_BY_MODEL, {}):
            if row["model"] not in drawn:
                log.warning(
                    "%d waiting jobs are for %s, which nothing here can draw now; they wait until it can, "
                    "or are cancelled (GET /jobs?status=queued lists them)",
                    row["jobs"],
                    row["model"],
                    extra={"action": "jobs_stranded", "model": row["model"]},
                )

    # Whether nobody else has this line.
    _is_alone = True

    async def _take_back(self, job: Job) -> None:
        """A job that an earlier process left running."""
        why = "the service ended while the job ran"
        is_blamed = self._ends_with_us(Lane.of(job.request.backend))
        await self._give_up(job, "worker_lost", why, is_blamed=is_blamed)

    def drain(self) -> None:
        """Take no more jobs and answer those who wait for a job that has not begun. Call once, from the loop."""
        if self.is_draining:
            return
        self.is_draining = True
        running = frozenset(self.running_ids)
        self._ledger.release_waiters(set(self._ledger.awaited) - running)
        self.bus.close(keep=running)
        loop = asyncio.get_running_loop()
        self._drained_at = loop.time() + self._settings.server.drain_seconds
        loop.call_at(self._drained_at, self._release_everybody)

    async def drained(self) -> bool:
        """Wait for running jobs as long as settings allow; returns whether all have ended."""
        try:
            async with asyncio.timeout_at(self._drained_at):
                await self._until(lambda: not self.running_ids)
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Wait for running jobs as long as settings allow, stop the workers, close the store."""
        self.drain()
        await self._dispatcher.stop()
        if not await self.drained():
            log.warning("running jobs go back into the queue", extra={"action": "drain_timeout"})
        await asyncio.gather(*(worker.stop() for worker in self.workers))
        await self._ledger.settle(max(self._drained_at, asyncio.get_running_loop().time() + 1))
        self._release_everybody()
        if self._pins is not None:
            await self._pins.stop()
        if self._inputs is not None:
            await self._inputs.stop()
        await self.store.close()

    # Jobs

    async def submit(
        self,
        request: GenerationRequest,
        *,
        owner: str = "",
        idempotency_key: str | None = None,
        body_sha256: str | None = None,
    ) -> Job:
        """Append a job; it is on disk when this returns, and keeps its LoRAs and input pictures.

        Raises QueueFull, StorageUnavailable, Unavailable, NotFound for a LoRA or picture that is gone.
        """
        if idempotency_key is not None:
            earlier = await self.earlier(owner, idempotency_key, body_sha256)
            if earlier is not None:
                return earlier
        self._require_open(owner, Lane.of(request.backend))
        estimate_usd = self._allowance.estimate(request)
        try:
            async with self._allowance.room(owner, request, estimate_usd):
                job = await self._append(request, owner, idempotency_key, body_sha256, estimate_usd)
        except Exception as error:
            if idempotency_key is not None and not isinstance(error, FluxError):
                # The same key came twice at once, and the other one was first.
                earlier = await self.earlier(owner, idempotency_key, body_sha256)
                if earlier is not None:
                    return earlier
            raise
        self._dispatcher.wake()
        log_context.bind(job_id=job.id)  # the answer to the request is about it
        return job

    async def _append(self, request: GenerationRequest, *key: Any) -> Job:
        if request.inputs and self._inputs is not None:
            self._inputs.require(request.inputs)
        if not request.loras or self._pins is None:
            return await self._ledger.append(request, *key, partial(self._why_not, request, key[0]))
        pins = self._pins

        async def with_its_loras() -> Job:
            async with pins.held(request.loras):
                return await self._ledger.append(
                    request, *key, partial(self._why_not, request, key[0])
                )

        return await to_the_end(with_its_loras())

    def _let_go(self, job: Job) -> None:
        """A job has ended: it is counted, and what it alone had may go."""
        self.meter.job_ended(job)
        self._let_files_go(job)

    def _let_files_go(self, job: Job) -> None:
        if self._pins is not None:
            self._pins.job_ended(job.request.loras)
        if self._inputs is not None:
            self._inputs.job_ended(job.request.inputs)

    async def earlier(self, owner: str, key: str, body_sha256: str | None) -> Job | None:
        """The job that was submitted under an idempotency key. Raises IdempotencyMismatch for another body."""
        found = await self._ledger.by_key(owner, key)
        if found is None:
            return None
        job, digest = found
        if digest != body_sha256:
            raise IdempotencyMismatch(
                f"Idempotency-Key {key[:64]!r} was used with another body; use a new key for a new request"
            )
        return job

    async def wait(self, job: Job) -> Job:
        """The job when it has ended. Raises Unavailable when the service stops before."""
        return await self._ledger.wait(
            job, may_begin=lambda: not self.is_draining or job.id in self.running_ids
        )

    async def get(self, job_id: str) -> Job:
        job = await self.store.get(job_id)
        if job is None:
            raise self.no_such_job(job_id)
        return job

    def no_such_job(self, job_id: str) -> NotFound:
        return NotFound(f"there is no job {job_id[:64]!r}")

    def owner_of(self, job_id: str) -> str | None:
        """Who submitted a job that has not ended; None for any other."""
        return self._ledger.owner_of(job_id)

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job, waiting or running; one that has ended stays as it is.

        A running job is cancelled at once; its worker leaves it at the next step.
        """
        return await to_the_end(self._cancel(await self.get(job_id)))

    async def _cancel(self, job: Job) -> Job:
        ended = await self._ledger.cancel(job)
        if ended is None:
            return await self.get(job.id)
        for worker in self.workers:
            if job.id in worker.jobs:
                await worker.cancel(job.id)
        return ended

    async def retry(self, job_id: str, *, owner: str = "") -> Job:
        """Submit the request of a job that has ended once more, as a new job."""
        job = await self.get(job_id)
        if not job.status.is_final:
            raise InvalidRequest.of(
                "job_id",
                f"job {job.id} is {job.status.value}; only a job that has ended is tried again",
            )
        return await self.submit(job.request, owner=owner)

    def progress(self, job_id: str) -> JobProgress | None:
        return self._progress.get(job_id)

    def position(self, job: Job) -> int | None:
        """Place in line, 1 is next; None for a job that does not wait."""
        return self._ledger.line.position(job.seq) if job.status is JobStatus.QUEUED else None

    # Workers that come and go

    def add_worker(self, worker: Worker) -> None:
        self.workers.append(worker)
        if worker.lane is Lane.LOCAL:
            self.local_workers.append(worker)
            self.meter.expect([worker.name], JOB_ERRORS)
        worker.start()
        self._dispatcher.wake()

    def remove_worker(self, worker: Worker) -> None:
        for workers in (self.workers, self.local_workers):
            if worker in workers:
                workers.remove(worker)

    # The line

    async def pause(self) -> None:
        """Begin no more jobs until `resume`, also after a restart; running ones end."""
        await self.store.write_state(PAUSED, "true")
        self.is_paused = True
        self.bus.publish("queue")

    async def resume(self) -> None:
        await self.store.write_state(PAUSED, "false")
        self.is_paused = False
        self.bus.publish("queue")
        self._dispatcher.wake()

    async def clear(self) -> int:
        """Cancel every job that waits; returns how many."""
        cleared = await to_the_end(self._ledger.clear())
        self.bus.publish("queue")
        return cleared

    @property
    def waiting(self) -> int:
        """Jobs in line."""
        return len(self._ledger.line)

    def waiting_jobs(self, limit: int, owner: str | None = None) -> list[tuple[int, str]]:
        """(seq, id) of the first jobs in line, everybody's or one owner's."""
        return self._ledger.line.oldest(limit, owner)

    @property
    def running_ids(self) -> list[str]:
        """Jobs that workers have and somebody wants."""
        return [
            job.id
            for worker in self.workers
            for job in worker.jobs.values()
            if job.unwanted_since is None
        ]

    @property
    def waiting_here(self) -> int:
        """Jobs in line for this machine, those for the cloud not counted."""
        return self._ledger.line.count(Lane.LOCAL)

    @property
    def running_here(self) -> list[str]:
        """Jobs that workers of this machine have and somebody wants."""
        return [
            job.id
            for worker in self.local_workers
            for job in worker.jobs.values()
            if job.unwanted_since is None
        ]

    def wait_seconds(self, jobs_before: int) -> float:
        """How long that many jobs are thought to take on all workers."""
        return self.pace.wait_seconds(jobs_before, max(1, len(self.local_workers)))

    def why_held(self) -> str | None:
        """Why no waiting job may begin now; None when one may."""
        if self.is_draining:
            return "the service is stopping"
        if self.is_paused:
            return "the queue is paused (POST /queue/resume goes on)"
        return self._dispatcher.no_room

    def why_waiting(self) -> str | None:
        """Why nothing goes on now, also where the queue tries all the same; None when all is well."""
        return self.why_held() or self.store.refusal

    def require_worker(self, backend: str = "") -> None:
        """Raises Unavailable when nobody can say whether a job of a backend will ever be drawn."""
        if Lane.of(backend) is Lane.LOCAL and self._is_without_workers:
            raise Unavailable(f"{self.why_not_ready()}", retry_after_seconds=30)

    @property
    def _is_without_workers(self) -> bool:
        """Whether the workers of this machine died again and again, all of them."""
        workers = self.local_workers
        return bool(workers) and all(worker.is_degraded for worker in workers)

    def why_not_ready(self) -> str | None:
        """Why no job can be taken now; None when one can."""
        if self.is_draining:
            return "the service is stopping"
        if self._is_without_workers:
            deaths = "; ".join(
                f"worker {worker.name}: {worker.last_death}" for worker in self.local_workers
            )
            return f"every worker died again and again ({deaths}); jobs wait, the service's log has the reason"
        no_room = disk.why_no_room(self._output_dir, self._settings.storage.min_free_mib)
        return no_room or self.store.damage or self.store.refusal

    def is_well(self) -> bool:
        """Whether the queue's own work goes on and no worker is stuck beyond the time it is ended after.

        For a watchdog: what it cannot vouch for is better started anew.
        """
        now, settings = asyncio.get_running_loop().time(), self._settings.worker
        patience = max(settings.stall_timeout_seconds, settings.load_timeout_seconds) + 60
        stuck = any(worker.jobs and now - worker.last_sign > patience for worker in self.workers)
        return (self.is_draining or self._dispatcher.is_alive) and not stuck

    # Models

    async def load_model(self, model_id: str) -> list[WorkerOutcome]:
        """Load a model on every worker that has no job, and wait until it is there or failed."""
        return list(
            await asyncio.gather(
                *(self._load_on(worker, model_id) for worker in self.local_workers)
            )
        )

    async def unload_model(self, model_id: str | None = None) -> list[WorkerOutcome]:
        """Have every worker that has no job let go of a model, or of all."""
        return list(
            await asyncio.gather(
                *(self._unload_on(worker, model_id) for worker in self.local_workers)
            )
        )

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
                # After many deaths it shows that it can load before it is given anybody's job.
                if self._settings.worker.preload or worker.deaths >= DEATHS_DEGRADED:
                    await worker.load(self._default_model)
            case events.Progress():
                self._note_progress(worker, event)
                return  # nobody waits for a step
            case events.Begun():
                for job_id in event.job_ids:
                    if job_id in worker.jobs:
                        self.meter.job_begun(worker.name, worker.jobs[job_id].request)
                return
            case events.Drawn():
                kind = Kind(event.model, event.width, event.height)
                self.pace.batch_took(kind, event.pictures, event.milliseconds)
                return
            case events.Loading():
                data = {"model": event.model, "what": event.what, "fraction": event.fraction}
                for job_id in worker.jobs:
                    self.bus.publish("loading", job_id, data=data)
                if not worker.jobs:
                    self.bus.publish("loading", data=data | {"worker": worker.name})
            case events.Loaded():
                if not event.milliseconds:
                    return await self._notify()  # it was there already
                self.meter.model_loaded(event.model, event.milliseconds)
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
                self._progress.pop(event.job_id, None)
                result = GenerationResult.from_json(event.result)
                ms, first = result.timings_ms, result.images[0]
                kind = Kind(event.model, first.width, first.height)
                self.pace.rest_took(kind, (ms["decode"] + ms["save"]) / len(result.images))
                self._ledger.end_well(event.job_id, result)
            case events.Failed():
                self._progress.pop(event.job_id, None)
                error = JobError(code=event.code, message=event.message)
                self._ledger.end_badly(event.job_id, error)
            case events.WasCancelled():
                self._progress.pop(event.job_id, None)
                self._ledger.end_cancelled(event.job_id)
        await self._notify()

    async def on_death(self, worker: Worker, death: Death) -> None:
        if worker.state is WorkerState.RESTARTING:
            self.meter.worker_died(worker.name)
        for given in death.jobs:
            images.discard_staged(self._output_dir, given.id)
            self._progress.pop(given.id, None)
            why = f"worker {worker.name} died: {death.exit_text}"
            await self._until_stored(given.id, is_to_blame(given), death.code, why)
        await self._notify()

    # Inside

    def _note_progress(self, worker: Worker, event: events.Progress) -> None:
        given = worker.jobs.get(event.job_id)
        if given is None or given.unwanted_since is not None:
            return  # it has ended meanwhile
        now = asyncio.get_running_loop().time()
        before = self._progress.get(event.job_id)
        kind = Kind.of(given.request)
        if before is not None and event.stage == before.stage == Stage.DENOISING:
            steps = event.step - before.step
            if steps > 0:
                milliseconds = (now - before.at) * 1000 / steps
                self.pace.step_took(kind, milliseconds)
                self.meter.step_took(kind.model, kind.width, kind.height, milliseconds)
        left = (event.steps - event.step) / event.steps
        pictures_left = max(1, math.ceil(left * given.request["num_images"]))
        eta = self.pace.eta_ms(kind, event.steps - event.step, pictures_left)
        self._progress[event.job_id] = JobProgress(event.stage, event.step, event.steps, eta, now)
        if event.stage == Stage.LOADING:
            return  # `loading` is told by the model's own event
        if before is None or before.stage == Stage.LOADING:
            self.bus.publish("started", event.job_id, data={"worker": worker.name})
        self.bus.publish(
            "progress",
            event.job_id,
            data={
                "stage": event.stage,
                "step": event.step,
                "steps": event.steps,
                "eta_ms": None if eta is None else round(eta),
            },
            preview=event.preview,
        )

    async def _until_stored(self, job_id: str, is_blamed: bool, code: str, why: str) -> None:
        """Give a job of a dead worker up; when the store refuses, as soon as it does not."""
        while True:
            try:
                return await self._give_up(await self.get(job_id), code, why, is_blamed=is_blamed)
            except NotFound:
                return
            except FluxError as error:
                log.error("%s", error.message, extra={"action": "store_refused", "job_id": job_id})
                if self.is_draining:
                    return  # the row says running: the next start puts it back
                await asyncio.sleep(STORE_PAUSE_SECONDS)

    async def _give_up(self, job: Job, code: str, why: str, *, is_blamed: bool = True) -> None:
        """A job whose worker is gone: once more from its old place, or the end with `code`."""
        if job.status is not JobStatus.RUNNING:
            return
        if self.is_draining or not is_blamed:
            await self._ledger.put_back(job, take_attempt_back=True, why=why)
        elif job.attempts < self._settings.queue.max_attempts:
            await self._ledger.put_back(job, take_attempt_back=False, why=why)
        else:
            message = (
                f"given up after {job.attempts} attempts, none of which came to its end: {why}"
            )
            await self._ledger.fail(job.id, JobError(code=code, message=message))
        self._dispatcher.wake()

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

    async def _unload_on(self, worker: Worker, model_id: str | None) -> WorkerOutcome:
        if worker.state is not WorkerState.IDLE:
            return WorkerOutcome(worker.name, False, f"the worker is {worker.state.value}")

        def is_gone() -> bool:
            held = {worker.model, *worker.models} - {None}
            return not held if model_id is None else model_id not in held

        if not is_gone():
            await worker.unload(model_id)
            await self._until(is_gone)
        return WorkerOutcome(worker.name, True)

    def _ends_with_us(self, lane: Lane) -> bool:
        """Whether a job of the lane may have ended this process. The cloud goes on with its own while we are away."""
        return lane is Lane.LOCAL

    def _require_open(self, owner: str, lane: Lane) -> None:
        if self.is_draining:
            raise Unavailable(
                "the service is stopping; try again in a moment", retry_after_seconds=5
            )
        if not self._has_room:
            no_room = disk.why_no_room(self._output_dir, self._settings.storage.min_free_mib)
            if no_room is not None:
                raise StorageUnavailable(no_room, retry_after_seconds=60)
            self._has_room = True  # for all that come in this turn of the loop
            asyncio.get_running_loop().call_soon(self._look_again)
        self._require_worker_of(lane)
        waiting = self._ledger.line.count(lane) + self._ledger.arriving_in[lane]
        mine = self._ledger.line.count_of(owner) + self._ledger.arriving[owner]
        refused = self._why_full(owner, waiting, mine)
        if refused is not None:
            raise refused

    def _why_not(
        self, request: GenerationRequest, owner: str, waiting: int, mine: int, spent: SpentBy
    ) -> FluxError | None:
        """Why a request may not become a job, beside what others appended meanwhile."""
        full = self._why_full(owner, waiting, mine)
        return full or self._allowance.why_not(owner, request, spent)

    def _why_full(self, owner: str, waiting: int, mine: int) -> QueueFull | None:
        """Why one job more may not wait, beside so many of all and of its owner; None when it may."""
        queue = self._settings.queue
        if waiting >= queue.max_queue_size:
            return self._full(
                f"{waiting} jobs wait, and {queue.max_queue_size} may (FLUX_MAX_QUEUE_SIZE)"
            )
        own = self._allowance.limits_of(owner).max_queued
        limit = own or queue.max_queued_per_key
        if limit and mine >= limit:
            whose = "the key's own limit" if own else "FLUX_MAX_QUEUED_PER_KEY"
            return self._full(f"{mine} jobs of this key wait, and {limit} may ({whose})")
        return None

    def _require_worker_of(self, lane: Lane) -> None:
        """A job that no worker would ever take is refused, as a retry after the cloud's key has gone."""
        if not any(worker.lane is lane for worker in self.workers):
            what = "the cloud, which has no key (SD_BFL_API_KEY)"
            if lane is Lane.LOCAL:
                what = "a worker of this machine, and there is none"
            raise Unavailable(f"the job would wait for {what}", retry_after_seconds=60)

    def _look_again(self) -> None:
        self._has_room = False

    def _full(self, what: str) -> QueueFull:
        # One place is free when the next job ends.
        seconds = min(MAX_RETRY_AFTER_SECONDS, max(1, math.ceil(self.wait_seconds(1))))
        return QueueFull(f"{what}; try again in about {seconds} s", retry_after_seconds=seconds)

    def _release_everybody(self) -> None:
        self._ledger.release_waiters(self._ledger.awaited)
        self.bus.close()

    async def _notify(self) -> None:
        self._dispatcher.wake()
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(condition)
