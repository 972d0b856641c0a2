"""What PostgreSQL is for: several doors on one line, a server that goes and comes back, addresses that are wrong."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from api.services import make_plan
from config.errors import ConfigurationError, FluxError, QueueFull, StorageUnavailable
from config.settings import ROOT, load_settings
from models.precision import profile_of
from tests.postgres import ESCAPED, PASSWORD, PostgresServer
from tests.utils.soak.bench import in_loop
from tests.utils.test_job_store import LATER, NOW, REQUEST, claim_next, result, routing
from utils import sql
from utils.database import SpentBy
from utils.database import postgres as module
from utils.database.postgres import PostgresDatabase, shown
from utils.job import Job, JobError, JobStatus
from utils.job_store import JobStore

PROCESSES, THREADS, JOBS = 2, 3, 60


@asynccontextmanager
async def doors(url: str, number: int = 2) -> AsyncIterator[list[JobStore]]:
    """Stores of several doors; the first has the lease."""
    stores = [await routing(PostgresDatabase(url, "door0"))]
    for index in range(1, number):
        stores.append(await JobStore.of(PostgresDatabase(url, f"door{index}")))
    try:
        yield stores
    finally:
        for store in stores:
            await store.close()


def prepare(url: str) -> None:
    database = PostgresDatabase(url, "d")
    try:
        database.prepare()
    finally:
        database.close()


def epoch_of(store: JobStore) -> PostgresDatabase:
    assert isinstance(store.database, PostgresDatabase)
    return store.database


async def take_over(store: JobStore) -> None:
    """The lease of the one before ends, and this door has it."""
    await store.write(lambda db: db.select("UPDATE lease SET ends_at = clock_timestamp()", {}))
    [lease] = await store.write(lambda db: db.rows("take_lease", {"seconds": 3600.0}))
    epoch_of(store).epoch = lease["epoch"]


# Claiming


def test_claims_of_many_processes_and_threads_give_each_job_once_in_order(
    postgres: PostgresServer,
) -> None:
    """All of them think that they route, which cannot be; even then nothing begins twice."""
    with postgres.database() as url:

        async def fill() -> None:
            store = await routing(PostgresDatabase(url, "door"))
            await asyncio.gather(
                *(store.insert(f"{number:03}", REQUEST, NOW) for number in range(JOBS))
            )
            await store.close()

        asyncio.run(fill())
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.utils.database.claims", url, "door", str(THREADS)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(PROCESSES)
        ]
        claimed = [
            ids for process in processes for ids in json.loads(process.communicate(timeout=120)[0])
        ]
        assert sorted(job_id for ids in claimed for job_id in ids) == [
            f"{number:03}" for number in range(JOBS)
        ]
        assert all(ids == sorted(ids) for ids in claimed)
        attempts = postgres.sql("SELECT DISTINCT attempts, status FROM job", url.rpartition("/")[2])
        assert attempts == [(1, "running")]


@in_loop
async def test_claim_of_a_door_without_the_lease_takes_nothing(postgres: PostgresServer) -> None:
    with postgres.database() as url:
        async with doors(url) as (first, second):
            job = await second.insert("a", REQUEST, NOW)
            assert await claim_next(second, "w", NOW) == []
            assert await second.claim_at(job.seq, "w", NOW) is None
            assert [job.id for job in await claim_next(first, "w", NOW)] == ["a"]


@in_loop
async def test_claim_passes_by_a_job_that_somebody_is_changing(postgres: PostgresServer) -> None:
    with postgres.database() as url:
        async with doors(url) as (first, _):
            for job_id in "ab":
                await first.insert(job_id, REQUEST, NOW)
            with psycopg.connect(url) as other:
                other.execute("SELECT * FROM job WHERE id = 'a' FOR UPDATE")
                assert [job.id for job in await claim_next(first, "w", NOW)] == ["b"]
            assert [job.id for job in await claim_next(first, "w", NOW)] == ["a"]


LATE = {
    "succeed": lambda store, job: store.succeed(job, result(job.id), LATER, publish=lambda: None),
    "fail": lambda store, job: store.fail(job.id, JobError(code="x", message="x"), LATER),
    "requeue": lambda store, job: store.requeue(job.id, take_attempt_back=False),
    "cancel_running": lambda store, job: store.cancel_running(job.id, LATER),
}


@pytest.mark.parametrize("name", LATE)
@in_loop
async def test_door_that_lost_its_lease_changes_nothing_of_what_a_later_one_began(
    postgres: PostgresServer, name: str
) -> None:
    with postgres.database() as url:
        async with doors(url) as (first, second):
            await first.insert("a", REQUEST, NOW)
            [began] = await claim_next(first, "first's", NOW)
            await take_over(second)
            assert [job.id for job in await second.begun_by_earlier()] == ["a"]
            await second.requeue("a", take_attempt_back=True)
            [again] = await claim_next(second, "second's", NOW)
            assert again.attempts == 1
            late: Coroutine[Any, Any, Job | None] = LATE[name](first, began)
            assert await late is None
            assert await first.get("a") == again


@in_loop
async def test_result_of_a_door_that_lost_its_lease_counts_while_nobody_took_the_job(
    postgres: PostgresServer,
) -> None:
    with postgres.database() as url:
        async with doors(url) as (first, second):
            await first.insert("a", REQUEST, NOW)
            [job] = await claim_next(first, "w", NOW)
            await take_over(second)
            done = await first.succeed(job, result("a"), LATER, publish=lambda: None)
            assert done is not None and done.status is JobStatus.SUCCEEDED
            assert await second.begun_by_earlier() == []


@in_loop
async def test_job_is_cancelled_at_whichever_door(postgres: PostgresServer) -> None:
    with postgres.database() as url:
        async with doors(url) as (first, second):
            await first.insert("a", REQUEST, NOW)
            await claim_next(first, "w", NOW)
            cancelled = await second.cancel("a", LATER)
            assert cancelled is not None and cancelled.status is JobStatus.CANCELLED
            assert await second.cancel("a", LATER) is None


# The line


def at_most(number: int) -> Any:
    def refuse(waiting: int, own: int, spent: SpentBy) -> FluxError | None:
        return QueueFull(f"{waiting} wait") if waiting >= number else None

    return refuse


@in_loop
async def test_line_takes_no_more_than_it_may_by_however_many_doors(
    postgres: PostgresServer,
) -> None:
    with postgres.database() as url:
        async with doors(url, 3) as stores:
            outcomes = await asyncio.gather(
                *(
                    store.insert(f"{index}-{number}", REQUEST, NOW, refuse=at_most(40))
                    for number in range(30)
                    for index, store in enumerate(stores)
                ),
                return_exceptions=True,
            )
            taken = [outcome for outcome in outcomes if isinstance(outcome, Job)]
            refused = [outcome for outcome in outcomes if isinstance(outcome, QueueFull)]
            assert (len(taken), len(refused)) == (40, 50)
            assert sorted(job.seq for job in taken) == [seq for seq, *_ in await stores[0].line()]


@in_loop
async def test_line_of_one_lane_does_not_fill_the_other(postgres: PostgresServer) -> None:
    with postgres.database() as url:
        async with doors(url) as (first, second):
            await first.insert("a", REQUEST, NOW, refuse=at_most(1))
            cloud = replace(REQUEST, backend="flux-api")
            assert await second.insert("b", cloud, NOW, refuse=at_most(1))
            with pytest.raises(QueueFull):
                await second.insert("c", REQUEST, NOW, refuse=at_most(1))


@in_loop
async def test_places_become_visible_in_their_order(postgres: PostgresServer) -> None:
    """Whoever saw a place has seen all before it, however many doors append."""
    with postgres.database() as url:
        async with doors(url, 3) as stores:
            appending = [
                asyncio.create_task(store.insert(f"{index}-{number}", REQUEST, NOW))
                for number in range(40)
                for index, store in enumerate(stores)
            ]
            seen: list[int] = []
            while not all(task.done() for task in appending):
                now = [seq for seq, *_ in await stores[1].line()]
                assert now[: len(seen)] == seen
                seen = now


@in_loop
async def test_same_key_at_two_doors_at_once_is_one_job(postgres: PostgresServer) -> None:
    with postgres.database() as url:
        async with doors(url) as stores:
            outcomes = await asyncio.gather(
                *(
                    store.insert(f"{index}", REQUEST, NOW, idempotency_key="k", body_sha256="s")
                    for index, store in enumerate(stores)
                ),
                return_exceptions=True,
            )
            [job] = [outcome for outcome in outcomes if isinstance(outcome, Job)]
            for store in stores:
                found = await store.by_idempotency_key("", "k", not_before="")
                assert found is not None and found[0] == job


# Values


@in_loop
async def test_numbers_and_texts_at_their_bounds_are_kept(postgres: PostgresServer) -> None:
    large = replace(REQUEST, seed=2**53 - 1, prompt="\U0001f388" * 2000, negative_prompt="\\u0000")
    with postgres.database() as url:
        async with doors(url) as (first, second):
            await first.insert("a", large, NOW)
            job = await second.get("a")
            assert job is not None and job.request == large
            assert await second.list(status=None, limit=500, offset=2**53) == []


@in_loop
async def test_error_with_a_nul_in_it_ends_its_job(postgres: PostgresServer) -> None:
    """No text of PostgreSQL holds one, and a worker's last words may."""
    with postgres.database() as url:
        async with doors(url) as (first, _):
            await first.insert("a", REQUEST, NOW)
            await claim_next(first, "w", NOW)
            failed = await first.fail("a", JobError(code="internal", message="a\0b"), LATER)
            assert failed is not None and failed.error is not None
            assert failed.error.message == "a\N{REPLACEMENT CHARACTER}b"


