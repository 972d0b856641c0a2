"""A database of an earlier schema, opened by today's code; one of a later schema, refused."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from config.errors import ConfigurationError
from tests.utils.soak.bench import REQUEST, in_loop, request
from utils import sql
from utils.job import JobStatus
from utils.job_store import JobStore

AT = "2026-01-31T12:00:00.000Z"
STATUSES = ("succeeded", "failed", "cancelled", "running", "queued", "queued")
RESULT = {
    "images": [{"filename": "job1-0.png", "seed": 1, "width": 128, "height": 128, "size_bytes": 9}],
    "engine": "e",
    "precision": "bf16",
    "device": "cpu",
    "timings_ms": {"total": 1.0, "queued": 0.0},
}


def make_schema_1(path: Path) -> None:
    """What the first version leaves: jobs in every state, two pictures, and a number that was used and is gone."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(sql.migrations()[1])
        for number, status in enumerate(STATUSES, 1):
            db.execute(
                "INSERT INTO job (id, status, request, created_at, started_at, finished_at, attempts, worker, "
                "result, error_code, error_message, idempotency_key, body_sha256) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    f"job{number}",
                    status,
                    json.dumps(request(prompt=f"prompt {number}").to_json()),
                    AT,
                    None if status == "queued" else AT,
                    AT if status in ("succeeded", "failed", "cancelled") else None,
                    int(status != "queued"),
                    None if status == "queued" else "cpu",
                    json.dumps(RESULT) if status == "succeeded" else None,
                    "oom" if status == "failed" else None,
                    "too large" if status == "failed" else None,
                    f"key{number}" if number % 2 else None,
                    f"digest{number}" if number % 2 else None,
                ),
            )
        for number in range(2):
            db.execute(
                "INSERT INTO image VALUES (?, 'job1', ?, 1, 128, 128, 9, ?, 'bf16', 'e')",
                (f"job1-{number}", f"job1-{number}.png", AT),
            )
        db.execute(
            "INSERT INTO job (id, status, request, created_at) VALUES ('gone', 'queued', '{}', ?)",
            (AT,),
        )
        db.execute("DELETE FROM job WHERE id = 'gone'")
        db.execute("PRAGMA user_version = 1")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.sqlite3"
    make_schema_1(path)
    return path


def rows(path: Path, query: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute(query)]


def value(path: Path, query: str) -> Any:
    (row,) = rows(path, query)
    return next(iter(row.values()))


def upgrade(path: Path) -> None:
    """Open with today's code, and close."""

    async def scenario() -> None:
        await (await JobStore.open(path)).close()

    asyncio.run(scenario())


def backup_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.schema-1")


@contextmanager
def changed_migrations(change: Callable[[dict[int, str]], None]) -> Iterator[None]:
    """Migrations as `change` leaves them."""
    known = dict(sql.migrations())
    change(sql.migrations())
    try:
        yield
    finally:
        sql.migrations().clear()
        sql.migrations().update(known)


def test_migration_keeps_every_job(old: Path) -> None:
    before = rows(old, "SELECT * FROM job ORDER BY seq")
    upgrade(old)
    after = rows(old, "SELECT * FROM job ORDER BY seq")
    assert [{name: row[name] for name in before[0]} for row in after] == before
    assert len(after) == len(STATUSES)


def test_migration_keeps_every_image(old: Path) -> None:
    before = rows(old, "SELECT * FROM image ORDER BY id")
    upgrade(old)
    after = rows(old, "SELECT * FROM image ORDER BY id")
    assert [{name: row[name] for name in before[0]} for row in after] == before and len(before) == 2
    assert all(row["pinned"] == 0 for row in after)


def test_migration_fills_the_new_columns(old: Path) -> None:
    upgrade(old)
    assert {(row["model"], row["owner"]) for row in rows(old, "SELECT * FROM job")} == {
        (REQUEST.model, "")
    }


def test_migration_counts_what_earlier_jobs_drew(old: Path) -> None:
    upgrade(old)
    (row,) = rows(old, "SELECT * FROM usage")
    assert (row["job_id"], row["day"], row["owner"], row["tags"]) == ("job1", AT[:10], "", "[]")
    assert (row["images"], row["megapixels"], row["cost_usd"]) == (1, 0.016384, 0.0)


def test_migration_leaves_foreign_keys_whole(old: Path) -> None:
    upgrade(old)
    assert rows(old, "PRAGMA foreign_key_check") == []
    assert rows(old, "PRAGMA foreign_key_list(image)")[0]["table"] == "job"
    assert value(old, "PRAGMA integrity_check") == "ok"


def test_migration_sets_the_schemas_version(old: Path) -> None:
    upgrade(old)
    assert value(old, "PRAGMA user_version") == sql.schema_version()


