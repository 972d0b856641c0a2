"""Which job goes to which worker and when, and what becomes of jobs and workers that go wrong."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from config.errors import InvalidRequest, StorageUnavailable, Unavailable
from tests.utils.soak.bench import MODEL, PAUSE_SECONDS, Bench, in_loop, request
from tests.utils.soak.fake_worker import FakeWorker
from utils import disk, ledger
from utils.event_bus import ENDS
from utils.job import Job, JobStatus
from utils.worker import events
from utils.worker.parent import WorkerState


def given(bench: Bench) -> list[list[str]]:
    """Every Run of every worker, worker by worker."""
    return [run for worker in bench.workers for run in worker.runs]


def ids(jobs: list[Job]) -> list[str]:
    return [job.id for job in jobs]


def ends(bench: Bench) -> list[tuple[str, str | None]]:
    """Ends that were told since the last call."""
    return [(event.name, event.job_id) for event in bench.ear.take() if event.name in ENDS]


async def draw_all(bench: Bench) -> None:
    """Let the workers draw until nobody has anything to do."""
    await bench.settle()
    while busy := [worker for worker in bench.workers if worker.given]:
        for worker in busy:
            worker.draw()
        await bench.settle()


async def measure(bench: Bench) -> None:
    """One picture alone, so that a batch has something to be compared with."""
    bench.manager.pace.batch_took(_kind(), 1, 10.0)


def _kind(**fields: Any) -> Any:
    from utils.dispatcher import Kind

    return Kind.of(request(**fields).to_json())


def make_late(worker: FakeWorker, seconds: float) -> None:
    """As if the worker's last sign lay so far back."""
    worker.last_sign -= seconds


# Order


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@in_loop
async def test_jobs_start_in_the_order_they_came(tmp_path: Path, workers: int) -> None:
    async with Bench(tmp_path, workers=workers) as bench:
        jobs = [await bench.submit() for _ in range(12)]
        started: list[str] = []
        await bench.settle()
        turn = 0
        while len(started) < 12:
            fresh = {job_id for worker in bench.workers for run in worker.given for job_id in run}
            assert fresh or started
            waiting = [job.id for job in jobs if job.id not in started and job.id not in fresh]
            assert max(fresh | set(started)) < min(waiting or ["z"])  # nobody was passed over
            busy = [worker for worker in bench.workers if worker.given]
            started += busy[turn % len(busy)].draw()  # the workers are not equally fast
            turn += 1
            await bench.settle()
        assert all([(await bench.job(job)).attempts == 1 for job in jobs])
        assert [(await bench.job(job)).status for job in jobs] == [JobStatus.SUCCEEDED] * 12


@in_loop
async def test_every_worker_has_a_job_while_jobs_wait(tmp_path: Path) -> None:
    async with Bench(tmp_path, workers=4) as bench:
        await bench.submit_held(*[request()] * 6)
        assert [len(worker.jobs) for worker in bench.workers] == [1] * 4
        assert bench.manager.waiting == 2


@in_loop
async def test_worker_takes_the_oldest_job_that_it_can_run(tmp_path: Path) -> None:
    """One runs only x, one only y: neither idles because of a job at the head that it cannot run."""
    models = {"w0": ["x"], "w1": ["y"]}
    async with Bench(tmp_path, workers=2, models=models.__getitem__) as bench:
        jobs = await bench.submit_held(*(request(model=m) for m in ("x", "x", "x", "y", "y")))
        assert given(bench) == [[jobs[0].id], [jobs[3].id]]
        bench.workers[1].draw()
        await bench.settle()
        assert bench.workers[1].runs == [[jobs[3].id], [jobs[4].id]]
        assert [bench.manager.position(await bench.job(job)) for job in jobs[1:3]] == [1, 2]


