"""Changes of state: committed, then told, once, whoever goes away and whatever the disk does meanwhile."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from config.errors import FluxError, StorageUnavailable, Unavailable
from models.types import GenerationResult, ImageFile, LoraApplied
from tests.utils.soak.bench import MODEL, PAUSE_SECONDS, REQUEST, in_loop
from utils import images, ledger
from utils.clock import Chance
from utils.event_bus import ENDS, EventBus, Subscription
from utils.job import Job, JobError, JobStatus
from utils.job_store import JobStore
from utils.ledger import Ledger
from utils.pace import Pace

HANG_SECONDS = 30.0
ERROR = JobError(code="internal", message="it failed")


@dataclass
class Desk:
    """A ledger with everything around it, and an ear for what it tells."""

    ledger: Ledger
    store: JobStore
    ear: Subscription
    folder: Path
    now: datetime = datetime(2026, 1, 31, tzinfo=UTC)
    moved: timedelta = timedelta()  # by what somebody set the wall clock

    async def append(self, **options: str) -> Job:
        return await self.ledger.append(
            REQUEST, options.get("owner", ""), options.get("key"), options.get("digest")
        )

    async def start(self) -> Job:
        """A job that runs."""
        await self.append()
        (job,) = await self.ledger.claim(
            "cpu", models=[MODEL], limit=1, choose=lambda head: head[:1]
        )
        return job

    def draw(self, job: Job) -> GenerationResult:
        """Stage its picture, as a worker does."""
        name = f"{job.id}-0.png"
        images.stage(b"picture", self.folder, name)
        timings = dict.fromkeys(("load", "encode", "denoise", "decode", "save"), 1.0)
        file = ImageFile(filename=name, seed=1, width=128, height=128, size_bytes=7)
        return GenerationResult(
            images=(file,), engine="e", precision="bf16", device="cpu", timings_ms=timings
        )

    async def ended(self) -> None:
        """Until every end that was reported is committed."""
        await asyncio.gather(*self.ledger._endings)

    def told(self, *names: str) -> list[str]:
        """The names of the events that were published since the last call."""
        heard = [event.name for event in self.ear.take()]
        return [name for name in heard if name in names] if names else heard

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.rglob("*") if path.is_file())

    def refuse(self) -> None:
        self.store._begin = lambda: OSError("no room")  # type: ignore[method-assign]

    def allow(self) -> None:
        self.store.__dict__.pop("_begin", None)

    @asynccontextmanager
    async def held_up(self) -> AsyncIterator[None]:
        """While this is open, no change comes through."""
        gate, is_held = threading.Event(), threading.Event()

        def hold(db: object) -> None:
            is_held.set()
            gate.wait(HANG_SECONDS)

        blocking = asyncio.create_task(self.store._write(hold))
        while not is_held.is_set():
            await asyncio.sleep(0.001)
        try:
            yield
        finally:
            gate.set()
            await blocking

    async def flush(self) -> None:
        """Until the writer has done what was asked for, and its callers know."""
        for _ in range(3):
            await self.store._write(lambda db: None)
            await asyncio.sleep(0)


@asynccontextmanager
async def desk(folder: Path) -> AsyncIterator[Desk]:
    numbers = iter(range(1, 10_000))
    output_dir = folder / "pictures"
    output_dir.mkdir(exist_ok=True)
    store = await JobStore.open(folder / "jobs.sqlite3")
    bus = EventBus(1)
    chance = Chance(
        now=lambda: found.now + found.moved,
        monotonic=lambda: found.now.timestamp(),
        job_id=lambda: f"job{next(numbers)}",
    )
    found = Desk(
        Ledger(store, bus, Pace(), output_dir, chance), store, bus.subscribe(None), output_dir
    )
    try:
        yield found
    finally:
        found.allow()
        await store.close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "STORE_PAUSE_SECONDS", PAUSE_SECONDS)


# What is told


@in_loop
async def test_ledger_new_job_is_in_line_and_told_with_its_position(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        await at.append()
        await at.append()
        assert [(e.name, e.data) for e in at.ear.take()] == [
            ("queued", {"position": 1}),
            ("queued", {"position": 2}),
        ]
        assert len(at.ledger.line) == 2


@pytest.mark.parametrize("log_prompts", [False, True])
@in_loop
async def test_ledger_prompt_is_logged_only_where_it_may_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, log_prompts: bool
) -> None:
    caplog.set_level(logging.INFO, logger="utils.ledger")
    async with desk(tmp_path) as at:
        at.ledger._log_prompts = log_prompts
        await at.append()
    [line] = [line for line in caplog.records if line.action == "job_queued"]
    assert getattr(line, "prompt", None) == (REQUEST.prompt if log_prompts else None)


@in_loop
async def test_ledger_claimed_job_is_out_of_line(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        job = await at.start()
        assert (job.status, len(at.ledger.line)) == (JobStatus.RUNNING, 0)


@in_loop
async def test_ledger_job_put_back_is_first_in_line_and_told(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        job = await at.start()
        await at.append()
        at.told()
        await at.ledger.put_back(job, take_attempt_back=False, why="died")
        assert [(e.name, e.data) for e in at.ear.take()] == [
            ("retrying", {"attempts": 1, "reason": "died", "position": 1})
        ]


@in_loop
async def test_ledger_job_that_has_ended_is_not_put_back(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        job = await at.start()
        await at.ledger.cancel(job)
        await at.ledger.put_back(job, take_attempt_back=False, why="died")
        assert len(at.ledger.line) == 0 and at.told("retrying") == []


@in_loop
async def test_ledger_clear_ends_and_tells_each_that_waits(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        running = await at.start()
        for _ in range(3):
            await at.append()
        assert await at.ledger.clear() == 3
        assert at.told(*ENDS) == ["cancelled"] * 3 and len(at.ledger.line) == 0
        found = await at.store.get(running.id)
        assert found is not None and found.status is JobStatus.RUNNING


@in_loop
async def test_ledger_second_end_of_a_job_is_not_told(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        job = await at.start()
        assert await at.ledger.fail(job.id, ERROR) is not None
        assert await at.ledger.fail(job.id, ERROR) is None
        assert await at.ledger.cancel(job) is None
        await at.ledger.expire(job.id, "late")
        assert at.told(*ENDS) == ["failed"]


@in_loop
async def test_ledger_key_is_remembered_for_a_day(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        job = await at.append(key="k", digest="d")
        at.now += timedelta(hours=23, minutes=59)
        assert await at.ledger.by_key("", "k") == (job, "d")
        assert await at.ledger.by_key("somebody else", "k") is None
        at.now += timedelta(minutes=2)
        assert await at.ledger.by_key("", "k") is None
        again = await at.append(key="k", digest="d")
        assert again.id != job.id and await at.store.get(job.id) == job


@in_loop
async def test_ledger_key_belongs_to_its_owner(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        mine = await at.append(owner="me", key="k", digest="d")
        theirs = await at.append(owner="they", key="k", digest="e")
        assert await at.ledger.by_key("me", "k") == (mine, "d")
        assert await at.ledger.by_key("they", "k") == (theirs, "e")


# Ends that a worker reports


@in_loop
async def test_ledger_good_end_publishes_the_picture(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        job = await at.start()
        at.ledger.end_well(job.id, at.draw(job))
        await at.ended()
        found = await at.store.get(job.id)
        assert found is not None and found.status is JobStatus.SUCCEEDED
        assert at.files() == [f"{job.id}-0.png"] and at.told(*ENDS) == ["succeeded"]
        assert not list((at.folder / images.STAGING).iterdir())


@in_loop
async def test_ledger_good_end_keeps_what_the_worker_said_of_the_loras(tmp_path: Path) -> None:
    applied = LoraApplied(name="a", sha256="b", weight=1.0, matched_keys=2, unmatched_keys=1)
    async with desk(tmp_path) as at:
        job = await at.start()
        at.ledger.end_well(job.id, replace(at.draw(job), loras=(applied,)))
        await at.ended()
        found = await at.store.get(job.id)
        assert found is not None and found.result is not None and found.result.loras == (applied,)


@in_loop
async def test_ledger_end_that_lost_to_a_cancel_leaves_no_picture(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        job = await at.start()
        result = at.draw(job)
        await at.ledger.cancel(job)
        at.ledger.end_well(job.id, result)
        await at.ended()
        assert at.files() == [] and at.told(*ENDS) == ["cancelled"]


@in_loop
async def test_ledger_cancel_and_finish_at_once_have_one_winner(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        for is_first in (True, False) * 5:
            job = await at.start()
            result = at.draw(job)
            if is_first:
                at.ledger.end_well(job.id, result)
                cancelled = await at.ledger.cancel(job)
            else:
                cancelling = asyncio.create_task(at.ledger.cancel(job))
                await asyncio.sleep(0)
                at.ledger.end_well(job.id, result)
                cancelled = await cancelling
            await at.ended()
            found = await at.store.get(job.id)
            assert found is not None and found.status.is_final
            assert at.told(*ENDS) == [found.status.value]
            assert (cancelled is not None) == (found.status is JobStatus.CANCELLED)
            assert (f"{job.id}-0.png" in at.files()) == (found.status is JobStatus.SUCCEEDED)


@in_loop
async def test_ledger_end_while_the_store_refuses_is_committed_when_it_does_not(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as at:
        job = await at.start()
        at.refuse()
        at.ledger.end_well(job.id, at.draw(job))
        await asyncio.sleep(4 * PAUSE_SECONDS)
        assert at.told(*ENDS) == []
        at.allow()
        await at.ended()
        assert at.told(*ENDS) == ["succeeded"] and at.files() == [f"{job.id}-0.png"]


@in_loop
async def test_ledger_end_committed_late_has_the_time_of_the_workers_word(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        job = await at.start()
        at.refuse()
        at.now += timedelta(seconds=1)
        at.ledger.end_well(job.id, at.draw(job))
        await asyncio.sleep(PAUSE_SECONDS)
        at.now += timedelta(hours=1)
        at.allow()
        await at.ended()
        found = await at.store.get(job.id)
        assert found is not None and found.result is not None
        assert found.result.timings_ms["total"] == 1000.0


@pytest.mark.parametrize("moved", [timedelta(hours=1), timedelta(hours=-1)], ids=str)
@in_loop
async def test_ledger_wall_clock_that_is_moved_changes_no_duration(
    tmp_path: Path, moved: timedelta
) -> None:
    async with desk(tmp_path) as at:
        await at.append()
        at.now += timedelta(seconds=2)
        (job,) = await at.ledger.claim("cpu", models=[MODEL], limit=1, choose=lambda head: head)
        at.moved = moved
        at.now += timedelta(seconds=1)
        at.ledger.end_well(job.id, at.draw(job))
        await at.ended()
        found = await at.store.get(job.id)
        assert found is not None and found.result is not None
        timings = found.result.timings_ms
        assert (timings["queued"], timings["total"]) == (2000.0, 3000.0)
        assert at.ledger._pace.job_seconds == 1.0


@in_loop
async def test_ledger_picture_whose_folder_refuses_too_long_fails_as_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "PUBLISH_PATIENCE_SECONDS", 0.0)
    async with desk(tmp_path) as at:
        job = await at.start()
        result = at.draw(job)
        (at.folder / images.STAGING / f"{job.id}-0.png").unlink()
        at.ledger.end_well(job.id, result)
        await at.ended()
        found = await at.store.get(job.id)
        assert found is not None and found.error is not None and found.error.code == "storage"
        assert at.files() == [] and at.told(*ENDS) == ["failed"]


@in_loop
async def test_ledger_end_whose_files_cannot_be_removed_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that became read-only must not leave those who wait without an answer."""

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system")

    async with desk(tmp_path) as at:
        job = await at.start()
        at.draw(job)
        monkeypatch.setattr(Path, "unlink", refuse)
        at.ledger.end_badly(job.id, ERROR)
        await asyncio.gather(*at.ledger._endings, return_exceptions=True)
        assert at.told(*ENDS) == ["failed"]


