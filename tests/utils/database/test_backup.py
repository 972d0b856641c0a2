"""A fleet's database made, copied and put back by PostgreSQL's own programs, as `docs/fleet.md` has the commands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.operations.documents import documents
from tests.postgres import PASSWORD, PostgresServer, programs
from tests.utils.soak.bench import in_loop
from tests.utils.test_job_store import NOW, REQUEST, routing
from utils.database.postgres import PostgresDatabase
from utils.job_store import JobStore


def command(name: str) -> str:
    """The command of the document that begins with this."""
    lines = (
        line
        for document in documents()
        for block in document.blocks()
        if document.path.name == "fleet.md"
        for line in block.text.splitlines()
    )
    return next(line for line in lines if line.startswith(name))


def run(name: str, folder: Path, url: str, **environ: str) -> None:
    environ |= {"PATH": f"{programs()}:{os.environ['PATH']}", "FLUX_DATABASE_URL": url}
    done = subprocess.run(
        ["bash", "-c", command(name)], cwd=folder, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_database_of_the_document_takes_the_tables(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    run("createdb", tmp_path, "", PGHOST="127.0.0.1", PGPORT=str(postgres.port), PGUSER="flux", PGPASSWORD=PASSWORD)  # fmt: skip
    database = PostgresDatabase(postgres.url("flux"), "door")
    database.prepare()
    database.end()


@in_loop
async def test_dump_brings_the_jobs_back_and_their_numbers_go_on(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    with postgres.database() as url:
        store = await routing(PostgresDatabase(url, "door"))
        kept = await store.insert("kept", REQUEST, NOW)
        run("pg_dump", tmp_path, url)
        await store.insert("later", REQUEST, NOW)
        await store.close()
        run("pg_restore", tmp_path, url)
        store = await JobStore.of(PostgresDatabase(url, "door"))
        assert await store.get("kept") == kept
        assert await store.get("later") is None
        assert (await store.insert("new", REQUEST, NOW)).seq > kept.seq
        await store.close()
