"""Gives the jobs in line to the replicas of a fleet, as `fleet/routing.py` decides.

The router there keeps the line and the replicas in its own memory. Before it is asked, it is told what has
changed in ours: who came, who waits no more, whose job has ended, what the replicas say. The cloud's jobs
have their own lane and go as in any service.
"""

from __future__ import annotations

import asyncio
import collections
import logging
from typing import Any

from config.errors import StorageUnavailable
from fleet.routing import Decision, Router
from models.types import EXACT_BATCH_SIZE
from utils.dispatcher import STORE_PAUSE_SECONDS, Dispatcher, Kind
from utils.fleet.wants import wanted_of
from utils.fleet.worker import FleetWorker
from utils.job import Job, JobStatus
from utils.line import Lane, Line
from utils.worker.parent import Worker

log = logging.getLogger(__name__)

MIRRORED_AT_ONCE = (
    200  # of a long line that is there at the start, the first may go before all are read
)


class FleetLine(Line):
    """A line that remembers what has changed in it."""

    def __init__(self) -> None:
        super().__init__()
        self.seqs: dict[str, int] = {}  # by job
        self.came: dict[str, None] = {}  # in their order
        self.went: dict[str, None] = {}

    def add(self, seq: int, job_id: str, owner: str, lane: Lane = Lane.LOCAL) -> None:
        super().add(seq, job_id, owner, lane)
        if lane is Lane.LOCAL:
            self.seqs[job_id] = seq
            self.came[job_id] = None

    def remove(self, seq: int) -> None:
        if seq in self._jobs:
            job_id = self._jobs[seq][0]
            self.seqs.pop(job_id, None)
            self.came.pop(job_id, None)
            self.went[job_id] = None
        super().remove(seq)


