"""The store: every change against every state, the line, pages, words, and a disk that refuses."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.exc import IntegrityError

from config.errors import ConfigurationError, StorageUnavailable
from models.types import GenerationRequest, GenerationResult, ImageFile, LoraRef, OutputFormat
from tests.postgres import PostgresServer
from utils import sql
from utils.database.postgres import PostgresDatabase
from utils.job import LEGAL_CHANGES, Job, JobError, JobStatus
from utils.job_store import JobStore

NOW = "2026-01-31T12:00:00.000Z"
LATER = "2026-01-31T12:00:01.000Z"
ERROR = JobError(code="internal", message="it failed")
REQUEST = GenerationRequest(
    prompt="a red balloon",
    negative_prompt=None,
    model="embedded",
    backend="flux",
    width=128,
    height=128,
    num_inference_steps=1,
    guidance_scale=0.0,
    true_cfg_scale=2.0,
    seed=1,
    num_images=1,
    output_format=OutputFormat.PNG,
    output_quality=95,
    tags=("a",),
)


def claim_next(store: JobStore, worker: str, at: str) -> Coroutine[Any, Any, list[Job]]:
    """Claims one job of any model."""
    return store.claim(worker, at, models=[REQUEST.model], limit=1, choose=lambda head: head)


async def routing(database: PostgresDatabase) -> JobStore:
    """A store over a server, of a door that has the lease for an hour."""
    store = await JobStore.of(database)
    [lease] = await store.write(lambda db: db.rows("take_lease", {"seconds": 3600.0}))
    database.epoch = lease["epoch"]
    return store


class Opened:
    """A store with a loop of its own, so that tests read without `await`."""

    def __init__(self, folder: Path, database: PostgresDatabase | None = None) -> None:
        self._runner = asyncio.Runner()
        self.path = folder / "jobs.sqlite3"
        try:
            if database is None:
                self.store: JobStore = self._runner.run(JobStore.open(self.path))
            else:
                self.store = self._runner.run(routing(database))
        except ConfigurationError:
            self._runner.close()
            raise

    def __call__(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(coroutine)

    def insert(self, job_id: str, request: GenerationRequest = REQUEST, **options: Any) -> Job:
        return self(self.store.insert(job_id, request, NOW, **options))

    def claim(self, worker: str = "cpu", at: str = NOW) -> Job | None:
        """The oldest waiting job, now running."""
        claimed = self(claim_next(self.store, worker, at))
        return claimed[0] if claimed else None

    def get(self, job_id: str) -> Job:
        return self(self.store.get(job_id))

    def succeed(self, job: Job, *, publish: Callable[[], None] = lambda: None) -> Job | None:
        return self(self.store.succeed(job, result(job.id), LATER, publish=publish))

    def drawn(self, job_id: str, prompt: str = "a red balloon", *, at: str = LATER) -> None:
        """A finished job with one picture."""
        self.insert(job_id, _with_prompt(prompt))
        job = self.claim()
        self(self.store.succeed(job, result(job_id), at, publish=lambda: None))

    def close(self) -> None:
        self(self.store.close())
        self._runner.close()


def _with_prompt(prompt: str) -> GenerationRequest:
    return GenerationRequest.from_json({**REQUEST.to_json(), "prompt": prompt})


def result(job_id: str, number: int = 1) -> GenerationResult:
    images = tuple(
        ImageFile(filename=f"{job_id}-{i}.png", seed=1 + i, width=128, height=128, size_bytes=9)
        for i in range(number)
    )
    return GenerationResult(
        images=images, engine="e", precision="bf16", device="cpu", timings_ms={"total": 1.0}
    )


@pytest.fixture(params=["file", "server"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """Of either kind: what is asked of it is answered alike."""
    with ExitStack() as stack:
        database = None
        if request.param == "server":
            server: PostgresServer = request.getfixturevalue("postgres")
            database = PostgresDatabase(stack.enter_context(server.database()), "door")
        running = Opened(tmp_path, database)
        stack.callback(running.close)
        yield running


@pytest.fixture
def in_file(tmp_path: Path) -> Iterator[Opened]:
    running = Opened(tmp_path)
    yield running
    running.close()


# Changes of state

CHANGES: dict[JobStatus, list[str]] = {
    JobStatus.RUNNING: ["claim"],
    JobStatus.QUEUED: ["requeue", "requeue with its attempt"],
    JobStatus.SUCCEEDED: ["succeed"],
    JobStatus.FAILED: ["fail"],
    JobStatus.CANCELLED: ["cancel"],
}


def bring(
    opened: Opened, job_id: str, status: JobStatus, request: GenerationRequest = REQUEST
) -> Job:
    """A job in the status."""
    job = opened.insert(job_id, request)
    if status not in (JobStatus.QUEUED, JobStatus.CANCELLED):
        job = opened.claim()
    match status:
        case JobStatus.SUCCEEDED:
            opened.succeed(job)
        case JobStatus.FAILED:
            opened(opened.store.fail(job_id, ERROR, LATER))
        case JobStatus.CANCELLED:
            opened(opened.store.cancel_queued(job_id, LATER))
    job = opened.get(job_id)
    assert job.status is status
    return job


def change(opened: Opened, job: Job, name: str) -> Job | None:
    """The change by its name; None when the store refuses it."""
    store = opened.store
    match name:
        case "claim":
            return opened.claim(at=LATER)
        case "requeue":
            return opened(store.requeue(job.id, take_attempt_back=False))
        case "requeue with its attempt":
            return opened(store.requeue(job.id, take_attempt_back=True))
        case "succeed":
            return opened.succeed(job)
        case "fail":
            return opened(store.fail(job.id, ERROR, LATER)) or opened(
                store.expire_queued(job.id, ERROR.message, LATER)
            )
    return opened(store.cancel_queued(job.id, LATER)) or opened(store.cancel_running(job.id, LATER))


@pytest.mark.parametrize("before", JobStatus)
@pytest.mark.parametrize(
    ("after", "name"), [(after, name) for after, names in CHANGES.items() for name in names]
)
def test_store_change_is_made_when_it_is_legal_and_only_then(
    opened: Opened, before: JobStatus, after: JobStatus, name: str
) -> None:
    job = bring(opened, "a", before)
    changed = change(opened, job, name)
    if after in LEGAL_CHANGES[before]:
        assert changed is not None and changed.status is after
        assert opened.get("a") == changed
    else:
        assert changed is None
        assert opened.get("a") == job


def test_store_changes_table_here_has_every_status() -> None:
    assert set(CHANGES) == set(JobStatus)


@pytest.mark.parametrize(
    ("name", "running"), [("cancel_queued", JobStatus.RUNNING), ("cancel_running", JobStatus.QUEUED)]
)  # fmt: skip
def test_store_cancel_of_the_other_state_is_refused(
    opened: Opened, name: str, running: JobStatus
) -> None:
    job = bring(opened, "a", running)
    assert opened(getattr(opened.store, name)("a", LATER)) is None
    assert opened.get("a") == job


def test_store_change_of_an_unknown_job_is_refused(opened: Opened) -> None:
    store = opened.store
    assert opened(store.fail("x", ERROR, NOW)) is None
    assert opened(store.requeue("x", take_attempt_back=False)) is None
    assert opened(store.cancel_queued("x", NOW)) is None
    assert opened(store.get("x")) is None


def test_store_job_is_read_as_it_was_written(opened: Opened) -> None:
    request = _with_prompt("ä\t\"'\\ 立方体 🎈 %s :id ;--\n")
    job = opened.insert("a", request)
    assert opened.get("a") == job
    assert (job.request, job.status, job.attempts) == (request, JobStatus.QUEUED, 0)


def test_store_failed_job_has_its_error(opened: Opened) -> None:
    bring(opened, "a", JobStatus.RUNNING)
    opened(opened.store.fail("a", ERROR, LATER))
    job = opened.get("a")
    assert (job.error, job.finished_at, job.result) == (ERROR, LATER, None)


def test_store_succeeded_job_has_its_result_and_images(opened: Opened) -> None:
    job = bring(opened, "a", JobStatus.RUNNING)
    opened(opened.store.succeed(job, result("a", 3), LATER, publish=lambda: None))
    assert opened.get("a").result == result("a", 3)
    images = [opened(opened.store.image(f"a-{i}")) for i in range(3)]
    assert [image.seed for image in images] == [1, 2, 3]
    assert opened(opened.store.image_by_filename("a-1.png")) == images[1]


def test_store_requeue_counts_or_takes_back_the_attempt(opened: Opened) -> None:
    bring(opened, "a", JobStatus.RUNNING)
    kept = opened(opened.store.requeue("a", take_attempt_back=False))
    assert (kept.attempts, kept.worker, kept.started_at) == (1, None, None)
    opened.claim()
    assert opened(opened.store.requeue("a", take_attempt_back=True)).attempts == 1


def test_store_publish_that_fails_rolls_everything_back(opened: Opened) -> None:
    job = bring(opened, "a", JobStatus.RUNNING)

    def fails() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageUnavailable):
        opened.succeed(job, publish=fails)
    assert opened.get("a") == job
    assert opened(opened.store.image("a-0")) is None


def test_store_publish_is_not_called_for_a_job_that_was_cancelled(opened: Opened) -> None:
    job = bring(opened, "a", JobStatus.RUNNING)
    opened(opened.store.cancel_running("a", NOW))
    published: list[str] = []
    assert opened.succeed(job, publish=lambda: published.append("a")) is None
    assert published == []


# The line


def test_store_claims_in_the_order_of_insertion(opened: Opened) -> None:
    for job_id in "cab":
        opened.insert(job_id)
    claimed = [opened.claim().id for _ in range(3)]
    assert claimed == ["c", "a", "b"]
    assert opened.claim() is None


def test_store_requeued_job_is_first_again(opened: Opened) -> None:
    for job_id in "ab":
        opened.insert(job_id)
    opened.claim()
    opened(opened.store.requeue("a", take_attempt_back=False))
    assert opened.claim().id == "a"


def test_store_line_has_only_those_who_wait_in_their_order(opened: Opened) -> None:
    jobs = [opened.insert(job_id, owner=f"of {job_id}") for job_id in "abcd"]
    opened.claim()
    opened(opened.store.cancel_queued("c", NOW))
    waiting = (jobs[1], jobs[3])
    expected = [(job.seq, job.id, job.owner, job.created_at, 0, "flux") for job in waiting]
    assert opened(opened.store.line()) == expected


def test_store_claims_by_two_at_once_give_two_jobs(opened: Opened) -> None:
    for job_id in "ab":
        opened.insert(job_id)

    async def both() -> list[list[Job]]:
        return await asyncio.gather(
            *(claim_next(opened.store, worker, NOW) for worker in ("cpu0", "cpu1", "cpu2"))
        )

    claimed = opened(both())
    assert [[job.id for job in jobs] for jobs in claimed] == [["a"], ["b"], []]


def test_store_loras_are_those_of_jobs_that_wait_or_run(opened: Opened) -> None:
    """Each job has a LoRA of its own and one that all have."""
    for status in sorted(JobStatus, key=lambda status: status is JobStatus.QUEUED):
        loras = tuple(
            LoraRef(name=name, sha256=name, weight=1.0) for name in (status.value, "common")
        )
        bring(opened, status.value, status, replace(REQUEST, loras=loras))
    assert opened(opened.store.loras_of_open_jobs()) == {"queued", "running", "common"}


def test_store_counts_name_every_status(opened: Opened) -> None:
    assert opened(opened.store.counts()) == dict.fromkeys(JobStatus, 0)
    bring(opened, "a", JobStatus.FAILED)
    opened.insert("b")
    assert opened(opened.store.counts()) == dict.fromkeys(JobStatus, 0) | {"failed": 1, "queued": 1}


# Lists


def test_store_list_pages_are_newest_first_and_cover_all_once(opened: Opened) -> None:
    for number in range(7):
        opened.insert(f"{number}")
    pages = [
        opened(opened.store.list(status=None, limit=3, offset=offset)) for offset in (0, 3, 6, 9)
    ]
    assert [[job.id for job in page] for page in pages] == [
        ["6", "5", "4"], ["3", "2", "1"], ["0"], [],
    ]  # fmt: skip


def test_store_list_by_status_pages_within_it(opened: Opened) -> None:
    for number in range(6):
        opened.insert(f"{number}")
        if number % 2:
            opened(opened.store.cancel_queued(f"{number}", NOW))
    page = opened(opened.store.list(status=JobStatus.CANCELLED, limit=2, offset=1))
    assert [job.id for job in page] == ["3", "1"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("100%", ["percent"]),
        ("a_b", ["underscore"]),
        ("\\", ["backslash"]),
        ("\\%", []),
        ("%", ["percent"]),
        ("_", ["underscore"]),
        ("'", []),
        ("RED", ["percent", "underscore", "backslash"]),
    ],
)
def test_store_words_mean_their_letters(opened: Opened, words: str, found: list[str]) -> None:
    opened.drawn("percent", "red 100% wool")
    opened.drawn("underscore", "red a_b")
    opened.drawn("backslash", "red a\\b")
    images = opened(opened.store.images(limit=9, before=None, words=words))
    assert {image.job_id for image in images} == set(found)


def test_store_images_of_one_moment_page_without_loss(opened: Opened) -> None:
    for number in range(5):
        opened.drawn(f"job{number}")
    seen: list[str] = []
    while page := opened(
        opened.store.images(limit=2, before=seen[-1] if seen else None, words=None)
    ):
        seen += [image.id for image in page]
    assert len(seen) == 5 and seen == sorted(seen, reverse=True)


def test_store_deleted_image_is_gone_and_its_job_stays(opened: Opened) -> None:
    opened.drawn("a")
    removed: list[str] = []
    opened(opened.store.delete_image("a-0", lambda: removed.append("a-0.png")))
    assert removed == ["a-0.png"]
    assert opened(opened.store.image("a-0")) is None
    assert opened.get("a").status is JobStatus.SUCCEEDED


def test_store_image_whose_file_cannot_be_removed_stays(opened: Opened) -> None:
    opened.drawn("a")

    def fails() -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(StorageUnavailable):
        opened(opened.store.delete_image("a-0", fails))
    assert opened(opened.store.image("a-0")) is not None


# The file


def test_store_opened_again_has_everything(tmp_path: Path) -> None:
    first = Opened(tmp_path)
    first.drawn("a")
    waiting = first.insert("b", idempotency_key="k", body_sha256="d")
    first.close()
    second = Opened(tmp_path)
    assert second.get("b") == waiting
    assert second(second.store.by_idempotency_key("", "k", not_before=NOW)) == (waiting, "d")
    assert second(second.store.image("a-0")) is not None
    assert second.insert("c").seq > waiting.seq
    second.close()


def test_store_copied_while_open_has_what_was_answered(in_file: Opened, tmp_path: Path) -> None:
    """What lies on disk when an insert returns is enough: a power cut loses no job."""
    for number in range(20):
        in_file.insert(f"{number}")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tmp_path.glob("jobs.sqlite3*"):
        shutil.copy(path, copy)
    after = Opened(copy)
    assert len(after(after.store.list(status=None, limit=99, offset=0))) == 20
    after.close()


def test_store_open_by_another_is_refused(in_file: Opened) -> None:
    with pytest.raises(ConfigurationError, match="in use by another instance"):
        Opened(in_file.path.parent)


def test_store_refused_lock_keeps_the_holders_pid(in_file: Opened) -> None:
    """The lock file tells an operator who holds it, also after somebody else tried."""
    lock = in_file.path.with_suffix(".lock")
    before = lock.read_text()
    with pytest.raises(ConfigurationError):
        Opened(in_file.path.parent)
    assert lock.read_text() == before != ""


def test_store_same_key_twice_is_an_error_of_the_database(opened: Opened) -> None:
    opened.insert("a", idempotency_key="k")
    with pytest.raises((sqlite3.IntegrityError, IntegrityError)):
        opened.insert("b", idempotency_key="k")
    assert opened(opened.store.get("b")) is None


def test_store_full_refuses_and_goes_on_when_there_is_room(in_file: Opened) -> None:
    kept = in_file.insert("a")
    limit = "PRAGMA max_page_count = "

    async def set_limit(pages: int) -> None:
        await in_file.store._write(lambda db: db.execute(f"{limit}{pages}").fetchall())

    in_file(set_limit(1))
    with pytest.raises(StorageUnavailable) as caught:
        for number in range(200):
            in_file.insert(f"b{number}", _with_prompt("x" * 2000))
    assert caught.value.retry_after_seconds
    assert in_file.get("a") == kept
    in_file(set_limit(1_000_000))
    assert in_file.insert("c").status is JobStatus.QUEUED


def test_store_damaged_while_open_refuses_as_storage(in_file: Opened) -> None:
    """Not only a full disk: a database that is damaged refuses too, and no caller may die of it."""
    for number in range(50):
        in_file.drawn(f"{number}", "x" * 1500)
    with sqlite3.connect(in_file.path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    whole = in_file.path.read_bytes()
    with open(in_file.path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (len(whole) - 4096))
    with pytest.raises(StorageUnavailable):
        in_file.insert("y", _with_prompt("x" * 1500))
        in_file(in_file.store.list(status=None, limit=99, offset=0))
        in_file(in_file.store.images(limit=99, before=None, words="x"))


def test_schema_statuses_are_those_of_the_code() -> None:
    quoted = ", ".join(f"'{status.value}'" for status in JobStatus)
    newest = [text for text in sql.migrations().values() if "CHECK (status IN" in text][-1]
    assert f"CHECK (status IN ({quoted}))" in newest


def test_queries_each_have_a_use() -> None:
    """A query that nobody runs is a lie about the queue."""
    folder = Path(sql.__file__).parent.parent
    source = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.py"))
    assert [name for name in sql.queries() if f'"{name}"' not in source] == []


# Any order of changes


class LineMachine(RuleBasedStateMachine):
    """The store against a list in memory: same order, same states, ends are ends."""

    def __init__(self, server: PostgresServer | None = None) -> None:
        super().__init__()
        self.folder = Path(mkdtemp())
        self.stack = ExitStack()
        database = None
        if server is not None:
            database = PostgresDatabase(self.stack.enter_context(server.database()), "door")
        self.opened = Opened(self.folder, database)
        self.jobs: dict[str, tuple[JobStatus, int]] = {}  # (status, attempts) in order of the line

    def teardown(self) -> None:
        self.opened.close()
        self.stack.close()
        shutil.rmtree(self.folder)

    def ids(self, *statuses: JobStatus) -> list[str]:
        return [job_id for job_id, (status, _) in self.jobs.items() if status in statuses]

    def expect(self, job_id: str, changed: Job | None, after: JobStatus, attempts: int = 0) -> None:
        """The change must have happened exactly when it is legal."""
        status, before = self.jobs[job_id]
        assert (changed is not None) == (after in LEGAL_CHANGES[status])
        if changed is not None:
            self.jobs[job_id] = (after, before + attempts)
            assert (changed.status, changed.attempts) == self.jobs[job_id]

    @rule()
    def submit(self) -> None:
        job_id = f"job{len(self.jobs)}"
        self.opened.insert(job_id)
        self.jobs[job_id] = (JobStatus.QUEUED, 0)

    @rule()
    def claim(self) -> None:
        job = self.opened.claim()
        waiting = self.ids(JobStatus.QUEUED)
        assert (job.id if job else None) == (waiting[0] if waiting else None)
        if job is not None:
            self.expect(job.id, job, JobStatus.RUNNING, 1)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        store = self.opened.store
        changed = self.opened(store.cancel_queued(job_id, LATER)) or self.opened(
            store.cancel_running(job_id, LATER)
        )
        self.expect(job_id, changed, JobStatus.CANCELLED)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), back=st.booleans())
    def requeue(self, data: st.DataObject, back: bool) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        changed = self.opened(self.opened.store.requeue(job_id, take_attempt_back=back))
        if self.jobs[job_id][0] is not JobStatus.QUEUED:
            self.expect(job_id, changed, JobStatus.QUEUED, -int(back))
        else:
            assert changed is None

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        self.expect(job_id, self.opened.succeed(self.opened.get(job_id)), JobStatus.SUCCEEDED)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        store = self.opened.store
        changed = self.opened(store.fail(job_id, ERROR, LATER)) or self.opened(
            store.expire_queued(job_id, ERROR.message, LATER)
        )
        self.expect(job_id, changed, JobStatus.FAILED)

    @invariant()
    def store_agrees(self) -> None:
        listed = self.opened(self.opened.store.list(status=None, limit=999, offset=0))[::-1]
        assert {job.id: (job.status, job.attempts) for job in listed} == self.jobs
        assert [job.id for job in listed] == list(self.jobs)
        waiting = self.ids(JobStatus.QUEUED)
        assert [job_id for _, job_id, *_ in self.opened(self.opened.store.line())] == waiting
        for job in listed:
            assert (job.result is not None) == (job.status is JobStatus.SUCCEEDED)
            assert (job.error is not None) == (job.status is JobStatus.FAILED)
            assert (job.finished_at is not None) == job.status.is_final
            there = self.opened(self.opened.store.image(f"{job.id}-0")) is not None
            assert there == (job.status is JobStatus.SUCCEEDED)


TestLine = LineMachine.TestCase
TestLine.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_line_over_a_server_is_the_same(postgres: PostgresServer) -> None:
    fewer = settings(TestLine.settings, max_examples=4)
    run_state_machine_as_test(partial(LineMachine, postgres), settings=fewer)


def test_store_tells_the_inputs_of_open_jobs(opened: Opened) -> None:
    with_both = replace(REQUEST, image="ab" * 32, mask="cd" * 32, strength=1.0)

    async def test() -> None:
        store = opened.store
        await store.insert("a", with_both, NOW)
        await store.insert("b", replace(REQUEST, image="ef" * 32, strength=0.5), NOW)
        await store.insert("c", REQUEST, NOW)
        references = replace(REQUEST, reference_images=("12" * 32, "ef" * 32))
        await store.insert("d", references, NOW)
        looked_at = {"12" * 32, "ef" * 32}
        assert await store.inputs_of_open_jobs() == {"ab" * 32, "cd" * 32} | looked_at
        await store.cancel("a", LATER)
        await claim_next(store, "cpu", NOW)
        assert await store.inputs_of_open_jobs() == looked_at
        await store.cancel("d", LATER)
        assert await store.inputs_of_open_jobs() == {"ef" * 32}

    opened(test())