def test_migration_gives_the_schema_of_a_new_database(old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.sqlite3"
    upgrade(old)
    upgrade(new)
    query = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name"
    assert rows(old, query) == rows(new, query)


@in_loop
async def test_migration_goes_on_counting_where_it_was(old: Path) -> None:
    """A number that was used is not used again, also when its row is gone."""
    store = await JobStore.open(old)
    job = await store.insert("new", REQUEST, AT)
    await store.close()
    assert job.seq == len(STATUSES) + 2


@in_loop
async def test_migration_leaves_jobs_that_todays_code_reads(old: Path) -> None:
    store = await JobStore.open(old)
    jobs = (await store.list(status=None, limit=99, offset=0))[::-1]
    line = await store.line()
    image = await store.image("job1-0")
    claimed = await store.claim("cpu", AT, models=[REQUEST.model], limit=1, choose=lambda h: h)
    await store.close()
    assert [job.status.value for job in jobs] == list(STATUSES)
    assert jobs[0].result is not None and jobs[0].result.images[0].filename == "job1-0.png"
    assert jobs[1].error is not None and jobs[1].error.code == "oom"
    assert [job_id for _, job_id, *_ in line] == ["job5", "job6"]
    assert image is not None and image.request.prompt == "prompt 1"
    assert [(job.id, job.status) for job in claimed] == [("job5", JobStatus.RUNNING)]


@in_loop
async def test_migration_keeps_idempotency_keys_for_those_without_a_key(old: Path) -> None:
    store = await JobStore.open(old)
    found = await store.by_idempotency_key("", "key5", not_before=AT)
    other = await store.by_idempotency_key("somebody", "key5", not_before=AT)
    await store.close()
    assert found is not None and (found[0].id, found[1]) == ("job5", "digest5")
    assert other is None


def test_migration_leaves_a_backup_that_opens(old: Path) -> None:
    before = rows(old, "SELECT * FROM job ORDER BY seq")
    upgrade(old)
    assert rows(backup_of(old), "SELECT * FROM job ORDER BY seq") == before
    assert value(backup_of(old), "PRAGMA user_version") == 1
    assert value(backup_of(old), "PRAGMA integrity_check") == "ok"


def test_migration_replaces_the_backup_of_an_attempt_that_failed(old: Path) -> None:
    backup_of(old).write_bytes(b"half a file")
    upgrade(old)
    assert value(backup_of(old), "PRAGMA user_version") == 1


def test_migration_of_a_new_database_makes_no_backup(tmp_path: Path) -> None:
    upgrade(tmp_path / "jobs.sqlite3")
    assert not list(tmp_path.glob("*.schema-*"))


def test_migration_is_made_once(old: Path) -> None:
    upgrade(old)
    backup_of(old).unlink()
    upgrade(old)
    assert not backup_of(old).exists()


def test_migration_that_came_to_a_newer_schema_is_refused(old: Path) -> None:
    newer = sql.schema_version() + 1
    with closing(sqlite3.connect(old)) as db:
        db.execute(f"PRAGMA user_version = {newer}")
    before = old.read_bytes()
    with pytest.raises(ConfigurationError, match=f"newer version .schema {newer}"):
        upgrade(old)
    assert old.read_bytes() == before


def test_migration_that_came_to_a_newer_schema_names_the_copy_to_go_back_to(old: Path) -> None:
    upgrade(old)
    with closing(sqlite3.connect(old)) as db:
        db.execute(f"PRAGMA user_version = {sql.schema_version() + 1}")
    with pytest.raises(ConfigurationError, match=f"rename {backup_of(old).name} to {old.name}"):
        upgrade(old)


def test_migration_whose_copy_cannot_be_made_changes_nothing(old: Path) -> None:
    before = rows(old, "SELECT * FROM job ORDER BY seq")
    backup_of(old).mkdir()  # something that no file takes the place of
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        upgrade(old)
    assert value(old, "PRAGMA user_version") == 1
    assert rows(old, "SELECT * FROM job ORDER BY seq") == before


@pytest.mark.parametrize(
    "broken",
    ["CREATE TABLE half (a); INSERT INTO nowhere VALUES (1);", "DROP TABLE image; this is no SQL;"],
)
def test_migration_that_fails_leaves_the_old_database_as_it_was(old: Path, broken: str) -> None:
    schema = "SELECT * FROM sqlite_schema ORDER BY name"
    before = [rows(old, query) for query in (schema, "SELECT * FROM job", "SELECT * FROM image")]

    def add(migrations: dict[int, str]) -> None:
        migrations[sql.schema_version() + 1] = broken

    with changed_migrations(add), pytest.raises(ConfigurationError):
        upgrade(old)
    after = [rows(old, query) for query in (schema, "SELECT * FROM job", "SELECT * FROM image")]
    assert after == before and value(old, "PRAGMA user_version") == 1


def test_migration_after_one_that_failed_succeeds(old: Path) -> None:
    def add(migrations: dict[int, str]) -> None:
        migrations[sql.schema_version() + 1] = "this is no SQL;"

    with changed_migrations(add), pytest.raises(ConfigurationError):
        upgrade(old)
    upgrade(old)
    assert value(old, "PRAGMA user_version") == sql.schema_version()
    assert len(rows(old, "SELECT * FROM job")) == len(STATUSES)


def test_migrations_are_numbered_without_a_gap() -> None:
    assert list(sql.migrations()) == list(range(1, sql.schema_version() + 1))