# The tables


def test_doors_that_start_at_one_moment_make_the_tables_once(postgres: PostgresServer) -> None:
    errors: list[BaseException] = []
    name = f"fresh{len(postgres.sql('SELECT 1 FROM pg_database'))}"
    postgres.sql(f"CREATE DATABASE {name}")
    gate = threading.Barrier(4)

    def start() -> None:
        database = PostgresDatabase(postgres.url(name), "d")
        gate.wait()
        try:
            database.prepare()
        except BaseException as error:
            errors.append(error)
        database.close()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert postgres.sql("SELECT version FROM flux_schema", name) == [
        (number,) for number in sql.migrations(sql.POSTGRES)
    ]


def test_tables_of_a_newer_version_are_refused(postgres: PostgresServer) -> None:
    with postgres.database() as url:
        name = url.rpartition("/")[2]
        prepare(url)
        postgres.sql("INSERT INTO flux_schema VALUES (99)", name)
        try:
            with pytest.raises(ConfigurationError, match="newer version .schema 99"):
                prepare(url)
        finally:
            postgres.sql("DELETE FROM flux_schema WHERE version = 99", name)


def test_statuses_of_the_tables_are_those_of_the_code() -> None:
    quoted = ", ".join(f"'{status.value}'" for status in JobStatus)
    newest = [text for text in sql.migrations(sql.POSTGRES).values() if "CHECK (status IN" in text]
    assert f"CHECK (status IN ({quoted}))" in newest[-1]


