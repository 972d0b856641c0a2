"""Disks that are full, folders that are gone, a database that is locked or has no room."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import httpx2
import pytest

from tests.faults.handles import files_and_rows, gate, held, hold, paused, rows
from tests.faults.sender import Sender, head
from tests.service import ENGINE_MAIN, RunningService

GIB = 2**30
MIB = 2**20
# Other processes may fill or empty the same disk meanwhile, by less than this (an environment with torch
# has about one); of a small disk a third.
MARGIN_BYTES = 4 * GIB
BODY = {"prompt": "a red balloon", "width": 128, "height": 128}
# 5 for the lock; the rest is for a machine with other things to do. Twice the lock would be 9.5 at least.
LOCKED_ANSWER_SECONDS = 9


def margin_bytes(free_bytes: int) -> int:
    return min(MARGIN_BYTES, free_bytes // 3)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service that keeps back all but a margin of the disk it is on."""
    folder = tmp_path_factory.mktemp("stored")
    free_bytes = shutil.disk_usage(folder).free
    reserve = (free_bytes - margin_bytes(free_bytes)) // MIB
    running = RunningService(
        folder, main=ENGINE_MAIN, TEST_ENGINE="scripted", FLUX_MIN_FREE_MIB=str(reserve)
    ).start()
    try:
        running.wait_for_workers()
        yield running
    finally:
        running.close()


@contextmanager
def full_disk(service: RunningService) -> Iterator[None]:
    """Less is free than the service keeps in reserve."""
    path = service.folder / "filler"
    with open(path, "wb") as file:
        free_bytes = shutil.disk_usage(service.folder).free
        os.posix_fallocate(file.fileno(), 0, 2 * margin_bytes(free_bytes))
    try:
        yield
    finally:
        path.unlink()


def held_because(service: RunningService) -> str | None:
    return service.client.get("/queue").json()["held"]


# The disk


