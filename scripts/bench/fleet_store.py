"""What a fleet's job store takes: a file beside a PostgreSQL server, one door beside several.

    python -m scripts.bench.fleet_store [--jobs 4000] [--pictures 40] [--url postgresql://...]

Jobs are appended by 32 at a time in each door, a process of its own; then one door claims all of them, one by one, as its
dispatcher does, and ends each with a row of a picture. Every change is committed and synced. With PostgreSQL there are
the line's bound over all doors, the lease that a claim looks at, and a picture of 1.9 MB for each of some jobs, which goes
into the database at one door and is fetched at another. Without `--url` a server is started in a temporary folder, with
its syncs on. Prints medians of three runs; figures of one machine compare only with each other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from config.errors import QueueFull
from config.settings import ROOT
from models.types import GenerationRequest, GenerationResult, ImageFile, OutputFormat
from utils.database import SpentBy
from utils.database.postgres import PostgresDatabase
from utils.fleet.shared_files import INPUT, LORA, PICTURE, SharedFiles
from utils.job_store import JobStore

RUNS = 3
AT_ONCE = 32
CLAIMS = 300
NOW = "2026-01-31T12:00:00.000Z"
PICTURE_BYTES = 1_900_000
REQUEST = GenerationRequest(
    prompt="a red balloon over green hills at sunset", negative_prompt=None, model="flux.1-schnell",
    backend="flux", width=1024, height=1024, num_inference_steps=4, guidance_scale=0.0,
    true_cfg_scale=1.0, seed=7, num_images=1, output_format=OutputFormat.PNG, output_quality=95, tags=(),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=4000)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--url", help="an empty database; what is in its tables goes")
    parser.add_argument(
        "--door", nargs=3, metavar=("WHERE", "NAME", "JOBS"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.door is not None:
        where, name, jobs = options.door
        return asyncio.run(_append_as_a_door(where, name, int(jobs)))
    with ExitStack() as stack:
        url = options.url or stack.enter_context(_own_server())
        print(
            "| store | doors | submits a second | with 10,000 waiting | claims and ends a second |"
        )
        print("|---|---|---|---|---|")
        for kind, doors in (("file", 1), ("PostgreSQL", 1), ("PostgreSQL", 2), ("PostgreSQL", 4)):
            runs = [_run(kind, doors, options.jobs, url) for _ in range(RUNS)]
            middle = [statistics.median(run[place] for run in runs) for place in range(3)]
            print(
                f"| {kind} | {doors} | " + " | ".join(f"{rate:,.0f}" for rate in middle) + " |",
                flush=True,
            )
        rates = [asyncio.run(_pictures(url, options.pictures)) for _ in range(RUNS)]
        kept, fetched = (statistics.median(rate[place] for rate in rates) for place in range(2))
        print(
            f"\npictures of {PICTURE_BYTES / 1e6:.1f} MB a second: {kept:.0f} kept, {fetched:.0f} fetched"
        )


def _run(kind: str, doors: int, jobs: int, url: str) -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory() as folder:
        where = url if kind == "PostgreSQL" else str(Path(folder) / "fleet.sqlite3")
        if kind == "PostgreSQL":
            asyncio.run(_empty(url))
        empty = _appended(where, doors, jobs)
        fill = 10_000 - jobs
        _appended(where, doors, max(0, fill))
        long = _appended(where, doors, jobs)
        return empty, long, asyncio.run(_claimed(where, CLAIMS))


def _appended(where: str, doors: int, jobs: int) -> float:
    """Jobs a second, appended by so many doors together."""
    if jobs == 0:
        return 0.0
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "scripts.bench.fleet_store", "--door", where, f"door{door}", str(jobs // doors)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for door in range(doors)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    spans = [json.loads(process.stdout.read()) for process in processes]  # type: ignore[union-attr]
    for process in processes:
        process.wait()
    return jobs // doors * doors / (max(end for _, end in spans) - min(begin for begin, _ in spans))


async def _append_as_a_door(where: str, name: str, jobs: int) -> None:
    store = await _store(where, name)
    print("ready", flush=True)
    sys.stdin.read()
    numbers = iter(range(jobs))
    prefix = f"{name}-{os.getpid()}"
    began = time.time()

    async def client() -> None:
        for number in numbers:
            await store.insert(f"{prefix}-{number}", REQUEST, NOW, refuse=_refuse)

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    print(json.dumps([began, time.time()]))
    await store.close()


def _refuse(waiting: int, own: int, spent: SpentBy) -> QueueFull | None:
    return QueueFull(f"{waiting} wait") if waiting >= 100_000 else None


async def _store(where: str, name: str) -> JobStore:
    if "://" not in where:
        return await JobStore.open(Path(where))
    return await JobStore.of(PostgresDatabase(where, name))


async def _empty(url: str) -> None:
    store = await _store(url, "door")
    tables = "job, image, image_removed, state, cloud_task, usage, lease, door, file, file_part"
    await store.write(lambda db: db.select(f"TRUNCATE {tables} RESTART IDENTITY", {}))
    await store.close()


async def _claimed(where: str, jobs: int) -> float:
    """Jobs a second, claimed and ended one after the other, beside the claims."""
    store = await _store(where, "door")
    if isinstance(store.database, PostgresDatabase):
        [lease] = await store.write(lambda db: db.rows("take_lease", {"seconds": 3600.0}))
        store.database.epoch = lease["epoch"]
    line = (await store.line())[:jobs]
    ending: set[asyncio.Task[Any]] = set()
    began = time.perf_counter()
    for seq, *_ in line:
        job = await store.claim_at(seq, "studio/gpu0", NOW)
        assert job is not None
        picture = ImageFile(
            filename=f"{job.id}-0.png", seed=7, width=1024, height=1024, size_bytes=1
        )
        result = GenerationResult(
            images=(picture,), engine="e", precision="bf16", device="d", timings_ms={"total": 1.0}
        )
        ending.add(asyncio.create_task(store.succeed(job, result, NOW, publish=lambda: None)))
    await asyncio.gather(*ending)
    rate = len(line) / (time.perf_counter() - began)
    await store.close()
    return rate


async def _pictures(url: str, count: int) -> tuple[float, float]:
    """Pictures a second into the database and out of it, one after the other."""
    await _empty(url)
    with tempfile.TemporaryDirectory() as folder:
        store = await _store(url, "door")
        assert isinstance(store.database, PostgresDatabase)
        doors = [Path(folder) / name for name in ("here", "there")]
        files = [
            SharedFiles(
                store.database, {PICTURE: door, INPUT: door, LORA: door}, lambda sha256: None
            )
            for door in doors
        ]
        [lease] = await store.write(lambda db: db.rows("take_lease", {"seconds": 3600.0}))
        store.database.epoch = lease["epoch"]
        doors[0].mkdir()
        pictures = []
        for number in range(count):
            job = await store.insert(f"{number}", REQUEST, NOW)
            await store.claim_at(job.seq, "w", NOW)
            pictures.append(
                ImageFile(
                    filename=f"{number}-0.png",
                    seed=7,
                    width=1024,
                    height=1024,
                    size_bytes=PICTURE_BYTES,
                )
            )
            (doors[0] / pictures[-1].filename).write_bytes(os.urandom(PICTURE_BYTES))
        began = time.perf_counter()
        for number, picture in enumerate(pictures):
            await files[0].keep_pictures(f"{number}", (picture,))
        kept = time.perf_counter()
        for picture in pictures:
            assert await files[1].fetch(PICTURE, picture.filename)
        fetched = time.perf_counter()
        await store.close()
    return count / (kept - began), count / (fetched - kept)


@contextmanager
def _own_server() -> Iterator[str]:
    from tests.postgres import PostgresServer

    server = PostgresServer(is_safe=True)
    try:
        version = server.sql("SHOW server_version")[0][0]
        print(f"PostgreSQL {version} on this machine, synced", flush=True)
        with server.database() as url:
            yield url
    finally:
        server.close()


if __name__ == "__main__":
    main()
