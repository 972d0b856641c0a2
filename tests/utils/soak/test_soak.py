"""Thousands of jobs through the real queue and a real database, with faults at any point, against a model.

The model is one dictionary of rows and the rules by which they change. SOAK_EXAMPLES makes the
soak longer and different each time: `SOAK_EXAMPLES=2000 pytest -s tests/utils/soak`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from config.errors import StorageUnavailable
from models.types import GenerationRequest
from tests.utils.soak.bench import PAUSE_SECONDS, Bench, request
from tests.utils.soak.fake_worker import FakeWorker
from utils.event_bus import ENDS
from utils.job import Job, JobStatus
from utils.line import Lane

EXAMPLES = 30
STEPS = 60
LEAST_JOBS = 2000
MAX_ATTEMPTS = 2
HANG_SECONDS = 60
MEMORY = Path("/dev/shm")  # a real file system that syncs at once
INDEX = st.integers(0, 10**6)
OFTEN = st.sampled_from(range(5, -1, -1))  # for what must not happen at every turn

# What all machines of a run did, for the assertion at its end.
done: Counter[str] = Counter()


@dataclass
class Row:
    """What the model knows of a job."""

    seq: int
    status: JobStatus = JobStatus.QUEUED
    attempts: int = 0
    was_put_back: bool = False
    pictures: int = 1
    end: str | None = None  # the event that told it
    final: Job | None = field(default=None, repr=False)  # the row as it was when it ended

    @property
    def is_open(self) -> bool:
        return not self.status.is_final


class Soak(RuleBasedStateMachine):
    """Each rule does one thing, waits until nothing moves, and lets the model do the same."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.runner = asyncio.Runner()
        self.rows: dict[str, Row] = {}
        self.is_paused = False
        self.does_write = True
        self.seen_runs: dict[FakeWorker, int] = {}

    @initialize(
        workers=st.integers(1, 3), batch=st.sampled_from(("1", "4")), number=st.integers(70, 90)
    )
    def open(self, workers: int, batch: str, number: int) -> None:
        self.bench = Bench(
            self.folder,
            workers=workers,
            FLUX_MAX_BATCH_SIZE=batch,
            FLUX_MAX_QUEUE_SIZE="100000",
            FLUX_MAX_ATTEMPTS=str(MAX_ATTEMPTS),
        )
        self(self.bench.__aenter__())
        self.submit_some(number, request())

    def __call__(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def guarded() -> Any:
            async with asyncio.timeout(HANG_SECONDS):
                return await coroutine

        return self.runner.run(guarded())

    def settle(self) -> None:
        self(self.bench.settle())
        self.hear_ends()
        self.see_runs()

    # The model

    def hear_ends(self) -> None:
        for event in self.bench.ear.take():
            if event.name in ENDS:
                row = self.rows[event.job_id or ""]
                assert row.end is None, f"{event.job_id} ended twice: {row.end}, {event.name}"
                row.end, row.final = event.name, event.job
        assert not self.bench.ear.is_behind

    def see_runs(self) -> None:
        """What was given to workers since the last time: started in the order of the line."""
        given: list[str] = []
        for worker in self.bench.workers:
            for run in worker.runs[self.seen_runs.get(worker, 0) :]:
                given += run
            self.seen_runs[worker] = len(worker.runs)
        for job_id in given:
            row = self.rows[job_id]
            assert row.status is JobStatus.QUEUED, f"{job_id} was given while {row.status}"
            row.status, row.attempts = JobStatus.RUNNING, row.attempts + 1
            assert row.attempts <= MAX_ATTEMPTS
        fresh = [self.rows[job_id].seq for job_id in given if not self.rows[job_id].was_put_back]
        left = [row.seq for row in self.waiting() if not row.was_put_back]
        assert not fresh or not left or max(fresh) < min(left)

    def waiting(self) -> list[Row]:
        return [row for row in self.rows.values() if row.status is JobStatus.QUEUED]

    def end(self, job_id: str, status: JobStatus) -> None:
        """A worker's word about a job; it counts when nobody was faster."""
        row = self.rows[job_id]
        if row.status is JobStatus.RUNNING:
            row.status = status

    def put_back(self, job_id: str, *, is_blamed: bool) -> None:
        row = self.rows[job_id]
        if row.status is not JobStatus.RUNNING:
            return
        if is_blamed and row.attempts >= MAX_ATTEMPTS:
            row.status = JobStatus.FAILED
            return
        row.status, row.was_put_back = JobStatus.QUEUED, True
        row.attempts -= int(not is_blamed)

    def lose(self, worker: FakeWorker) -> None:
        """What a worker's death does to its jobs: those it had begun, and somebody wants, are blamed."""
        begun = {*worker.drawing, *worker.saving}
        for job_id in [*begun, *(job_id for run in worker.given for job_id in run)]:
            self.put_back(job_id, is_blamed=job_id in begun)

    # What clients and operators do

    @rule(
        number=st.sampled_from((3, 1, 8, 20)),
        pictures=st.integers(1, 2),
        width=st.sampled_from((128, 256)),
    )
    def submit(self, number: int, pictures: int, width: int) -> None:
        self.submit_some(number, request(num_images=pictures, width=width))

    def submit_some(self, number: int, asked: GenerationRequest) -> None:
        for _ in range(number):
            try:
                job = self(self.bench.manager.submit(asked))
            except StorageUnavailable:
                assert not self.does_write
                done["refused"] += 1
                break
            assert self.does_write
            self.rows[job.id] = Row(seq=job.seq, pictures=asked.num_images)
            done["jobs"] += 1
        self.settle()

    @precondition(lambda self: self.rows)
    @rule(index=INDEX)
    def cancel(self, index: int) -> None:
        job_id = self.pick(index, lambda row: row.is_open) or self.pick(index)
        assert job_id is not None
        row = self.rows[job_id]
        try:
            job = self(self.bench.manager.cancel(job_id))
        except StorageUnavailable:
            assert not self.does_write
            return
        if row.is_open:
            row.status = JobStatus.CANCELLED
            done["cancelled"] += 1
        assert job.status is row.status or not self.does_write
        self.settle()

    @precondition(lambda self: self.does_write)
    @rule(index=INDEX)
    def retry(self, index: int) -> None:
        job_id = self.pick(index, lambda row: not row.is_open)
        if job_id is not None:
            job = self(self.bench.manager.retry(job_id))
            self.rows[job.id] = Row(seq=job.seq, pictures=job.request.num_images)
            done["jobs"] += 1
            self.settle()

    @precondition(lambda self: self.does_write)
    @rule(often=OFTEN)
    def clear(self, often: int) -> None:
        if often:
            return  # a queue that is cleared often is never long
        count = self(self.bench.manager.clear())
        assert count == len(self.waiting())
        for row in self.waiting():
            row.status = JobStatus.CANCELLED
        self.settle()

    @precondition(lambda self: self.does_write)
    @rule(is_paused=st.booleans())
    def pause_or_resume(self, is_paused: bool) -> None:
        manager = self.bench.manager
        self(manager.pause() if is_paused else manager.resume())
        self.is_paused = is_paused
        self.settle()

    def pick(self, index: int, which: Callable[[Row], bool] = lambda row: True) -> str | None:
        found = [job_id for job_id, row in self.rows.items() if which(row)]
        return found[index % len(found)] if found else None

    # What workers do

    @rule(index=INDEX, how_far=st.integers(0, 5))
    def work(self, index: int, how_far: int) -> None:
        """A worker goes on a little, or draws what it has."""
        worker = self.bench.workers[index % len(self.bench.workers)]
        if not worker.is_up:
            return
        if not worker.drawing and worker.given:
            worker.begin()
            self.settle()
        if how_far >= 1 and worker.drawing:
            worker.step()
        if how_far >= 2 and worker.drawing:
            worker.hand_over()
            self.settle()
        if how_far >= 3:
            worker.put_down()
        if how_far >= 4:
            for job_id in list(worker.saving):
                worker.finish(job_id)
                self.end(job_id, JobStatus.SUCCEEDED)
        self.settle()

    @rule()
    def everybody_draws(self) -> None:
        for worker in self.bench.workers:
            if worker.is_up:
                worker.put_down()
                if worker.given:
                    worker.begin()
                    worker.step()
                    if worker.drawing:
                        worker.hand_over()
                    worker.put_down()
                for job_id in list(worker.saving):
                    worker.finish(job_id)
                    self.end(job_id, JobStatus.SUCCEEDED)
        self.settle()

    @rule(index=INDEX)
    def fail(self, index: int) -> None:
        worker = self.bench.workers[index % len(self.bench.workers)]
        if worker.is_up and (worker.drawing or worker.saving):
            job_id = [*worker.drawing, *worker.saving][0]
            worker.fail(job_id)
            self.end(job_id, JobStatus.FAILED)
            done["failed"] += 1
            self.settle()

    @rule(index=INDEX, last_words=st.integers(0, 2))
    def die(self, index: int, last_words: int) -> None:
        """At any point, also right after it said that a job is done."""
        worker = self.bench.workers[index % len(self.bench.workers)]
        if not worker.is_up:
            return
        for job_id in list(worker.saving)[:last_words]:
            worker.finish(job_id)
            self.end(job_id, JobStatus.SUCCEEDED)
        self.lose(worker)
        worker.die()
        done["deaths"] += 1
        self.settle()

    @rule(index=INDEX)
    def hang(self, index: int) -> None:
        """No step for longer than the settings allow: the clock's work kills it."""
        worker = self.bench.workers[index % len(self.bench.workers)]
        if worker.is_up and worker.jobs and self.does_write:
            self.lose(worker)
            worker.last_sign -= 10_000
            self(self.bench.tick())
            assert worker.deaths
            done["hangs"] += 1
            self.settle()

    # What the machine does

    @precondition(lambda self: self.does_write)
    @rule()
    def fill_the_disk(self) -> None:
        self.bench.refuse_writes()
        self.does_write = False
        done["full"] += 1

    @precondition(lambda self: not self.does_write)
    @rule()
    def make_room(self) -> None:
        self.bench.let_write()
        self.does_write = True
        self(asyncio.sleep(5 * PAUSE_SECONDS))  # whoever was refused tries again after a pause
        self.settle()

    @precondition(lambda self: self.does_write)
    @rule(often=OFTEN)
    def restart(self, often: int) -> None:
        """A stop in order: drawn pictures are kept, everything else goes back, nobody is blamed."""
        if often > 1:
            return
        for worker in self.bench.workers:
            if worker.is_up:
                for job_id in worker.saving:
                    self.end(job_id, JobStatus.SUCCEEDED)
                for job_id in [
                    *worker.drawing,
                    *(job_id for run in worker.given for job_id in run),
                ]:
                    self.put_back(job_id, is_blamed=False)
        self(self.bench.manager.stop())
        self.hear_ends()
        self.start_again("restarts")

    @rule(often=OFTEN)
    def crash(self, often: int) -> None:
        """The process is gone: what was not committed did not happen."""
        if often > 1:
            return
        self(self.abandon())
        self.hear_ends()
        self.start_again("crashes")

    async def abandon(self) -> None:
        bench = self.bench
        manager = bench.manager
        tasks = [*manager._ledger._endings, *manager._dispatcher._tasks]
        for worker in bench.workers:
            worker.is_up = False
            tasks.append(worker._supervisor)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for job in await bench.store.running():
            row = self.rows[job.id]
            row.status, row.attempts = JobStatus.RUNNING, job.attempts
            self.put_back(job.id, is_blamed=True)
        await bench.store.close()
        bench.let_write()
        self.does_write = True

    def start_again(self, what: str) -> None:
        self.seen_runs = {}
        self(self.bench.start())
        done[what] += 1
        self.settle()

    # What must always hold

    @invariant()
    def store_line_and_model_agree(self) -> None:
        if not hasattr(self, "bench") or not self.does_write:
            return
        bench, manager = self.bench, self.bench.manager
        listed = self(bench.store.list(status=None, limit=10**6, offset=0))
        assert {job.id: (job.status, job.attempts) for job in listed} == {
            job_id: (row.status, row.attempts) for job_id, row in self.rows.items()
        }
        for job in listed:
            row = self.rows[job.id]
            assert (row.end is not None) == job.status.is_final
            assert row.final is None or (row.end, row.final) == (job.status.value, job)
        waiting = sorted(self.waiting(), key=lambda row: row.seq)
        assert manager._ledger.line._seqs[Lane.LOCAL] == [row.seq for row in waiting]
        by_seq = {job.seq: job for job in listed}
        for place, row in enumerate(waiting, 1):
            assert manager.position(by_seq[row.seq]) == place
        if waiting and not self.is_paused:
            assert not any(worker.is_free for worker in bench.workers)

    def teardown(self) -> None:
        try:
            if hasattr(self, "bench"):
                self.finish_everything()
        finally:
            if hasattr(self, "bench"):
                self(self.bench.__aexit__())
            self.runner.close()
            shutil.rmtree(self.folder)

    def finish_everything(self) -> None:
        """Room, no pause, and nothing that fails: every job ends, and the folder is what the rows say."""
        if not self.does_write:
            self.make_room()
        self.pause_or_resume(False)
        while any(row.is_open for row in self.rows.values()):
            self.everybody_draws()
        self.store_line_and_model_agree()
        images = self(self.bench.store.images(limit=10**6, before=None, words=None))
        named = {image.filename for image in images}
        assert self.bench.files() == named
        pictures = Counter(image.job_id for image in images)
        assert pictures == {
            job_id: row.pictures
            for job_id, row in self.rows.items()
            if row.status is JobStatus.SUCCEEDED
        }


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_queue_under_random_faults_ends_each_job_once_and_in_order() -> None:
    longer = os.environ.get("SOAK_EXAMPLES")
    began = time.monotonic()
    done.clear()
    run_state_machine_as_test(
        Soak,
        settings=settings(
            max_examples=int(longer or EXAMPLES),
            stateful_step_count=STEPS,
            derandomize=longer is None,
            # To look for the shortest way to a failure takes many minutes: where somebody waits for it.
            phases=tuple(Phase) if longer else (Phase.generate,),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"soak: {dict(done)} in {time.monotonic() - began:.0f} s")
    assert done["jobs"] >= LEAST_JOBS or longer
    assert all(done[fault] for fault in ("deaths", "hangs", "full", "restarts", "crashes"))
