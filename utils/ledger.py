"""The jobs' states: every change is committed first, then told to the line, to those who wait and to those who listen.

A job's row is the truth. Every change is one guarded UPDATE, and only the one that found the row
in the expected state wins: a cancel and a finish that meet have one winner, and the loser's
pictures are thrown away. A database or a folder that refuses for a while (a full disk, a lock)
costs no result: an end that cannot be committed is tried again until it can.
"""

from __future__ import annotations

import asyncio
import collections
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from config.errors import FluxError, StorageUnavailable, Unavailable
from models.types import GenerationRequest, GenerationResult, ImageFile
from utils import images
from utils.clock import Chance, rfc3339
from utils.database import Refuse, nothing_refused
from utils.event_bus import EventBus
from utils.job import Job, JobError, JobStatus
from utils.job_store import JobStore
from utils.line import Lane, Line
from utils.pace import Pace

log = logging.getLogger(__name__)

T = TypeVar("T")

# How long an idempotency key is remembered.
KEY_LIFETIME = timedelta(hours=24)
# A picture that is drawn waits so long for its folder before its job fails as `storage`.
PUBLISH_PATIENCE_SECONDS = 60.0
STORE_PAUSE_SECONDS = 1.0
HEARD_KEPT = 4096  # ends that are remembered, because what others tell may come late


@dataclass(slots=True)
class _Times:
    """A job on its way, in monotonic seconds: a wall clock that is moved makes nobody wait an hour."""

    submitted: float
    owner: str
    begun: float | None = None  # None while it waits
    is_fresh: bool = True  # no attempt was made


class Others:
    """Who else has the same line: told of every change that is committed here. By itself there is nobody."""

    def queued(self, job: Job) -> None: ...

    def begun(self, job: Job) -> None: ...

    def back(self, job: Job, why: str) -> None: ...

    def ended(self, job: Job) -> None: ...


