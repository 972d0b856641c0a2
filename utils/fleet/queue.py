"""The queue of a fleet: the same, with workers that come and go and a dispatcher that asks the router."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from config.errors import StorageUnavailable, Unavailable
from utils.dispatcher import is_to_blame
from utils.fleet.dispatcher import FleetDispatcher, FleetLine
from utils.fleet.roster import NOBODY, NOBODY_RETRY_SECONDS
from utils.fleet.worker import FleetWorker
from utils.job import Job
from utils.line import Lane
from utils.queue_manager import QueueManager, WorkerOutcome
from utils.worker.parent import Death, Worker

log = logging.getLogger(__name__)


class FleetQueue(QueueManager):
    """A `QueueManager` whose local lane is the fleet."""

    dispatcher: FleetDispatcher
    # Who is told of a replica that is gone, besides.
    on_missed: Callable[[FleetWorker], None] = staticmethod(lambda worker: None)

    def _make_dispatcher(self, models_on: Callable[[Worker], Sequence[str]]) -> FleetDispatcher:
        self._ledger.line = line = FleetLine()
        self.dispatcher = FleetDispatcher(
            self.workers,
            self._ledger,
            self.bus,
            self.pace,
            self._settings,
            models_on=models_on,
            why_held=self.why_held,
            line=line,
        )
        return self.dispatcher

    @property
    def replicas(self) -> list[FleetWorker]:
        return self.dispatcher.replicas

    def wake(self) -> None:
        """A replica was set aside or taken back."""
        self._dispatcher.wake()

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
