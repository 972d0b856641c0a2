"""Submits through HTTP beside Huey with SQLite and Celery with Redis: same body, same framework, in turns.

    python -m scripts.bench.rivals submits && apt-get install redis-server
    python -m scripts.bench.submits [--jobs 10000]

Nobody works: jobs wait, 10,000 of them at the end. The other two are one FastAPI route on uvicorn that checks the
same fields with pydantic and enqueues the body as a task. What a 200 or 202 promises is not the same: our job is
checked against the model, has its seed, its place in the line and a row that was synced before the answer;
`fsync` says whether Huey's SQLite waits for the disk as ours does, and Redis keeps its list in memory and
writes it when it likes (`appendonly no`, its default), or before the answer (`appendfsync always`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from scripts.bench import rivals
from scripts.bench.comparison import HEADER, Comparison
from scripts.bench.queue import (
    CONNECTIONS,
    ROUNDS,
    Address,
    Rounds,
    free_port,
    running_service,
    until_up,
)

APP = """
import sys, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field
{setup}
class Body(BaseModel):
    prompt: str = Field(min_length=1, max_length=10_000)
    width: int = Field(1024, ge=64, le=4096)
    height: int = Field(1024, ge=64, le=4096)
    num_inference_steps: int | None = None
    seed: int | None = None
app = FastAPI()
@app.get("/health/live")
async def live() -> dict:
    return {{}}
@app.post("/jobs", status_code=202)
{route}
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_config=None, access_log=False)
"""
# A `def` route runs in the framework's threads, as one that waits for a disk or a socket must.
HUEY = APP.format(
    setup="""
from huey import SqliteHuey
huey = SqliteHuey(filename=sys.argv[2] + "/huey.db", fsync=sys.argv[3] == "fsync", results=False)
@huey.task()
def draw(body): pass
""",
    route="""
def submit(body: Body) -> dict:
    task = draw.s(body.model_dump())
    huey.enqueue(task)
    return {"id": task.id, "status": "queued"}
""",
)
CELERY = APP.format(
    setup="""
from celery import Celery
celery = Celery(broker="redis://127.0.0.1:" + sys.argv[2] + "/0")
celery.conf.task_ignore_result = True
@celery.task
def draw(body): pass
""",
    route="""
def submit(body: Body) -> dict:
    return {"id": draw.delay(body.model_dump()).id, "status": "queued"}
""",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs that wait at the end")
    jobs = parser.parse_args().jobs
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )
    if shutil.which("redis-server") is None:
        raise SystemExit("redis-server is not installed (Debian: apt install redis-server)")
    try:
        python = rivals.python("submits")
    except rivals.MissingRival as error:
        raise SystemExit(str(error)) from None
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(Path(folder), jobs, python))


async def _measure(folder: Path, jobs: int, python: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        service = await stack.enter_async_context(
            running_service(folder / "queue", FLUX_MAX_QUEUE_SIZE=str(jobs + 5000))
        )
        service.client.post("/queue/pause").raise_for_status()
        ours = Rounds(Address(service.port, "POST", "/jobs"), service.process)
        others = {}
        for name, code, arguments in (
            ("Huey, SQLite synced", HUEY, (await _folder(folder, "synced"), "fsync")),
            ("Huey, SQLite not synced", HUEY, (await _folder(folder, "plain"), "no")),
            ("Celery, Redis synced", CELERY, (await _redis(stack, folder, "always"),)),
            ("Celery, Redis in memory", CELERY, (await _redis(stack, folder, "no"),)),
        ):
            others[name] = await stack.enter_async_context(_app(python, code, *arguments))
        everybody = [ours, *others.values()]
        for each in everybody:
            await each.warm_up()
        for turn in range(ROUNDS):
            for each in everybody if turn % 2 else reversed(everybody):
                await each.send(jobs // ROUNDS)
        print(f"{jobs} submits each, {CONNECTIONS} connections, {ROUNDS} rounds\n")
        print(HEADER.format(other="the other"))
        for name, each in others.items():
            row = Comparison(what=f"{name}: submits a second", ours=ours.rates, others=each.rates, unit="/s", wanted="> 1")  # fmt: skip
            print(row.row())
        for name, each in others.items():
            row = Comparison(what=f"{name}: processor time of the HTTP process", ours=[ours.cpu_us], others=[each.cpu_us], unit="us")  # fmt: skip
            print(row.row())


async def _folder(folder: Path, name: str) -> str:
    (folder / name).mkdir()
    return str(folder / name)


@contextlib.asynccontextmanager
async def _app(python: str, code: str, *arguments: str) -> AsyncIterator[Rounds]:
    port = free_port()
    process = subprocess.Popen([python, "-c", code, str(port), *arguments])
    try:
        await until_up(process, port)
        yield Rounds(Address(port, "POST", "/jobs"), psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(30)


async def _redis(stack: contextlib.AsyncExitStack, folder: Path, sync: str) -> str:
    """A Redis of its own; its port."""
    port, place = free_port(), folder / f"redis-{sync}"
    place.mkdir()
    appends = ["--appendonly", "yes", "--appendfsync", "always"] if sync == "always" else []
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--dir", str(place), "--save", "", *appends],
        stdout=subprocess.DEVNULL,
    )

    async def end() -> None:
        process.terminate()
        process.wait(30)

    stack.push_async_callback(end)
    await until_up(process, port)
    return str(port)


if __name__ == "__main__":
    main()