class Ledger:
    """Jobs by their changes of state. `open` before use."""

    def __init__(
        self,
        store: JobStore,
        bus: EventBus,
        pace: Pace,
        output_dir: Path,
        chance: Chance,
        on_end: Callable[[Job], None] = lambda job: None,
        log_prompts: bool = False,
    ) -> None:
        self.store = store
        self.line = Line()
        self.arriving: Counter[str] = Counter()  # by owner: jobs on their way to the disk
        self.arriving_in: Counter[Lane] = Counter()  # the same by lane
        self._bus = bus
        self._pace = pace
        self._output_dir = output_dir
        self._chance = chance
        self._monotonic = chance.monotonic
        self._on_end = on_end
        self._log_prompts = log_prompts
        self._times: dict[str, _Times] = {}  # by job, until its end
        self._waiters: dict[str, set[asyncio.Future[Job]]] = {}
        self._endings: dict[asyncio.Task[None], str] = {}  # the jobs whose ends are being committed
        self._heard_of: collections.deque[str] = collections.deque(maxlen=HEARD_KEPT)
        self.others = Others()
        self.on_heard_end: Callable[[Job], None] = lambda job: None
        # Before a job succeeds, where its pictures are to be had elsewhere too.
        self.keep_pictures: Callable[[str, tuple[ImageFile, ...]], Awaitable[None]] | None = None

    async def open(self, *, is_alone: bool = True) -> list[Job]:
        """Read the line; returns the jobs that an earlier process left running. With others they are somebody's."""
        if is_alone:
            await self._clear_staging()
        for seq, job_id, owner, created_at, attempts, backend in await self.store.line():
            self.line.add(seq, job_id, owner, Lane.of(backend))
            self._times_of(job_id, owner, created_at, attempts)
        if not is_alone:
            return []
        running = await self.store.running()
        for job in running:  # the process may have ended between a job's files and its row
            images.discard_published(self._output_dir, job.id)
        return running

    def owner_of(self, job_id: str) -> str | None:
        """Who submitted a job that has not ended; None for any other."""
        times = self._times.get(job_id)
        return None if times is None else times.owner

    def _times_of(self, job_id: str, owner: str, created_at: str, attempts: int) -> _Times:
        times = self._times.get(job_id)
        if times is None:
            # From before the start: only the wall clock knows how long it has waited.
            waited = datetime.fromisoformat(self.now()) - datetime.fromisoformat(created_at)
            submitted = self._monotonic() - max(0.0, waited.total_seconds())
            times = self._times[job_id] = _Times(submitted, owner, is_fresh=attempts == 0)
        return times

    def now(self) -> str:
        return rfc3339(self._chance.now())

    def waiting_longer_than(self, seconds: float) -> list[str]:
        """Jobs that have waited so long. One that was tried and came back has not waited all that time."""
        before = self._monotonic() - seconds
        return [
            job_id
            for job_id, times in self._times.items()
            if times.is_fresh and times.begun is None and times.submitted < before
        ]

    # Changes

    async def append(
        self,
        request: GenerationRequest,
        owner: str,
        idempotency_key: str | None,
        body_sha256: str | None,
        estimate_usd: float = 0.0,
        refuse: Refuse = nothing_refused,
    ) -> Job:
        """A new job at the end of the line; it stands there also when the caller goes away meanwhile.

        Where others append too, `refuse` has the last word, by what all of them left.
        """

        def then(job: Job | None) -> None:
            # In one go, so that nobody is counted twice or not at all.
            self.arriving_in[lane] -= 1
            self.arriving[owner] -= 1
            if not self.arriving[owner]:
                del self.arriving[owner]
            if job is not None:
                self._appended(job)

        lane = Lane.of(request.backend)
        self.arriving_in[lane] += 1
        self.arriving[owner] += 1
        return await self.store.insert(
            self._chance.job_id(),
            request,
            self.now(),
            owner=owner,
            idempotency_key=idempotency_key,
            body_sha256=body_sha256,
            estimate_usd=estimate_usd,
            refuse=refuse,
            then=then,
        )

    def _appended(self, job: Job) -> None:
        self.line.add(job.seq, job.id, job.owner, Lane.of(job.request.backend))
        self._times[job.id] = _Times(self._monotonic(), job.owner)
        self._bus.publish("queued", job.id, data={"position": self.line.position(job.seq)})
        request = job.request
        fields = {"action": "job_queued", "job_id": job.id, "model": request.model}
        if self._log_prompts:
            fields["prompt"] = request.prompt
            if request.negative_prompt is not None:
                fields["negative_prompt"] = request.negative_prompt
        log.info("job queued", extra=fields)
        self.others.queued(job)

    async def by_key(self, owner: str, key: str) -> tuple[Job, str] | None:
        """The job of an idempotency key that is still remembered, and its body's digest."""
        not_before = rfc3339(self._chance.now() - KEY_LIFETIME)
        return await self.store.by_idempotency_key(owner, key, not_before=not_before)

    async def claim(
        self,
        worker: str,
        *,
        models: Sequence[str],
        limit: int,
        choose: Callable[[list[Job]], list[Job]],
    ) -> list[Job]:
        """Take jobs from the head of the line for a worker; see `JobStore.claim`."""
        jobs = await self.store.claim(worker, self.now(), models=models, limit=limit, choose=choose)
        self._note_begun(jobs, worker)
        return jobs

    async def claim_at(self, seq: int, worker: str) -> Job | None:
        """Take the job at a place in line for a worker; None when it waits no more."""
        job = await self.store.claim_at(seq, worker, self.now())
        if job is not None:
            self._note_begun([job], worker)
        return job

    def _note_begun(self, jobs: Sequence[Job], worker: str) -> None:
        for job in jobs:
            self.line.remove(job.seq)
            times = self._times_of(job.id, job.owner, job.created_at, job.attempts)
            times.begun = self._monotonic()
            log.info(
                "job started",
                extra={"action": "job_started", "job_id": job.id, "worker": worker},
            )
            self.others.begun(job)
        if jobs:
            self._bus.nudge()

    async def put_back(self, job: Job, *, take_attempt_back: bool, why: str) -> None:
        """A running job goes back to its old place."""
        back = await self.store.requeue(job.id, take_attempt_back=take_attempt_back)
        if back is not None:
            lane = Lane.of(back.request.backend)
            self._note_back(back.seq, back.id, back.owner, lane, back.created_at, back.attempts)
            log.warning(
                "job goes back: %s", why, extra={"action": "job_requeued", "job_id": job.id}
            )
            self._tell_back(back.seq, back.id, back.attempts, why)
            self.others.back(back, why)

    def _note_back(
        self, seq: int, job_id: str, owner: str, lane: Lane, created_at: str, attempts: int
    ) -> None:
        self.line.add(seq, job_id, owner, lane)
        times = self._times_of(job_id, owner, created_at, attempts)
        times.begun, times.is_fresh = None, attempts == 0

    def _tell_back(self, seq: int, job_id: str, attempts: int, why: str) -> None:
        data = {"attempts": attempts, "reason": why, "position": self.line.position(seq)}
        self._bus.publish("retrying", job_id, data=data)

    async def cancel(self, job: Job) -> Job | None:
        """Cancel a job that waits or runs; None when it has ended otherwise."""
        ended = await self.store.cancel(job.id, self.now())
        if ended is not None:
            self._announce(ended)
        return ended

    async def clear(self) -> int:
        """Cancel every waiting job; returns how many."""
        ended = await self.store.clear_queued(self.now())
        for job in ended:
            self._announce(job)
        return len(ended)

    async def expire(self, job_id: str, message: str) -> None:
        """A job that waited too long."""
        ended = await self.store.expire_queued(job_id, message, self.now())
        if ended is not None:
            self._announce(ended)

    async def fail(self, job_id: str, error: JobError) -> Job | None:
        """A running job that ends without a picture."""
        ended = await self.store.fail(job_id, error, self.now())
        if ended is not None:
            self._announce(ended)
        return ended

    # Ends that a worker reports: they are not lost when the disk refuses for a while

    def end_well(self, job_id: str, result: GenerationResult) -> None:
        """Publish and commit a finished job, now or as soon as the disk allows."""
        now, times = self.now(), self._times.get(job_id)
        if times is None or times.begun is None:
            return images.discard_staged(self._output_dir, job_id)  # it has ended otherwise
        # Of the worker's word, not of a disk that has room again.
        queued, total = times.begun - times.submitted, self._monotonic() - times.submitted
        timings = {"queued": _ms(queued), **result.timings_ms, "total": _ms(total)}
        whole = replace(result, timings_ms=timings)
        self._end(job_id, lambda: self._succeed(job_id, whole, now))

    def end_badly(self, job_id: str, error: JobError) -> None:
        self._end(job_id, lambda: self.store.fail(job_id, error, self.now()))

    def end_cancelled(self, job_id: str) -> None:
        self._end(job_id, lambda: self.store.cancel_running(job_id, self.now()))

    async def settle(self, until: float) -> None:
        """Wait for ends that are being committed, until a moment of the loop's clock."""
        try:
            async with asyncio.timeout_at(until):
                await asyncio.gather(*self._endings, return_exceptions=True)
        except TimeoutError:
            log.error(
                "ends that could not be committed: their jobs run again after the next start",
                extra={"action": "ends_not_stored"},
            )

    def _end(self, job_id: str, change: Callable[[], Awaitable[Job | None]]) -> None:
        task = asyncio.create_task(self._commit_end(job_id, change), name=f"end {job_id}")
        self._endings[task] = job_id
        task.add_done_callback(lambda done: self._endings.pop(done, None))

    async def _commit_end(self, job_id: str, change: Callable[[], Awaitable[Job | None]]) -> None:
        """Commit an end; whoever lost the race to another end leaves nothing behind."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + PUBLISH_PATIENCE_SECONDS
        while True:
            try:
                job = await change()
                break
            except StorageUnavailable as error:
                log.error("%s", error.message, extra={"action": "end_not_stored", "job_id": job_id})
                # What cannot be asked cannot be told of a failure either: the result waits for it.
                if loop.time() > give_up_at and await self._answers():
                    images.discard_published(self._output_dir, job_id)
                    failure = JobError(code=error.code, message=error.message)
                    change = self._failing(job_id, failure)
                await asyncio.sleep(STORE_PAUSE_SECONDS)
            except Exception as error:
                log.exception("an end failed", extra={"action": "end_failed", "job_id": job_id})
                message = f"the result could not be kept ({type(error).__name__}); the log has the details"
                change = self._failing(job_id, JobError(code="internal", message=message))
                await asyncio.sleep(STORE_PAUSE_SECONDS)
        images.discard_staged(self._output_dir, job_id)
        if job is not None:
            return self._announce(job)
        winner = await self.store.get(job_id)
        if winner is None or winner.status is not JobStatus.SUCCEEDED:
            images.discard_published(self._output_dir, job_id)

    async def _answers(self) -> bool:
        """Whether the store can be written while a result cannot be kept."""
        try:
            await self.store.probe()
        except StorageUnavailable:
            return False
        return True

    def _failing(self, job_id: str, failure: JobError) -> Callable[[], Awaitable[Job | None]]:
        return lambda: self.store.fail(job_id, failure, self.now())

    async def _succeed(self, job_id: str, result: GenerationResult, now: str) -> Job | None:
        job = await self.store.get(job_id)
        if job is None or job.status is not JobStatus.RUNNING:
            return None
        if self.keep_pictures is not None:
            await self.keep_pictures(job_id, result.images)
        return await self.store.succeed(
            job, result, now, publish=lambda: images.publish(self._output_dir, result.images)
        )

    # Those who wait

    async def wait(self, job: Job, *, may_begin: Callable[[], bool]) -> Job:
        """The job when it has ended. Raises Unavailable when the service stops before.

        `may_begin` says whether a job that waits will still be begun.
        """
        future: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(job.id, set())
        waiters.add(future)
        try:
            # It may have ended before anybody waited.
            current = await self.store.get(job.id)
            if current is not None and current.status.is_final:
                return current
            if not may_begin():
                raise _stopping(job.id)
            return await future
        finally:
            waiters.discard(future)
            if not waiters:
                self._waiters.pop(job.id, None)

    @property
    def awaited(self) -> list[str]:
        """The jobs that somebody waits for."""
        return list(self._waiters)

    def release_waiters(self, job_ids: Iterable[str]) -> None:
        """Tell those who wait that the service stops before their job has ended."""
        for job_id in job_ids:
            for future in self._waiters.get(job_id, ()):
                if not future.done():
                    future.set_exception(_stopping(job_id))

    # What others did

    def heard_queued(
        self, seq: int, job_id: str, owner: str, backend: str, created_at: str, attempts: int
    ) -> None:
        """A job stands in line."""
        if job_id in self._heard_of:
            return  # what is told late is over
        self._note_back(seq, job_id, owner, Lane.of(backend), created_at, attempts)
        self._bus.publish("queued", job_id, data={"position": self.line.position(seq)})

    def heard_back(
        self,
        seq: int,
        job_id: str,
        owner: str,
        backend: str,
        created_at: str,
        attempts: int,
        why: str,
    ) -> None:
        """A job that ran is back at its old place."""
        if job_id not in self._heard_of:
            self._note_back(seq, job_id, owner, Lane.of(backend), created_at, attempts)
            self._tell_back(seq, job_id, attempts, why)

    def heard_begun(self, seq: int, job_id: str) -> None:
        """A job of the line runs."""
        self.line.remove(seq)
        if job_id in self._times:
            self._times[job_id].begun = self._monotonic()
        self._bus.nudge()

    def heard_end(self, job: Job) -> None:
        if job.id not in self._heard_of:
            self._announce(job, is_ours=False)

    @property
    def open_jobs(self) -> dict[str, bool]:
        """Every job that has not ended, as far as is known here: whether it waits."""
        return {job_id: times.begun is None for job_id, times in self._times.items()}

    @property
    def ending(self) -> set[str]:
        """Jobs whose ends are on their way into the store."""
        return set(self._endings.values())

    def _announce(self, job: Job, *, is_ours: bool = True) -> None:
        """A job has ended: out of the line, and everybody is told."""
        was_waiting = job.started_at is None
        self.line.remove(job.seq)
        self._times.pop(job.id, None)
        self._heard_of.append(job.id)
        log.info(
            "job %s" if is_ours else "job %s, as another front door tells",
            job.status.value,
            extra={"action": f"job_{job.status.value}", "job_id": job.id},
        )
        if job.result is not None and Lane.of(job.request.backend) is Lane.LOCAL:
            timings = job.result.timings_ms
            self._pace.job_took((timings["total"] - timings["queued"]) / 1000)
        self._bus.publish(job.status.value, job.id, job=job)
        if is_ours:
            self._on_end(job)
            self.others.ended(job)
        else:
            self.on_heard_end(job)
        if was_waiting:
            self._bus.nudge()
        for future in self._waiters.get(job.id, ()):
            if not future.done():
                future.set_result(job)

    async def _clear_staging(self) -> None:
        """Remove what jobs of ours left in staging. Another service may share the folder: its files stay."""
        for job_id in images.staged_jobs(self._output_dir):
            if await self.store.get(job_id) is not None:
                images.discard_staged(self._output_dir, job_id)


async def to_the_end(change: Coroutine[Any, Any, T]) -> T:
    """What was begun is committed and told, also when its caller goes away meanwhile."""
    return await asyncio.shield(asyncio.create_task(change))


def _stopping(job_id: str) -> FluxError:
    return Unavailable(
        f"the service is stopping; job {job_id} is kept and runs after the next start, GET /jobs/{job_id}",
        retry_after_seconds=10,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
