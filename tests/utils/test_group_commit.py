"""Changes that come at once are one transaction on disk, and strangers to each other all the same."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from config.errors import StorageUnavailable
from tests.utils.soak.bench import REQUEST, in_loop, request
from utils import job_store
from utils.job import Job
from utils.job_store import JobStore

NOW = "2026-01-31T12:00:00.000Z"
HANG_SECONDS = 30.0


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[JobStore]:
    store = await JobStore.open(folder / "jobs.sqlite3")
    try:
        yield store
    finally:
        await store.close()


async def together(store: JobStore, *changes: Any) -> list[Any]:
    """Await the coroutines so that their changes wait for the writer together; returns values or errors."""
    gate, is_held = threading.Event(), threading.Event()

    def hold(db: sqlite3.Connection) -> None:
        is_held.set()
        gate.wait(HANG_SECONDS)

    blocking = asyncio.create_task(store._write(hold))
    while not is_held.is_set():
        await asyncio.sleep(0.001)
    tasks = [asyncio.ensure_future(change) for change in changes]
    await asyncio.sleep(0)
    gate.set()
    await blocking
    return await asyncio.gather(*tasks, return_exceptions=True)


def committed(folder: Path) -> list[str]:
    """The ids that another connection sees."""
    with closing(sqlite3.connect(folder / "jobs.sqlite3")) as db:
        return [row[0] for row in db.execute("SELECT id FROM job ORDER BY seq")]


def groups(store: JobStore) -> list[int]:
    """Sizes of the transactions from now on."""
    sizes: list[int] = []
    commit = store._commit

    def counted(group: list[Any]) -> Any:
        sizes.append(len(group))
        return commit(group)

    store._commit = counted  # type: ignore[method-assign]
    return sizes


def raising(error: Exception) -> Callable[[sqlite3.Connection], None]:
    def change(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO state (key, value) VALUES ('half', 'done')")
        raise error

    return change


@in_loop
async def test_store_many_changes_at_once_are_few_transactions(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        sizes = groups(store)
        jobs = await together(store, *(store.insert(f"{i}", REQUEST, NOW) for i in range(100)))
        assert [job.id for job in jobs] == [f"{i}" for i in range(100)]
        assert [job.seq for job in jobs] == list(range(1, 101))
        assert sizes == [1, 100]


@in_loop
async def test_store_group_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_store, "MAX_GROUP", 8)
    async with opened(tmp_path) as store:
        sizes = groups(store)
        await together(store, *(store.insert(f"{i}", REQUEST, NOW) for i in range(20)))
        assert sizes == [1, 8, 8, 4]


@in_loop
async def test_store_change_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        outcomes = await together(
            store,
            store.insert("a", REQUEST, NOW),
            store.insert("a", REQUEST, NOW),
            store.insert("b", REQUEST, NOW),
        )
        assert isinstance(outcomes[0], Job) and isinstance(outcomes[2], Job)
        assert isinstance(outcomes[1], sqlite3.IntegrityError)
        assert committed(tmp_path) == ["a", "b"]


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), KeyError("a bug"), sqlite3.ProgrammingError("a bug")]
)
@in_loop
async def test_store_unexpected_error_is_told_to_its_caller_alone(
    tmp_path: Path, error: Exception
) -> None:
    async with opened(tmp_path) as store:
        outcomes = await together(
            store,
            store.insert("a", REQUEST, NOW),
            store._write(raising(error)),
            store.insert("b", REQUEST, NOW),
        )
        told = outcomes[1]
        assert told is error or told.__cause__ is error
        assert committed(tmp_path) == ["a", "b"]
        assert await store.read_state("half") is None


@in_loop
async def test_store_publish_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    from tests.utils.test_job_store import result

    def refuse() -> None:
        raise OSError(28, "No space left on device")

    async with opened(tmp_path) as store:
        await store.insert("a", REQUEST, NOW)
        (job,) = await store.claim("cpu", NOW, models=["embedded"], limit=1, choose=lambda h: h)
        outcomes = await together(
            store,
            store.insert("b", REQUEST, NOW),
            store.succeed(job, result("a"), NOW, publish=refuse),
            store.insert("c", REQUEST, NOW),
        )
        assert isinstance(outcomes[1], StorageUnavailable)
        assert committed(tmp_path) == ["a", "b", "c"]
        assert await store.get("a") == job


@in_loop
async def test_store_locked_by_another_fails_the_whole_group(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store._write(lambda db: db.execute("PRAGMA busy_timeout = 20").fetchall())
        with closing(sqlite3.connect(tmp_path / "jobs.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            outcomes = await asyncio.gather(
                *(store.insert(f"{i}", REQUEST, NOW) for i in range(5)), return_exceptions=True
            )
            other.execute("ROLLBACK")
        assert all(isinstance(outcome, StorageUnavailable) for outcome in outcomes)
        assert committed(tmp_path) == []
        assert (await store.insert("after", REQUEST, NOW)).id == "after"


@in_loop
async def test_store_full_in_the_middle_of_a_group_fails_and_commits_nothing(
    tmp_path: Path,
) -> None:
    """SQLite gives the whole transaction up; nobody may be told that it is on disk."""
    async with opened(tmp_path) as store:
        await store._write(lambda db: db.execute("PRAGMA max_page_count = 1").fetchall())
        outcomes = await together(
            store,
            *(store.insert(f"{i}", request(prompt="x" * 2000), NOW) for i in range(60)),
        )
        there = committed(tmp_path)
        assert any(isinstance(outcome, StorageUnavailable) for outcome in outcomes)
        told = [outcome.id for outcome in outcomes if isinstance(outcome, Job)]
        assert told == there
        await store._write(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchall())
        assert (await store.insert("after", REQUEST, NOW)).id == "after"


@in_loop
async def test_store_change_whose_caller_left_is_made(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        inserting = asyncio.create_task(store.insert("a", REQUEST, NOW))
        await asyncio.sleep(0)
        inserting.cancel()
        await asyncio.gather(inserting, return_exceptions=True)
        await store.insert("b", REQUEST, NOW)
        assert committed(tmp_path) == ["a", "b"]


@in_loop
async def test_store_closed_commits_what_was_asked_for_before(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        tasks = [asyncio.create_task(store.insert(f"{i}", REQUEST, NOW)) for i in range(20)]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert len(committed(tmp_path)) == 20


# Claims


@in_loop
async def test_store_claim_takes_only_the_models_it_may(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for number, model in enumerate(("x", "y", "x", "z", "y")):
            await store.insert(f"{number}", request(model=model), NOW)
        claimed = await store.claim("w", NOW, models=["y", "z"], limit=9, choose=lambda h: h)
        assert [job.id for job in claimed] == ["1", "3", "4"]
        assert [job_id for _, job_id, *_ in await store.line()] == ["0", "2"]


@in_loop
async def test_store_claim_of_no_model_takes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.insert("a", REQUEST, NOW)
        assert await store.claim("w", NOW, models=[], limit=9, choose=lambda h: h) == []


@in_loop
async def test_store_claim_shows_the_oldest_and_takes_the_chosen(tmp_path: Path) -> None:
    shown: list[list[str]] = []

    def choose(head: list[Job]) -> list[Job]:
        shown.append([job.id for job in head])
        return head[1:2]

    async with opened(tmp_path) as store:
        for number in range(5):
            await store.insert(f"{number}", REQUEST, NOW)
        claimed = await store.claim("w", NOW, models=["embedded"], limit=3, choose=choose)
        assert shown == [["0", "1", "2"]]
        assert [(job.id, job.worker, job.attempts) for job in claimed] == [("1", "w", 1)]
        assert [job_id for _, job_id, *_ in await store.line()] == ["0", "2", "3", "4"]


@in_loop
async def test_store_claim_whose_chooser_breaks_takes_nothing(tmp_path: Path) -> None:
    def choose(head: list[Job]) -> list[Job]:
        raise RuntimeError("a bug")

    async with opened(tmp_path) as store:
        await store.insert("a", REQUEST, NOW)
        with pytest.raises(RuntimeError):
            await store.claim("w", NOW, models=["embedded"], limit=3, choose=choose)
        assert len(await store.line()) == 1


@in_loop
async def test_store_claims_at_once_give_each_job_once_in_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for number in range(10):
            await store.insert(f"{number}", REQUEST, NOW)
        claims = await together(
            store,
            *(
                store.claim(f"w{i}", NOW, models=["embedded"], limit=2, choose=lambda h: h)
                for i in range(6)
            ),
        )
        assert [job.id for jobs in claims for job in jobs] == [f"{i}" for i in range(10)]


@pytest.mark.parametrize("text", ['"', "\\", "\u2028", "a\x00b", "🎈", "' || 1 --", "[1]", ""])
@in_loop
async def test_store_jobs_that_go_in_together_keep_their_text(tmp_path: Path, text: str) -> None:
    wanted = request(prompt=f"a{text}", tags=(text,), negative_prompt=None)
    text = text.replace("\x00", "")  # no header holds one
    async with opened(tmp_path) as store:
        await together(
            store,
            store.insert("a", wanted, NOW, owner=text, idempotency_key=f"k{text}", body_sha256="s"),
            store.insert("b", REQUEST, NOW),
        )
        job = await store.get("a")
        assert job is not None and (job.request, job.owner) == (wanted, text)
        found = await store.by_idempotency_key(text, f"k{text}", not_before="")
        assert found is not None and found[0].id == "a"


@in_loop
async def test_store_job_that_no_file_can_hold_takes_no_other_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        outcomes = await together(
            store,
            store.insert("a", REQUEST, NOW),
            store.insert("b", request(prompt="half a pair: \ud800"), NOW),
            store.insert("c", REQUEST, NOW),
        )
        assert isinstance(outcomes[1], UnicodeEncodeError)
        assert [outcomes[0].seq, outcomes[2].seq] == [1, 2]
        assert committed(tmp_path) == ["a", "c"]


@in_loop
async def test_store_new_jobs_and_other_changes_happen_in_their_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        sizes = groups(store)
        outcomes = await together(
            store,
            store.insert("a", REQUEST, NOW),
            store.insert("b", REQUEST, NOW),
            store.cancel("b", NOW),
            store.cancel("c", NOW),
            store.insert("c", REQUEST, NOW),
        )
        assert sizes == [1, 5]
        assert outcomes[2] is not None and outcomes[2].id == "b"
        assert outcomes[3] is None  # it was not there yet
        assert [outcomes[index].seq for index in (0, 1, 4)] == [1, 2, 3]