def test_queries_of_the_server_each_have_a_use() -> None:
    folder = ROOT / "utils"
    source = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.py"))
    assert [name for name in sql.queries(sql.POSTGRES) if f'"{name}"' not in source] == []


# Addresses

WRONG = {
    "password": ("{u}flux:wrong@127.0.0.1:{port}/postgres", "does not take the user's password"),
    "user": ("{u}nobody:wrong@127.0.0.1:{port}/postgres", "does not take the user's password"),
    "database": (f"{{u}}flux:{ESCAPED}@127.0.0.1:{{port}}/nowhere", "there is no such database"),
    "port": (f"{{u}}flux:{ESCAPED}@127.0.0.1:1/postgres", "is PostgreSQL running there"),
    "host": (
        f"{{u}}flux:{ESCAPED}@no-such-host.invalid/postgres",
        "@no-such-host.invalid/postgres cannot be used",
    ),
    "number": (f"{{u}}flux:{ESCAPED}@127.0.0.1:port/postgres", "is no address of a database"),
    "option": (f"{{u}}flux:{ESCAPED}@127.0.0.1:{{port}}/postgres?color=red", "correct the address"),
}


AWAY = ("port", "host")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_address_is_told_without_its_password(postgres: PostgresServer, name: str) -> None:
    url, words = WRONG[name]
    url = url.format(u="postgresql://", port=postgres.port)
    with pytest.raises(ConfigurationError, match=re.escape(words)) as caught:
        prepare(url)
    said = str(caught.value)
    assert said.startswith("FLUX_DATABASE_URL")
    assert PASSWORD not in said and ESCAPED not in said and "wrong" not in said
    # A server that is away may be there at the next start, which the system makes by itself.
    assert (caught.value.exit_status == 75) == (name in AWAY)