@in_loop
async def test_job_that_no_worker_can_run_waits_and_stops_nobody(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        strange, known = await bench.submit_held(request(model="strange"), request())
        assert given(bench) == [[known.id]]
        assert (await bench.job(strange)).status is JobStatus.QUEUED


@in_loop
async def test_job_to_a_worker_that_dies_meanwhile_goes_to_another(tmp_path: Path) -> None:
    async with Bench(tmp_path, workers=2) as bench:
        bench.worker.die()
        await bench.settle()
        job = await bench.submit()
        await draw_all(bench)
        assert (await bench.job(job)).attempts == 1


# Handing over


@in_loop
async def test_next_job_is_given_at_the_handover_and_not_before(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        first, second, third = await bench.submit_held(*[request()] * 3)
        bench.worker.begin()
        bench.worker.step()
        await bench.settle()
        assert given(bench) == [[first.id]]
        bench.worker.hand_over()
        await bench.settle()
        assert given(bench) == [[first.id], [second.id]]  # and not the third


@in_loop
async def test_next_job_goes_to_an_idle_worker_rather_than_after_a_handover(tmp_path: Path) -> None:
    async with Bench(tmp_path, workers=2) as bench:
        await bench.submit_held(request())
        busy, idle = sorted(bench.workers, key=lambda worker: worker.is_free)
        busy.begin()
        busy.hand_over()
        await bench.settle()
        job = await bench.submit()
        await bench.settle()
        assert idle.runs == [[job.id]]


@in_loop
async def test_jobs_of_a_worker_that_dies_after_a_handover_keep_their_order(tmp_path: Path) -> None:
    """The one that had begun is to blame; the one that was fetched ahead is not."""
    async with Bench(tmp_path) as bench:
        first, second, third = await bench.submit_held(*[request()] * 3)
        bench.worker.begin()
        bench.worker.hand_over()
        await bench.settle()
        bench.worker.die()
        await bench.settle()
        assert bench.worker.runs[2:] == [[first.id]]
        assert [(await bench.job(job)).attempts for job in (first, second, third)] == [2, 0, 0]
        await draw_all(bench)
        assert bench.worker.runs[2:] == [[first.id], [second.id], [third.id]]
        assert [(await bench.job(job)).attempts for job in (first, second, third)] == [2, 1, 1]


# Once more


@in_loop
async def test_job_tried_before_is_given_alone(tmp_path: Path) -> None:
    async with Bench(tmp_path, FLUX_MAX_BATCH_SIZE="4") as bench:
        await measure(bench)
        jobs = await bench.submit_held(*[request()] * 3)
        assert given(bench) == [ids(jobs)]
        bench.worker.begin()
        bench.worker.die()
        await bench.settle()
        assert bench.worker.runs[1:] == [[jobs[0].id]]
        bench.worker.begin()
        bench.worker.hand_over()
        await bench.settle()
        assert bench.worker.runs[1:] == [[jobs[0].id]]  # nothing beside it, also at the handover


@in_loop
async def test_job_tried_before_waits_for_a_free_worker(tmp_path: Path) -> None:
    async with Bench(tmp_path, workers=2) as bench:
        first, second = await bench.submit_held(*[request()] * 2)
        dies = next(worker for worker in bench.workers if first.id in worker.jobs)
        lives = next(worker for worker in bench.workers if worker is not dies)
        lives.begin()
        lives.hand_over()
        dies.begin()
        dies.die()
        await bench.settle()
        assert first.id not in lives.jobs
        assert first.id in dies.jobs and lives.runs == [[second.id]]


@in_loop
async def test_job_that_kills_two_workers_fails_as_poison(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        bad, good = await bench.submit_held(*[request()] * 2)
        for _ in range(2):
            bench.worker.begin()
            bench.worker.die()
            await bench.settle()
        failed = await bench.job(bad)
        assert failed.error is not None
        assert (failed.error.code, failed.attempts) == ("poison", 2)
        await draw_all(bench)
        assert (await bench.job(good)).status is JobStatus.SUCCEEDED
        assert ends(bench) == [("failed", bad.id), ("succeeded", good.id)]


@in_loop
async def test_job_that_never_began_is_not_blamed_for_deaths(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        job = await bench.submit()
        for _ in range(5):
            await bench.settle()
            bench.worker.die()
        await bench.settle()
        assert (await bench.job(job)).attempts == 1
        await draw_all(bench)
        assert (await bench.job(job)).status is JobStatus.SUCCEEDED


# Batches


@in_loop
async def test_batch_is_of_alike_jobs_at_the_head_only(tmp_path: Path) -> None:
    async with Bench(tmp_path, FLUX_MAX_BATCH_SIZE="4") as bench:
        await measure(bench)
        jobs = await bench.submit_held(request(), request(), request(width=256), request())
        await draw_all(bench)
        assert given(bench) == [ids(jobs[:2]), [jobs[2].id], [jobs[3].id]]


@in_loop
async def test_batch_has_no_more_pictures_than_it_may(tmp_path: Path) -> None:
    async with Bench(tmp_path, FLUX_MAX_BATCH_SIZE="4") as bench:
        await measure(bench)
        jobs = await bench.submit_held(*(request(num_images=n) for n in (2, 2, 1, 3, 9, 1)))
        await draw_all(bench)
        assert given(bench) == [ids(jobs[:2]), ids(jobs[2:4]), [jobs[4].id], [jobs[5].id]]


@in_loop
async def test_batch_is_not_made_before_one_was_drawn_alone(tmp_path: Path) -> None:
    async with Bench(tmp_path, FLUX_MAX_BATCH_SIZE="4") as bench:
        jobs = await bench.submit_held(*[request()] * 3)
        assert given(bench) == [[jobs[0].id]]


@in_loop
async def test_batch_that_does_not_pay_is_not_made(tmp_path: Path) -> None:
    async with Bench(tmp_path, FLUX_MAX_BATCH_SIZE="4") as bench:
        await measure(bench)
        bench.manager.pace.batch_took(_kind(), 2, 30.0)
        jobs = await bench.submit_held(*[request()] * 3)
        assert given(bench) == [[jobs[0].id]]


@in_loop
async def test_batch_of_a_model_that_is_not_exact_is_not_made_by_itself(tmp_path: Path) -> None:
    for is_exact in (False, True):
        async with Bench(tmp_path / f"{is_exact}") as bench:
            await measure(bench)
            bench.worker.batches_together = is_exact
            await bench.submit()
            await draw_all(bench)
            jobs = await bench.submit_held(*[request()] * 3)
            assert bench.worker.runs[1] == (ids(jobs) if is_exact else [jobs[0].id])


@in_loop
async def test_batch_leaves_jobs_for_workers_that_are_idle(tmp_path: Path) -> None:
    async with Bench(tmp_path, workers=2, FLUX_MAX_BATCH_SIZE="8") as bench:
        await measure(bench)
        await bench.submit_held(*[request()] * 4)
        assert [len(worker.jobs) for worker in bench.workers] == [2, 2]


@in_loop
async def test_batch_whose_worker_dies_is_tried_one_by_one(tmp_path: Path) -> None:
    async with Bench(tmp_path, FLUX_MAX_BATCH_SIZE="4") as bench:
        await measure(bench)
        jobs = await bench.submit_held(*[request()] * 3)
        bench.worker.begin()
        bench.worker.die()
        await draw_all(bench)
        assert bench.worker.runs[1:] == [[job.id] for job in jobs]
        assert [(await bench.job(job)).attempts for job in jobs] == [2, 2, 2]


# The operator


@in_loop
async def test_pause_begins_nothing_and_lets_running_jobs_end(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        running, waiting = await bench.submit_held(*[request()] * 2)
        await bench.manager.pause()
        bench.worker.draw()
        await bench.settle()
        assert (await bench.job(running)).status is JobStatus.SUCCEEDED
        assert given(bench) == [[running.id]]
        await bench.manager.resume()
        await bench.settle()
        assert given(bench) == [[running.id], [waiting.id]]


@in_loop
async def test_pause_stays_over_a_restart(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        await bench.manager.pause()
        await bench.restart()
        job = await bench.submit()
        await bench.settle()
        assert bench.manager.is_paused and given(bench) == []
        await bench.manager.resume()
        await bench.settle()
        assert given(bench) == [[job.id]]


@in_loop
async def test_clear_cancels_those_who_wait_only(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        running, *waiting = await bench.submit_held(*[request()] * 4)
        assert await bench.manager.clear() == 3
        assert ends(bench) == [("cancelled", job.id) for job in waiting]
        await draw_all(bench)
        assert (await bench.job(running)).status is JobStatus.SUCCEEDED


@in_loop
async def test_retry_submits_the_same_request_at_the_end(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        job, other = await bench.submit_held(request(seed=7), request())
        await bench.manager.cancel(job.id)
        again = await bench.manager.retry(job.id)
        assert again.id != job.id and again.request == job.request and again.seq > other.seq
        assert (await bench.job(job)).status is JobStatus.CANCELLED


@in_loop
async def test_retry_of_a_job_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        running, waiting = await bench.submit_held(*[request()] * 2)
        for job in (running, waiting):
            with pytest.raises(InvalidRequest, match="only a job that has ended"):
                await bench.manager.retry(job.id)


@in_loop
async def test_cancel_of_a_running_job_is_told_at_once_and_frees_the_worker_at_its_step(
    tmp_path: Path,
) -> None:
    async with Bench(tmp_path) as bench:
        job, following = await bench.submit_held(*[request()] * 2)
        bench.worker.begin()
        await bench.settle()
        await bench.manager.cancel(job.id)
        assert ends(bench) == [("cancelled", job.id)]
        assert given(bench) == [[job.id]]
        bench.worker.step()
        await bench.settle()
        assert given(bench) == [[job.id], [following.id]]
        assert ends(bench) == []


@in_loop
async def test_cancelled_job_makes_no_progress_any_more(tmp_path: Path) -> None:
    """Its worker may report a step before it hears of the cancel."""
    async with Bench(tmp_path) as bench:
        job = await bench.submit()
        await bench.settle()
        bench.worker.begin()
        await bench.settle()
        await bench.manager.cancel(job.id)
        bench.worker.say(events.Progress(job_id=job.id, stage="denoising", step=2, steps=4))
        await bench.settle()
        names = [event.name for event in bench.ear.take() if event.job_id == job.id]
        assert names[-1] == "cancelled"


@in_loop
async def test_cancel_between_the_claim_and_the_run_reaches_the_worker(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        claim = bench.manager._ledger.claim

        async def claim_and_cancel(*args: Any, **options: Any) -> list[Job]:
            jobs = await claim(*args, **options)
            for job in jobs:
                await bench.manager.cancel(job.id)
            return jobs

        bench.manager._ledger.claim = claim_and_cancel  # type: ignore[method-assign]
        job = await bench.submit()
        await bench.settle()
        assert events.Cancel(job_id=job.id) in bench.worker.sent
        bench.worker.begin()
        await bench.settle()
        assert bench.worker.is_free and ends(bench) == [("cancelled", job.id)]


@pytest.mark.parametrize("what", ["cancel", "clear"])
@in_loop
async def test_end_whose_caller_leaves_is_told_all_the_same(tmp_path: Path, what: str) -> None:
    async with Bench(tmp_path) as bench:
        running, waiting = await bench.submit_held(*[request()] * 2)
        gate, is_held = threading.Event(), threading.Event()

        def hold(db: object) -> None:
            is_held.set()
            gate.wait(30)

        holding = asyncio.create_task(bench.store._write(hold))
        while not is_held.is_set():
            await asyncio.sleep(0.001)
        manager = bench.manager
        ending: asyncio.Task[Any] = asyncio.create_task(
            manager.cancel(waiting.id) if what == "cancel" else manager.clear()  # type: ignore[arg-type]
        )
        while bench.store._changes.empty():
            await asyncio.sleep(0.001)
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        gate.set()
        await holding
        await bench.settle()
        assert ends(bench) == [("cancelled", waiting.id)] and manager.waiting == 0


# Deadlines


@in_loop
async def test_job_that_waited_too_long_fails_as_timeout(tmp_path: Path) -> None:
    async with Bench(tmp_path, FLUX_MAX_WAIT_SECONDS="60") as bench:
        running, late = await bench.submit_held(*[request()] * 2)
        bench.clock.ahead = timedelta(seconds=30)
        fresh = await bench.submit()
        await bench.tick()
        assert ends(bench) == []
        bench.clock.ahead = timedelta(seconds=61)
        await bench.tick()
        failed = await bench.job(late)
        assert failed.error is not None
        assert (failed.error.code, failed.attempts) == ("timeout", 0)
        assert ends(bench) == [("failed", late.id)]
        assert bench.manager.position(await bench.job(fresh)) == 1


@pytest.mark.parametrize("moved", [timedelta(hours=1), timedelta(hours=-1)], ids=str)
@in_loop
async def test_wall_clock_that_is_moved_ends_no_waiting_job_early_or_late(
    tmp_path: Path, moved: timedelta
) -> None:
    async with Bench(tmp_path, FLUX_MAX_WAIT_SECONDS="60") as bench:
        running, late = await bench.submit_held(*[request()] * 2)
        bench.clock.moved = moved
        await bench.tick()
        assert ends(bench) == []
        bench.clock.ahead = timedelta(seconds=61)
        await bench.tick()
        assert ends(bench) == [("failed", late.id)]


@pytest.mark.parametrize(
    ("passed", "ended"), [(timedelta(seconds=61), True), (timedelta(hours=-1), False)], ids=str
)
@in_loop
async def test_job_of_an_earlier_process_has_waited_as_long_as_the_wall_clock_says(
    tmp_path: Path, passed: timedelta, ended: bool
) -> None:
    async with Bench(tmp_path, FLUX_MAX_WAIT_SECONDS="60") as bench:
        await bench.manager.pause()
        job = await bench.submit()
        bench.clock.moved = passed  # the monotonic clock of a new process tells nothing of it
        await bench.restart()
        await bench.tick()
        assert ends(bench) == ([("failed", job.id)] if ended else [])


@in_loop
async def test_job_that_runs_too_long_fails_and_its_worker_leaves_it(tmp_path: Path) -> None:
    async with Bench(tmp_path, FLUX_MAX_RUN_SECONDS="60") as bench:
        late, following = await bench.submit_held(*[request()] * 2)
        bench.worker.begin()
        await bench.settle()
        await bench.tick()
        assert ends(bench) == []
        bench.worker.jobs[late.id].drawing_since -= 61
        await bench.tick()
        await bench.tick()
        failed = await bench.job(late)
        assert failed.error is not None and failed.error.code == "timeout"
        assert ends(bench) == [("failed", late.id)]
        assert bench.worker.sent.count(events.Cancel(job_id=late.id)) == 1
        bench.worker.step()
        await draw_all(bench)
        assert (await bench.job(following)).status is JobStatus.SUCCEEDED
        assert bench.worker.deaths == 0


@in_loop
async def test_time_of_loading_does_not_count_as_running(tmp_path: Path) -> None:
    async with Bench(tmp_path, FLUX_MAX_RUN_SECONDS="60") as bench:
        job = await bench.submit()
        await bench.settle()
        bench.worker.say(events.Begun(job_ids=[job.id]))
        bench.worker.say(events.Progress(job_id=job.id, stage="loading", step=0, steps=4))
        await bench.settle()
        assert bench.worker.jobs[job.id].drawing_since is None
        bench.worker.jobs[job.id].given_at -= 1000
        await bench.tick()
        assert ends(bench) == []


@in_loop
async def test_worker_without_a_step_for_too_long_is_killed_and_its_job_tried_again(
    tmp_path: Path,
) -> None:
    async with Bench(tmp_path, FLUX_STALL_TIMEOUT_SECONDS="60") as bench:
        job = await bench.submit()
        await bench.settle()
        bench.worker.begin()
        await bench.settle()
        make_late(bench.worker, 30)
        await bench.tick()
        assert bench.worker.deaths == 0
        make_late(bench.worker, 31)
        await bench.tick()
        assert bench.worker.deaths == 1 and "no step" in (bench.worker.last_death or "")
        assert (await bench.job(job)).attempts == 2
        await draw_all(bench)
        assert (await bench.job(job)).status is JobStatus.SUCCEEDED


@in_loop
async def test_worker_whose_job_loads_weights_of_its_own_has_the_time_of_loading(
    tmp_path: Path,
) -> None:
    limits = {"FLUX_STALL_TIMEOUT_SECONDS": "60", "FLUX_LOAD_TIMEOUT_SECONDS": "600"}
    async with Bench(tmp_path, **limits) as bench:
        job = await bench.submit()
        await bench.settle()
        bench.worker.begin()
        bench.worker.say(events.Progress(job_id=job.id, stage="loading", step=0, steps=4))
        await bench.settle()
        make_late(bench.worker, 300)
        await bench.tick()
        assert bench.worker.deaths == 0
        make_late(bench.worker, 301)
        await bench.tick()
        assert bench.worker.deaths == 1 and "loading" in (bench.worker.last_death or "")


@in_loop
async def test_job_that_hangs_twice_fails_as_timeout(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        job = await bench.submit()
        for _ in range(2):
            await bench.settle()
            bench.worker.begin()
            await bench.settle()
            make_late(bench.worker, 1000)
            await bench.tick()
        failed = await bench.job(job)
        assert failed.error is not None
        assert (failed.error.code, failed.attempts) == ("timeout", 2)


@in_loop
async def test_worker_that_does_not_leave_a_cancelled_job_is_killed(tmp_path: Path) -> None:
    async with Bench(tmp_path, FLUX_CANCEL_TIMEOUT_SECONDS="30") as bench:
        job, ahead = await bench.submit_held(*[request()] * 2)
        bench.worker.begin()
        bench.worker.hand_over()
        await bench.settle()
        await bench.manager.cancel(job.id)
        bench.worker.jobs[job.id].unwanted_since -= 31
        await bench.tick()
        assert bench.worker.deaths == 1
        assert (await bench.job(job)).status is JobStatus.CANCELLED
        assert (await bench.job(ahead)).attempts == 1  # it never began: the attempt was given back
        await draw_all(bench)
        assert (await bench.job(ahead)).status is JobStatus.SUCCEEDED


@in_loop
async def test_worker_that_hangs_while_the_store_refuses_is_killed(tmp_path: Path) -> None:
    async with Bench(tmp_path, workers=2, FLUX_MAX_RUN_SECONDS="60") as bench:
        await bench.submit_held(*[request()] * 2)
        overtime, hangs = bench.workers
        for worker in bench.workers:
            worker.begin()
        await bench.settle()
        next(iter(overtime.jobs.values())).drawing_since -= 61
        make_late(hangs, 1000)
        bench.refuse_writes()
        with pytest.raises(StorageUnavailable):
            await bench.manager._dispatcher._tick()
        assert not hangs.is_up


@in_loop
async def test_idle_worker_gives_its_model_back_after_its_time(tmp_path: Path) -> None:
    async with Bench(tmp_path, FLUX_IDLE_UNLOAD_SECONDS="60") as bench:
        await bench.submit()
        await draw_all(bench)
        make_late(bench.worker, 30)
        await bench.tick()
        assert bench.worker.model == MODEL
        make_late(bench.worker, 31)
        await bench.tick()
        assert bench.worker.model is None
        make_late(bench.worker, 100)
        await bench.tick()
        assert bench.worker.sent.count(events.Unload()) == 1
        job = await bench.submit()
        await draw_all(bench)
        assert (await bench.job(job)).status is JobStatus.SUCCEEDED


# Disk and store


@in_loop
async def test_full_disk_holds_the_line_and_releases_it_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room: list[str | None] = [None]
    monkeypatch.setattr(disk, "why_no_room", lambda folder, least: room[0])
    async with Bench(tmp_path) as bench:
        running, waiting = await bench.submit_held(*[request()] * 2)
        room[0] = "no room"
        await bench.tick()
        with pytest.raises(StorageUnavailable, match="no room"):
            await bench.submit()
        bench.worker.draw()
        await bench.settle()
        assert given(bench) == [[running.id]] and bench.manager.why_held() == "no room"
        room[0] = None
        await bench.tick()
        assert given(bench) == [[running.id], [waiting.id]]


@in_loop
async def test_result_while_the_store_refuses_is_committed_later(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        job = await bench.submit()
        await bench.settle()
        bench.refuse_writes()
        bench.worker.draw()
        await bench.settle()
        await asyncio.sleep(5 * PAUSE_SECONDS)
        assert ends(bench) == [] and (await bench.job(job)).status is JobStatus.RUNNING
        bench.let_write()
        await bench.settle()
        assert ends(bench) == [("succeeded", job.id)] and bench.files() == {f"{job.id}-0.png"}


@in_loop
async def test_picture_published_by_a_commit_that_failed_goes_when_a_cancel_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Bench(tmp_path) as bench:
        monkeypatch.setattr(ledger, "STORE_PAUSE_SECONDS", 2.0)  # the cancel comes before
        job = await bench.submit()
        await bench.settle()
        bench.refuse_writes()
        bench.worker.draw()
        while f"{job.id}-0.png" not in bench.files():
            await asyncio.sleep(PAUSE_SECONDS)
        bench.let_write()
        await bench.manager.cancel(job.id)
        await bench.settle()
        assert ends(bench) == [("cancelled", job.id)] and bench.files() == set()


@in_loop
async def test_death_while_the_store_refuses_puts_the_job_back_later(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        job = await bench.submit()
        await bench.settle()
        bench.worker.begin()
        bench.refuse_writes()
        bench.worker.die()
        await bench.settle()
        bench.let_write()
        await draw_all(bench)
        found = await bench.job(job)
        assert (found.status, found.attempts) == (JobStatus.SUCCEEDED, 2)


@in_loop
async def test_claim_that_cannot_be_given_back_at_once_is_given_back_later(
    tmp_path: Path,
) -> None:
    """The worker is gone when the claim is there, and then the store refuses."""
    async with Bench(tmp_path) as bench:
        claim, is_first = bench.manager._ledger.claim, True

        async def claim_and_die(*args: Any, **options: Any) -> list[Job]:
            nonlocal is_first
            jobs = await claim(*args, **options)
            if is_first and jobs:
                is_first = False
                bench.worker.state = WorkerState.LOADING
                bench.refuse_writes()
            return jobs

        bench.manager._ledger.claim = claim_and_die  # type: ignore[method-assign]
        job = await bench.submit()
        await bench.settle()
        bench.worker.state = WorkerState.IDLE
        bench.let_write()
        await asyncio.sleep(5 * PAUSE_SECONDS)
        bench.manager._dispatcher.wake()
        await draw_all(bench)
        found = await bench.job(job)
        assert (found.status, found.attempts) == (JobStatus.SUCCEEDED, 1)


@in_loop
async def test_submit_while_the_store_refuses_leaves_nothing(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        bench.refuse_writes()
        with pytest.raises(StorageUnavailable):
            await bench.submit()
        bench.let_write()
        assert bench.manager.waiting == 0
        assert await bench.store.list(status=None, limit=9, offset=0) == []


# The end


@in_loop
async def test_stop_puts_back_what_runs_and_keeps_what_waits(tmp_path: Path) -> None:
    """Running, fetched ahead, waiting: nothing is lost, in order, and no attempt is counted."""
    async with Bench(tmp_path) as bench:
        jobs = await bench.submit_held(*[request()] * 4)
        bench.worker.begin()
        bench.worker.hand_over()
        await bench.settle()
        assert len(bench.worker.jobs) == 2
        await bench.restart()
        assert given(bench) == [[jobs[0].id]]
        assert [(await bench.job(job)).attempts for job in jobs] == [1, 0, 0, 0]
        await draw_all(bench)
        assert given(bench) == [[job.id] for job in jobs]
        assert [(await bench.job(job)).attempts for job in jobs] == [1, 1, 1, 1]


@in_loop
async def test_stop_waits_for_running_jobs_as_long_as_it_may(tmp_path: Path) -> None:
    async with Bench(tmp_path, FLUX_DRAIN_SECONDS="30") as bench:
        running, waiting = await bench.submit_held(*[request()] * 2)
        stopping = asyncio.create_task(bench.manager.stop())
        await asyncio.sleep(0.01)
        assert not stopping.done()
        bench.worker.draw()
        await stopping
        await bench.start()
        assert (await bench.job(running)).status is JobStatus.SUCCEEDED
        assert given(bench) == [[waiting.id]]
        await draw_all(bench)


@in_loop
async def test_drain_takes_no_jobs_and_answers_those_who_wait(tmp_path: Path) -> None:
    async with Bench(tmp_path, FLUX_DRAIN_SECONDS="30") as bench:
        running, waiting = await bench.submit_held(*[request()] * 2)
        hears = {job.id: bench.manager.bus.subscribe(job.id) for job in (running, waiting)}
        tasks = [asyncio.create_task(bench.manager.wait(job)) for job in (running, waiting)]
        await bench.settle()
        bench.manager.drain()
        with pytest.raises(Unavailable):
            await tasks[1]
        with pytest.raises(Unavailable):
            await bench.submit()
        assert hears[waiting.id].is_closed and not hears[running.id].is_closed
        bench.worker.draw()
        assert (await tasks[0]).status is JobStatus.SUCCEEDED
        await bench.manager.stop()


@in_loop
async def test_job_that_the_last_process_left_running_counts_its_attempt(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        job = await bench.submit()
        await bench.settle()
        left = await bench.job(job)
        for worker in bench.workers:
            worker.jobs.clear()  # as after a kill: nobody is there to put it back
        await bench.restart()
        assert left.attempts == 1 and (await bench.job(job)).attempts == 2


# ETA


@pytest.mark.parametrize(("step", "left"), [(0, 3), (4, 2), (5, 2), (8, 1), (12, 1)])
@in_loop
async def test_eta_counts_the_pictures_that_are_left(tmp_path: Path, step: int, left: int) -> None:
    async with Bench(tmp_path) as bench:
        job = await bench.submit(num_images=3)
        await bench.settle()
        bench.manager.pace.step_took(_kind(), 10.0)
        bench.manager.pace.rest_took(_kind(), 1000.0)
        bench.worker.say(events.Begun(job_ids=[job.id]))
        bench.worker.say(events.Progress(job_id=job.id, stage="denoising", step=step, steps=12))
        await bench.settle()
        progress = bench.manager.progress(job.id)
        assert progress is not None
        assert progress.eta_ms == (12 - step) * 10.0 + left * 1000.0


# Whether all is well, for a watchdog


@in_loop
async def test_queue_is_well_while_its_work_goes_on(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        await bench.submit()
        await bench.settle()
        assert bench.manager.is_well()


@in_loop
async def test_queue_whose_worker_is_stuck_beyond_its_end_is_not_well(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        await bench.submit()
        await bench.settle()
        bench.worker.last_sign -= 3600 + 61  # of a load, and a minute
        assert not bench.manager.is_well()
        bench.worker.jobs.clear()
        assert bench.manager.is_well()  # one without a job gives no signs


@in_loop
async def test_queue_whose_dispatcher_has_ended_is_not_well_but_while_it_drains(
    tmp_path: Path,
) -> None:
    async with Bench(tmp_path) as bench:
        for task in bench.manager._dispatcher._tasks:
            task.cancel()
        await asyncio.wait(bench.manager._dispatcher._tasks)
        assert not bench.manager.is_well()
        bench.manager.drain()
        assert bench.manager.is_well()