@in_loop
async def test_ledger_settle_waits_for_ends_until_its_time_is_over(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        job = await at.start()
        at.refuse()
        at.ledger.end_well(job.id, at.draw(job))
        await at.ledger.settle(asyncio.get_running_loop().time() + 5 * PAUSE_SECONDS)
        with pytest.raises(StorageUnavailable):
            await at.flush()  # also what was asked for last
        at.allow()
        await at.flush()
        found = await at.store.get(job.id)
        assert found is not None and found.status is JobStatus.RUNNING  # the next start's
        assert not at.ledger._endings


@in_loop
async def test_ledger_end_that_breaks_fails_its_job_and_no_other(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        first, second = await at.start(), await at.start()

        async def breaks() -> None:
            raise RuntimeError("nobody expected this")

        at.ledger._end(first.id, breaks)  # type: ignore[arg-type]
        at.ledger.end_well(second.id, at.draw(second))
        await at.ledger.settle(asyncio.get_running_loop().time() + HANG_SECONDS)
        assert sorted(at.told(*ENDS)) == ["failed", "succeeded"]
        failed = await at.store.get(first.id)
        assert failed is not None and failed.error is not None
        assert failed.error.code == "internal" and "nobody expected" not in failed.error.message


# Callers that go away


@in_loop
async def test_ledger_new_job_whose_caller_leaves_is_in_line(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        async with at.held_up():
            appending = asyncio.create_task(at.append())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            appending.cancel()
            await asyncio.gather(appending, return_exceptions=True)
        await at.flush()
        assert [row[0] for row in await at.store.line()] == [1]
        assert (len(at.ledger.line), at.ledger.line.count_of("")) == (1, 1)


@in_loop
async def test_ledger_cancel_of_a_job_that_goes_back_is_not_lost(tmp_path: Path) -> None:
    """Its worker dies in the moment of the cancel."""
    async with desk(tmp_path) as at:
        job = await at.start()
        async with at.held_up():
            cancelling = asyncio.create_task(at.ledger.cancel(job))
            await asyncio.sleep(0)
            going_back = asyncio.create_task(
                at.ledger.put_back(job, take_attempt_back=False, why="died")
            )
            await asyncio.sleep(0)
        await asyncio.gather(cancelling, going_back)
        found = await at.store.get(job.id)
        assert found is not None and found.status is JobStatus.CANCELLED
        assert cancelling.result() == found and len(at.ledger.line) == 0


# Those who wait


def waiting_for(at: Desk, job: Job, *, may_begin: bool = True) -> asyncio.Task[Job]:
    return asyncio.create_task(at.ledger.wait(job, may_begin=lambda: may_begin))


async def until_awaited(at: Desk, waiting: asyncio.Task[Job]) -> None:
    """Until the waiter has looked whether the job has ended already."""
    for _ in range(3):
        await at.store.counts()
        await asyncio.sleep(0)
    assert not waiting.done()


@in_loop
async def test_ledger_waiter_has_the_job_when_it_ends(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        job = await at.start()
        waiting = waiting_for(at, job)
        await until_awaited(at, waiting)
        ended = await at.ledger.fail(job.id, ERROR)
        assert await waiting == ended
        assert at.ledger.awaited == []


@in_loop
async def test_ledger_waiter_of_a_job_that_has_ended_has_it_at_once(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        job = await at.start()
        ended = await at.ledger.fail(job.id, ERROR)
        assert await at.ledger.wait(job, may_begin=lambda: True) == ended
        assert at.ledger.awaited == []


@in_loop
async def test_ledger_waiter_that_leaves_takes_no_other_with_it(tmp_path: Path) -> None:
    """Two clients wait for one job, as with one idempotency key; one hangs up."""
    async with desk(tmp_path) as at:
        job = await at.start()
        leaves, stays = waiting_for(at, job), waiting_for(at, job)
        await until_awaited(at, stays)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        ended = await at.ledger.fail(job.id, ERROR)
        assert await asyncio.wait_for(stays, HANG_SECONDS) == ended


@in_loop
async def test_ledger_waiters_are_released_when_the_service_stops(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        job = await at.append()
        waiting = [waiting_for(at, job), waiting_for(at, job)]
        await until_awaited(at, waiting[0])
        at.ledger.release_waiters(at.ledger.awaited)
        for one in waiting:
            with pytest.raises(Unavailable, match=job.id):
                await one
        assert at.ledger.awaited == []


@in_loop
async def test_ledger_waiter_of_a_job_that_will_not_begin_is_told_at_once(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        job = await at.append()
        with pytest.raises(Unavailable):
            await at.ledger.wait(job, may_begin=lambda: False)
        assert at.ledger.awaited == []


@in_loop
async def test_ledger_waiter_while_the_store_cannot_be_read_is_told(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        job = await at.append()

        async def refuse(job_id: str) -> Job | None:
            raise StorageUnavailable("broken")

        at.store.get = refuse  # type: ignore[method-assign]
        with pytest.raises(FluxError, match="broken"):
            await at.ledger.wait(job, may_begin=lambda: True)
        assert at.ledger.awaited == []


# A start


@in_loop
async def test_ledger_opened_has_the_line_and_those_left_running(tmp_path: Path) -> None:
    async with desk(tmp_path) as at:
        running, waiting = await at.start(), await at.append()
    async with desk(tmp_path) as at:
        assert [job.id for job in await at.ledger.open()] == [running.id]
        assert len(at.ledger.line) == 1 and at.ledger.line.position(waiting.seq) == 1


@in_loop
async def test_ledger_opened_removes_what_its_jobs_left_in_staging(tmp_path: Path) -> None:
    """Another service may share the folder: its files stay."""
    async with desk(tmp_path) as at:
        at.draw(await at.start())
        images.stage(b"picture", at.folder, "foreign-0.png")
    async with desk(tmp_path) as at:
        await at.ledger.open()
        assert at.files() == ["foreign-0.png"]


@in_loop
async def test_ledger_opened_removes_files_whose_row_was_not_committed(tmp_path: Path) -> None:
    """The process ended between the rename and the commit."""
    async with desk(tmp_path) as at:
        job = await at.start()
        images.publish(at.folder, at.draw(job).images)
    async with desk(tmp_path) as at:
        await at.ledger.open()
        assert at.files() == []