@pytest.mark.parametrize("scheme", module.SCHEMES)
def test_every_scheme_of_an_address_is_taken(postgres: PostgresServer, scheme: str) -> None:
    with postgres.database() as url:
        database = PostgresDatabase(scheme + url.partition("://")[2], "d")
        database.prepare().close()
        database.close()


def test_shown_address_has_no_password() -> None:
    url = "postgres://flux:p%40ss@db.example:5433/flux?password=other"
    assert shown(url) == "postgresql+psycopg://flux:***@db.example:5433/flux"


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(ConfigurationError, match=r"setup_env.sh --fleet installs it"):
        prepare("postgresql://u@h/d")


def test_database_that_cannot_hold_every_prompt_is_refused(postgres: PostgresServer) -> None:
    postgres.sql("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")  # fmt: skip
    with pytest.raises(ConfigurationError, match="encoding is LATIN1"):
        prepare(postgres.url("latin"))


# A server that goes


@in_loop
async def test_cut_connections_are_made_anew(postgres: PostgresServer) -> None:
    with postgres.database() as url:
        async with doors(url) as (first, _):
            await first.insert("a", REQUEST, NOW)
            # Each is waited for: one that still lives would take the change below.
            postgres.sql(
                "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE application_name = 'flux-fleet'"
            )
            assert await first.get("a") is not None  # a reader asks once more by itself
            with pytest.raises(StorageUnavailable) as caught:
                await first.insert("b", REQUEST, NOW)
            assert caught.value.retry_after_seconds and first.refusal is not None
            await first.insert("c", REQUEST, NOW)
            assert first.refusal is None
            assert [job_id for _, job_id, *_ in await first.line()] == ["a", "c"]


# Who may have one


def test_single_service_refuses_a_database_that_is_a_fleets() -> None:
    settings = load_settings("bf16", {"FLUX_DATABASE_URL": "postgresql://u:geheim@h/d"})
    with pytest.raises(ConfigurationError, match="is for a fleet's front door") as caught:
        make_plan(settings, profile_of("bf16"))
    assert "geheim" not in str(caught.value)


def test_address_of_another_kind_of_database_is_refused_unseen() -> None:
    with pytest.raises(
        ConfigurationError, match="FLUX_DATABASE_URL = .hidden.: expected"
    ) as caught:
        load_settings("fleet", {"FLUX_DATABASE_URL": "mysql://u:geheim@h/d"})
    assert "geheim" not in str(caught.value)


def test_door_beside_others_without_a_database_is_refused() -> None:
    environ = {"PATH": os.environ["PATH"], "FLUX_FLEET_JOIN": "192.0.2.10", "FLUX_GPUS": "none"}
    done = subprocess.run(
        [sys.executable, "main_fleet.py"], cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 78 and "FLUX_DATABASE_URL is not set" in done.stderr


def test_service_with_a_file_imports_nothing_of_a_server() -> None:
    code = "import sys, main_bf16; main_bf16.build_app(); print({'sqlalchemy', 'psycopg'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"FLUX_GPUS": "none"}, capture_output=True
    )
    assert done.stdout.decode().strip() == "set()", done.stderr.decode()
