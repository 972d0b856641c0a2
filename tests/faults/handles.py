"""What the fault tests do with a service: gates for its jobs, its worker's end, the rows behind its answers."""

from __future__ import annotations

import os
import signal
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from tests.service import RunningService

StartEngine = Callable[..., RunningService]


def gate() -> str:
    """A name that no other job waits for."""
    return uuid.uuid4().hex


def hold(service: RunningService, word: str = "hold") -> tuple[str, str]:
    """A job that a worker has begun, and the name that releases it."""
    name = gate()
    job_id = service.submit(f"{word} {name}")
    service.wait_until(
        lambda: (service.job(job_id)["progress"] or {}).get("stage") in ("denoising", "decoding"),
        what=f"has not begun {job_id}",
    )
    return job_id, name


@contextmanager
def held(service: RunningService) -> Iterator[str]:
    """The worker is busy with a job meanwhile; yields its id."""
    job_id, name = hold(service)
    try:
        yield job_id
    finally:
        service.release(name)
        service.wait_for_job(job_id)


@contextmanager
def paused(service: RunningService) -> Iterator[None]:
    """No job begins meanwhile."""
    service.client.post("/queue/pause")
    try:
        yield
    finally:
        service.client.post("/queue/resume")


def kill_worker(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def rows(service: RunningService, query: str, *values: object) -> list[tuple]:
    """What the database of a service holds."""
    path = service.folder / "data" / "bf16.sqlite3"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute(query, values).fetchall()


def picture(service: RunningService, job_id: str) -> bytes:
    answer = service.client.get(f"/jobs/{job_id}/image")
    assert answer.status_code == 200, answer.text
    return answer.content


def files_and_rows(service: RunningService) -> tuple[set[str], set[str]]:
    """What lies in the output folder, and what the gallery says lies there."""
    return service.files(), {name for (name,) in rows(service, "SELECT filename FROM image")}