class FleetDispatcher(Dispatcher):
    """Its workers come and go (`QueueManager.workers`); those of the fleet are `FleetWorker`s."""

    def __init__(self, *args: Any, line: FleetLine, **options: Any) -> None:
        super().__init__(*args, **options)
        self.router = Router()
        self.last_decisions: collections.deque[Decision] = collections.deque(maxlen=50)
        self._line = line
        self.routes = True  # or another front door does, over the same line
        self._sent: dict[str, FleetWorker] = {}
        self._failed_on: dict[str, frozenset[str]] = {}

    @property
    def replicas(self) -> list[FleetWorker]:
        return [worker for worker in self._workers if isinstance(worker, FleetWorker)]

    def forget(self, worker: FleetWorker) -> None:
        """A replica is gone."""
        for job_id in self.router.forget(worker.replica):
            self._sent.pop(job_id, None)

    def note_failure(self, job_id: str, worker: FleetWorker) -> None:
        """A replica did not end a job: another one tries it, where there is another."""
        self._failed_on[job_id] = self._failed_on.get(job_id, frozenset()) | {worker.replica}

    def job_ended(self, job_id: str) -> None:
        self._failed_on.pop(job_id, None)

    def begin_anew(self) -> None:
        """Route from now on: nothing is known of a router before but the line."""
        self.router, self._sent, self._failed_on = Router(), {}, {}
        self._line.went = {}
        self._line.came = dict.fromkeys(self._line.seqs)
        self.routes = True
        self.wake()

    def is_sending(self, job_id: str) -> bool:
        """Whether a job is on its way to a replica, or there."""
        return job_id in self._sent

    def recollect(self) -> None:
        """Jobs of the line that the router let go of, because somebody was just changing them, and that wait on."""
        for job_id in self._line.seqs:
            if job_id not in self.router.waiting and job_id not in self._sent:
                self._line.came[job_id] = None

    async def _tick(self) -> None:
        if self.routes:
            return await super()._tick()
        self._look_at_disk()
        await self._tell_listeners()
        if self._ledger.store.refusal is not None:
            await self._ledger.store.probe()

    async def _give_out(self) -> None:
        while not self._is_stopping:
            await self._wake.wait()
            self._wake.clear()
            if not self.routes:
                self._line.went = {}
                continue
            try:
                for worker in list(self._workers):
                    if not isinstance(worker, FleetWorker):
                        await self._feed(worker)
                await self._send_out()
            except StorageUnavailable:
                await asyncio.sleep(STORE_PAUSE_SECONDS)
                self.wake()
            except Exception:
                log.exception("jobs were not given out", extra={"action": "feed_failed"})
                await asyncio.sleep(STORE_PAUSE_SECONDS)
                self.wake()

    async def _send_out(self) -> None:
        self._look_at_disk()
        await self._mirror()
        while self.routes and not self._is_stopping and self._why_held() is None:
            decision = self.router.next()
            if decision is None:
                break
            await self._begin(decision)
        if len(self._line.came) > MIRRORED_AT_ONCE:
            self.wake()  # there is more to be read

    async def _mirror(self) -> None:
        """Tell the router what has changed since the last time."""
        for job_id, worker in list(self._sent.items()):
            if job_id not in worker.jobs:
                del self._sent[job_id]
                self.router.ended(job_id)
        for worker in self.replicas:
            self.router.report(worker.stats())
        went, self._line.went = self._line.went, {}
        for job_id in went:
            self.router.withdraw(job_id)
        looked_at: set[str] = set()
        # Those, too, that come while the others are read: whoever is sent next may be drawn together with them.
        while len(looked_at) < MIRRORED_AT_ONCE and (new := self._came_beside(looked_at)):
            looked_at.update(new)
            for job_id in new:
                await self._mirror_job(job_id)

    def _came_beside(self, looked_at: set[str]) -> list[str]:
        came = list(self._line.came)[:MIRRORED_AT_ONCE]
        return [job_id for job_id in came if job_id not in looked_at]

    async def _mirror_job(self, job_id: str) -> None:
        if job_id in self._sent or job_id in self.router.waiting:
            return  # looked at again when its replica has let go of it
        job = await self._ledger.store.get(job_id)
        if job is None or job_id not in self._line.came:
            return  # it went meanwhile
        del self._line.came[job_id]
        avoid = self._failed_on.get(job_id, frozenset())
        self.router.wait(wanted_of(job_id, job.seq, job.request, avoid))

    async def _begin(self, decision: Decision) -> None:
        worker = next((w for w in self.replicas if w.replica == decision.replica), None)
        if worker is None or not worker.takes_jobs:
            return self._undo(decision)
        try:
            job = await self._ledger.claim_at(self._line.seqs.get(decision.job, -1), worker.name)
        except StorageUnavailable:
            self._undo(decision)
            raise
        if job is None:
            return self._not_claimed(decision.job)
        if not worker.takes_jobs or self._why_held() is not None:
            self.router.ended(decision.job)
            return await self._put_back(job)
        log.info(
            "job %s goes to %s: %s",
            job.id,
            worker.name,
            decision.reason,
            extra={"action": "job_routed", "job_id": job.id, "worker": worker.name},
        )
        self.last_decisions.append(decision)
        self._sent[job.id] = worker
        jobs = [job, *await self._beside(job, worker)]
        if not worker.takes_jobs:  # it died meanwhile
            for each in jobs:
                self._sent.pop(each.id, None)
                self.router.ended(each.id)
                await self._put_back(each)
            return None
        await worker.want_previews(self._bus.listeners > 0)
        await worker.run([(each.id, each.request.to_json()) for each in jobs], is_alone=False)
        self.router.report(worker.stats())
        for each in jobs:
            current = await self._ledger.store.get(each.id)
            if current is not None and current.status is JobStatus.CANCELLED:
                await worker.cancel(each.id)

    async def _beside(self, first: Job, worker: FleetWorker) -> list[Job]:
        """Jobs that are drawn together with one that begins, claimed: those that follow it and agree with it."""
        limit = self._batch_limit(worker)
        if limit < 2 or first.attempts > 1:
            return []
        limit = min(limit, self.router.share(first.id))
        if limit < 2 or not worker.pace.batch_pays(Kind.of(first.request.to_json())):
            return []
        chosen: list[Job] = []
        pictures = first.request.num_images
        while worker.takes_jobs and (wanted := self.router.next_beside(first.id)) is not None:
            job = await self._ledger.store.get(wanted.job)
            pictures += 0 if job is None else job.request.num_images
            if job is None or job.attempts > 0 or pictures > limit:
                break
            if job.request.batch_key != first.request.batch_key or not worker.takes_jobs:
                break
            self.router.begin_beside(wanted, first.id)
            try:
                claimed = await self._ledger.claim_at(self._line.seqs.get(job.id, -1), worker.name)
            except StorageUnavailable:
                self._undo_job(job.id)
                break  # what is claimed goes
            if claimed is None:
                self._not_claimed(job.id)
                continue
            self._sent[job.id] = worker
            chosen.append(claimed)
        if chosen:
            log.info(
                "%d jobs are drawn together with %s",
                len(chosen),
                first.id,
                extra={"action": "jobs_together", "job_id": [job.id for job in chosen]},
            )
        return chosen

    def _batch_limit(self, worker: Worker) -> int:
        if not isinstance(worker, FleetWorker):
            return super()._batch_limit(worker)
        return worker.max_batch_size or (EXACT_BATCH_SIZE if worker.batches_exactly else 1)

    def _undo(self, decision: Decision) -> None:
        self._undo_job(decision.job)

    def _not_claimed(self, job_id: str) -> None:
        """It was cancelled meanwhile, or may not begin now: then it is looked at again."""
        self.router.ended(job_id)
        if job_id in self._line.seqs:
            self._line.came[job_id] = None

    def _undo_job(self, job_id: str) -> None:
        """The job waits on; the line has it still."""
        self._not_claimed(job_id)
        self.wake()
