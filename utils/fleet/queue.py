"""The queue of a fleet: the same, with workers that come and go and a dispatcher that asks the router."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from config.errors import StorageUnavailable, Unavailable
from models.types import GenerationRequest
from utils import images
from utils.dispatcher import is_to_blame
from utils.fleet.dispatcher import FleetDispatcher, FleetLine
from utils.fleet.roster import NOBODY, NOBODY_RETRY_SECONDS
from utils.fleet.shared_files import SharedFiles
from utils.fleet.worker import FleetWorker
from utils.job import Job
from utils.ledger import Ledger, Others
from utils.line import Lane
from utils.queue_manager import PAUSED, QueueManager, WorkerOutcome
from utils.worker.parent import Death, Worker

log = logging.getLogger(__name__)


class FleetQueue(QueueManager):
    """A `QueueManager` whose local lane is the fleet."""

    dispatcher: FleetDispatcher
    # Who is told of a replica that is gone, besides.
    on_missed: Callable[[FleetWorker], None] = staticmethod(lambda worker: None)
    shared: SharedFiles | None = None
    # Why this front door begins no job, where there are several.
    why_not_routing: Callable[[], str | None] = staticmethod(lambda: None)
    # Before and after something is written that other front doors go by.
    state_changes: Callable[[str], None] = staticmethod(lambda key: None)
    state_changed: Callable[[str, str], None] = staticmethod(lambda key, value: None)

    def __init__(self, *args: Any, **options: Any) -> None:
        self._telling: set[asyncio.Task[None]] = set()
        super().__init__(*args, **options)

    def _make_dispatcher(self, models_on: Callable[[Worker], Sequence[str]]) -> FleetDispatcher:
        self._ledger.line = line = FleetLine()
        self.dispatcher = FleetDispatcher(
            self.workers,
            self._ledger,
            self.bus,
            self.pace,
            self._settings,
            models_on=models_on,
            why_held=lambda: self.why_held() or self.why_not_routing(),
            line=line,
        )
        return self.dispatcher

    @property
    def replicas(self) -> list[FleetWorker]:
        return self.dispatcher.replicas

    def wake(self) -> None:
        """A replica was set aside or taken back."""
        self._dispatcher.wake()

    # Beside other front doors

    def share(self, others: Others, files: SharedFiles) -> None:
        """Others have the same line. Call before `start`; until `route` they begin its jobs."""
        self.shared, self._ledger.keep_pictures = files, files.keep_pictures
        self._is_alone, self.dispatcher.routes = False, False
        self._ledger.others, self._ledger.on_heard_end = others, self._heard_end

    async def route(self, left: Sequence[Job]) -> None:
        """Begin jobs from now on. `left` are those of a door that did before: nobody hears of them any more."""
        for job in left:
            images.discard_staged(self._output_dir, job.id)
            images.discard_published(self._output_dir, job.id)
            await self._give_up(job, "worker_lost", "its front door ended", is_blamed=False)
        self.dispatcher.begin_anew()

    def stop_routing(self) -> None:
        """Another front door does. What the cloud was asked for is in the rows, and looked after there."""
        self.dispatcher.routes = False
        for worker in self.workers:
            if worker.lane is not Lane.LOCAL:
                worker.leave()  # type: ignore[attr-defined]  # a CloudWorker, which brings an HTTP client

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    def _heard_end(self, job: Job) -> None:
        self._progress.pop(job.id, None)
        self.dispatcher.job_ended(job.id)
        self._let_files_go(job)
        for worker in self.workers:
            if job.id in worker.jobs:
                if isinstance(worker, FleetWorker) and not worker.is_ours:
                    worker.note_end(job.id)
                else:  # somebody cancelled it at another door
                    telling = asyncio.create_task(worker.cancel(job.id), name=f"cancel {job.id}")
                    self._telling.add(telling)
                    telling.add_done_callback(self._telling.discard)

    def note_worker(self, job: Job) -> None:
        """A job runs at another door's word: what its worker tells of it is told here too."""
        for worker in self.replicas:
            if worker.name == job.worker and not worker.is_ours and job.id not in worker.jobs:
                worker.note_job(job.id, job.request.to_json())

    async def _append(self, request: GenerationRequest, *key: Any) -> Job:
        if self.shared is not None:
            await self.shared.keep_inputs(request)
        return await super()._append(request, *key)

    async def pause(self) -> None:
        self.state_changes(PAUSED)
        await super().pause()
        self.state_changed(PAUSED, "true")

    async def resume(self) -> None:
        self.state_changes(PAUSED)
        await super().resume()
        self.state_changed(PAUSED, "false")

    async def drained(self) -> bool:
        if not self.dispatcher.routes and not self._ledger.awaited:
            return True  # what runs is another door's
        return await super().drained()

    async def adopt(self, job_id: str) -> None:
        """A job whose row says that it runs here, and of which nobody here knows: it waits again."""
        job = await self.get(job_id)
        await self._give_up(job, "worker_lost", "it was never sent", is_blamed=False)

    # What is other in a fleet

    def _ends_with_us(self, lane: Lane) -> bool:
        return False  # a front door that ends takes no replica with it

    def _require_worker_of(self, lane: Lane) -> None:
        if lane is not Lane.LOCAL:
            super()._require_worker_of(lane)

    def require_worker(self, backend: str = "") -> None:
        if Lane.of(backend) is Lane.LOCAL and not self.replicas:
            raise Unavailable(NOBODY, retry_after_seconds=NOBODY_RETRY_SECONDS)
        super().require_worker(backend)

    def why_not_ready(self) -> str | None:
        if not self.is_draining and not self.replicas:
            return NOBODY
        return super().why_not_ready()

    async def _load_on(self, worker: Worker, model_id: str) -> WorkerOutcome:
        if isinstance(worker, FleetWorker):
            if model_id not in worker.runnable:
                why = worker.reasons.get(model_id, "it does not know the model")
                return WorkerOutcome(worker.name, False, why)
            if worker.is_asleep:
                return WorkerOutcome(worker.name, False, "it sleeps")
        return await super()._load_on(worker, model_id)

    # FleetListener

    async def on_death(self, worker: Worker, death: Death) -> None:
        if isinstance(worker, FleetWorker):
            for given in death.jobs:
                if is_to_blame(given):
                    self.dispatcher.note_failure(given.id, worker)
        await super().on_death(worker, death)

    async def on_refused(self, worker: FleetWorker, job_id: str, why: str) -> None:
        """It draws nothing now: the job waits on, as if it had not been given."""
        try:
            job = await self.get(job_id)
            await self._ledger.put_back(job, take_attempt_back=True, why=f"{worker.name}: {why}")
        except StorageUnavailable as error:
            log.error("%s", error.message, extra={"action": "store_refused", "job_id": job_id})
            await self._until_stored(job_id, False, "worker_lost", why)
        await self._notify()

    async def on_gone(self, worker: FleetWorker) -> None:
        self.dispatcher.forget(worker)
        self.remove_worker(worker)
        self.on_missed(worker)
        await self._notify()

    def _let_go(self, job: Job) -> None:
        self.dispatcher.job_ended(job.id)
        super()._let_go(job)