@pytest.mark.parametrize("path", ["/jobs", "/generate"])
def test_full_disk_refuses_new_jobs_with_the_reason(stored: RunningService, path: str) -> None:
    before = stored.client.get("/jobs").json()["jobs"]
    with full_disk(stored):
        answer = stored.client.post(path, json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (503, "storage")
    assert "FLUX_MIN_FREE_MIB" in answer.json()["detail"]
    assert int(answer.headers["Retry-After"]) >= 1
    assert stored.client.get("/jobs").json()["jobs"] == before


def test_full_disk_refuses_an_upload_before_its_body(stored: RunningService) -> None:
    with full_disk(stored), Sender(stored) as sender:
        sender.send(head(Content_Length=10**6))
        status, told = sender.answer()
    assert (status, told["code"]) == (507, "storage")
    assert "FLUX_MIN_FREE_MIB" in told["detail"]


def test_full_disk_makes_the_service_unready_with_the_reason(stored: RunningService) -> None:
    with full_disk(stored):
        answer = stored.client.get("/health/ready")
    assert answer.status_code == 503 and "FLUX_MIN_FREE_MIB" in answer.json()["reason"]


def test_full_disk_holds_waiting_jobs_until_there_is_room(stored: RunningService) -> None:
    with paused(stored):
        job_id = stored.submit()
    stored.wait_for_job(job_id)
    running, name = hold(stored)
    waiting = stored.submit()
    with full_disk(stored):
        stored.wait_until(lambda: "FLUX_MIN_FREE_MIB" in (held_because(stored) or ""))
        stored.release(name)
        stored.wait_until(lambda: stored.job(running)["status"] == "succeeded")
        stored.wait_until(lambda: all(each["state"] == "idle" for each in stored.workers()))
        meanwhile = stored.job(waiting)["status"]
    assert meanwhile == "queued"
    assert stored.wait_for_job(waiting)["status"] == "succeeded"


def test_picture_that_finds_no_room_fails_its_job_and_no_other(stored: RunningService) -> None:
    first = stored.submit("full")
    job = stored.wait_for_job(first)
    assert (job["status"], job["error"]["code"]) == ("failed", "storage")
    assert stored.wait_for_job(stored.submit())["status"] == "succeeded"
    assert not [name for name in stored.files() if first in name]


# The folder


@contextmanager
def folder_gone(service: RunningService, *, in_its_place: bool) -> Iterator[None]:
    """The output folder is away; `in_its_place` a file, which nobody can make a folder of."""
    away = service.output_dir.with_name("away")
    service.output_dir.rename(away)
    if in_its_place:
        service.output_dir.write_text("no folder")
    try:
        yield
    finally:
        if in_its_place:
            service.output_dir.unlink()
        away.rename(service.output_dir)


@pytest.mark.parametrize("in_its_place", [False, True], ids=["absent", "a-file"])
def test_folder_that_is_gone_refuses_new_jobs_by_name(
    stored: RunningService, in_its_place: bool
) -> None:
    with folder_gone(stored, in_its_place=in_its_place):
        answer = stored.client.post("/jobs", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (503, "storage")
    assert "output folder" in answer.json()["detail"]


@pytest.mark.parametrize("in_its_place", [False, True], ids=["absent", "a-file"])
def test_folder_that_is_gone_holds_waiting_jobs_until_it_is_back(
    stored: RunningService, in_its_place: bool
) -> None:
    with paused(stored):
        waiting = stored.submit()
        with folder_gone(stored, in_its_place=in_its_place):
            stored.client.post("/queue/resume")
            stored.wait_until(lambda: "output folder" in (held_because(stored) or ""))
            meanwhile = stored.job(waiting)["status"]
    assert meanwhile == "queued"
    assert stored.wait_for_job(waiting)["status"] == "succeeded"


def test_folder_that_goes_while_a_job_runs_costs_no_more_than_that_job(
    stored: RunningService,
) -> None:
    running, name = hold(stored)
    with folder_gone(stored, in_its_place=True):
        stored.release(name)
        job = stored.wait_for_job(running)
    assert (job["status"], job["error"]["code"]) == ("failed", "storage")
    assert stored.wait_for_job(stored.submit())["status"] == "succeeded"
    files, named = files_and_rows(stored)
    assert files == named


# A locked database


@contextmanager
def locked(service: RunningService) -> Iterator[None]:
    """Another process, this one, has the database to itself."""
    path = service.folder / "data" / "bf16.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as db:
        db.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            db.execute("ROLLBACK")


@pytest.fixture(scope="module")
def during_lock(stored: RunningService) -> dict:
    """What was answered while the database was locked, and how a job ended that was drawn meanwhile."""
    running, name = hold(stored)
    waiting = stored.submit()

    def submit() -> tuple[httpx2.Response, float]:
        began = time.monotonic()
        answer = stored.client.post("/jobs", json=BODY)
        return answer, time.monotonic() - began

    with locked(stored), ThreadPoolExecutor(8) as pool:
        stored.release(name)
        early = [pool.submit(submit) for _ in range(3)]
        time.sleep(0.5)  # these come while the others wait for the lock
        late = [pool.submit(submit) for _ in range(3)]
        cancelled = stored.client.post(f"/jobs/{waiting}/cancel")
        ready = stored.client.get("/health/ready")
        live = stored.client.get("/health/live")
        read = stored.client.get(f"/jobs/{running}")
        answers = [each.result() for each in early + late]
    return {
        "answers": answers,
        "cancelled": cancelled,
        "ready": ready,
        "live": live,
        "read": read,
        "finished": stored.wait_for_job(running),
        "waiting": stored.wait_for_job(waiting),
    }


def test_locked_database_refuses_new_jobs_with_a_time_to_come_back(during_lock: dict) -> None:
    for answer, _ in during_lock["answers"]:
        assert (answer.status_code, answer.json()["code"]) == (503, "storage")
        assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.limit
def test_locked_database_keeps_nobody_waiting_for_long(during_lock: dict) -> None:
    """Those who came while others waited for the lock do not wait for it once more."""
    assert max(seconds for _, seconds in during_lock["answers"]) < LOCKED_ANSWER_SECONDS


def test_locked_database_makes_the_service_unready_with_the_reason(during_lock: dict) -> None:
    assert during_lock["ready"].status_code == 503
    assert "database is locked" in during_lock["ready"].text


def test_locked_database_refuses_a_cancel(during_lock: dict) -> None:
    assert during_lock["cancelled"].status_code == 503


@pytest.mark.parametrize("what", ["live", "read"])
def test_locked_database_still_answers_readers(during_lock: dict, what: str) -> None:
    assert during_lock[what].status_code == 200


@pytest.mark.parametrize("what", ["finished", "waiting"])
def test_locked_database_loses_no_job(during_lock: dict, what: str) -> None:
    assert (during_lock[what]["status"], during_lock[what]["attempts"]) == ("succeeded", 1)


# A database without room


@contextmanager
def no_growth(service: RunningService) -> Iterator[None]:
    """The service's process may make no file longer than its database's log is now: each commit fails."""
    log = service.folder / "data" / "bf16.sqlite3-wal"
    pid = service.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (log.stat().st_size, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def during_full(stored: RunningService) -> dict:
    """What was answered while the database could not grow, and how a job ended that was drawn meanwhile."""
    running, name = hold(stored)
    waiting = stored.submit()
    with no_growth(stored):
        stored.release(name)
        answers = [stored.client.post("/jobs", json=BODY) for _ in range(5)]
        live = stored.client.get("/health/live")
        ready = stored.client.get("/health/ready")
        queue = stored.client.get("/queue").json()
        stored.wait_until(lambda: "refused" in stored.log())
        meanwhile = stored.job(running)["status"]
    return {
        "answers": answers,
        "live": live,
        "ready": ready,
        "queue": queue,
        "meanwhile": meanwhile,
        "finished": stored.wait_for_job(running),
        "waiting": stored.wait_for_job(waiting),
    }


def test_full_database_refuses_new_jobs_with_a_time_to_come_back(during_full: dict) -> None:
    for answer in during_full["answers"]:
        assert (answer.status_code, answer.json()["code"]) == (503, "storage")
        assert int(answer.headers["Retry-After"]) >= 1


def test_full_database_makes_the_service_unready_with_the_reason(during_full: dict) -> None:
    assert during_full["ready"].status_code == 503
    assert "cannot be written" in during_full["ready"].text
    assert "cannot be written" in during_full["queue"]["held"]


def test_database_that_has_room_again_makes_the_service_ready_by_itself(
    stored: RunningService, during_full: dict
) -> None:
    stored.wait_until(lambda: stored.client.get("/health/ready").status_code == 200)
    assert stored.client.get("/queue").json()["held"] is None


def test_full_database_still_answers(during_full: dict) -> None:
    assert during_full["live"].status_code == 200


def test_full_database_keeps_the_end_of_a_job_until_there_is_room(during_full: dict) -> None:
    assert during_full["meanwhile"] == "running"
    assert during_full["finished"]["status"] == "succeeded"


def test_full_database_loses_no_waiting_job(during_full: dict) -> None:
    assert (during_full["waiting"]["status"], during_full["waiting"]["attempts"]) == (
        "succeeded",
        1,
    )


def test_database_that_had_no_room_is_whole(stored: RunningService, during_full: dict) -> None:
    assert rows(stored, "PRAGMA integrity_check") == [("ok",)]
    files, named = files_and_rows(stored)
    assert files == named


def test_service_that_met_every_fault_draws_on(stored: RunningService) -> None:
    with held(stored):
        job_id = stored.submit(f"after all that {gate()}")
    assert stored.wait_for_job(job_id)["status"] == "succeeded"
