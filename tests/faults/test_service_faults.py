"""The service's own process: killed, stopped in the middle of its writing, upgraded, begun on wrong hardware."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from config.settings import ROOT
from tests.faults.handles import StartEngine, files_and_rows, hold
from tests.service import ENGINE_MAIN, RunningService
from utils import sql

EXIT_CONFIGURATION = 78
REFUSED_SECONDS = 120
ANSWERED = 40


# kill -9


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """A service that was killed with one job running and twenty waiting, all of them at their end, and what lay there
    then. Before, a job found no model: `missing`, and `again`, when the model was there.
    """

    service: RunningService
    missing: dict
    again: dict
    jobs: list[dict]
    files: set[str]
    named: set[str]


@pytest.fixture(scope="module")
def restarted(start_module_engine: StartEngine) -> Restarted:
    service = start_module_engine(engine="needs_weights", FLUX_MAX_QUEUE_SIZE="10000")
    missing = service.wait_for_job(service.submit())
    service.release("weights")
    retried = service.client.post(f"/jobs/{missing['id']}/retry")
    assert retried.status_code == 202
    again = service.wait_for_job(retried.json()["id"])
    running, name = hold(service)
    waiting = [service.submit(num_images=1 + i % 2) for i in range(20)]
    service.kill()
    # As of a process that ends between a file and its row, a moment too short to hit.
    (service.output_dir / f"{running}-7.png").write_bytes(b"a picture without a row")
    service.release(name)
    service.start()
    jobs = [service.wait_for_job(job_id) for job_id in (running, *waiting)]
    files, named = files_and_rows(service)
    return Restarted(
        service=service, missing=missing, again=again, jobs=jobs, files=files, named=named
    )


def test_jobs_of_a_killed_service_all_succeed(restarted: Restarted) -> None:
    assert [job["status"] for job in restarted.jobs] == ["succeeded"] * 21


def test_jobs_of_a_killed_service_keep_their_order(restarted: Restarted) -> None:
    started = [job["started_at"] for job in restarted.jobs]
    assert started == sorted(started)


def test_jobs_of_a_killed_service_count_the_attempt_that_ran(restarted: Restarted) -> None:
    assert [job["attempts"] for job in restarted.jobs] == [2] + [1] * 20


def test_service_that_was_killed_has_a_row_for_each_file(restarted: Restarted) -> None:
    jobs = [restarted.again, *restarted.jobs]
    expected = {image["filename"] for job in jobs for image in job["result"]["images"]}
    assert restarted.files == restarted.named == expected


def test_pause_is_remembered_over_a_restart(restarted: Restarted) -> None:
    service = restarted.service
    service.client.post("/queue/pause")
    job_id = service.submit()
    service.kill()
    service.start()
    service.wait_for_workers()
    assert service.client.get("/queue").json()["paused"] is True
    assert service.job(job_id)["status"] == "queued"
    service.client.post("/queue/resume")
    assert service.wait_for_job(job_id)["status"] == "succeeded"


# Power


def test_power_loss_in_the_middle_of_traffic_loses_no_answered_job(
    restarted: Restarted, tmp_path: Path
) -> None:
    """Database and log as they are on disk while the process is stopped, opened elsewhere."""
    service = restarted.service
    answered: list[str] = []
    enough, over = threading.Event(), threading.Event()

    def send() -> None:
        while not over.is_set():
            answered.append(service.submit())
            if len(answered) >= ANSWERED:
                enough.set()

    senders = [threading.Thread(target=send) for _ in range(4)]
    for sender in senders:
        sender.start()
    try:
        assert enough.wait(60)
        os.kill(service.process.pid, signal.SIGSTOP)
        known = list(answered)
        copy = tmp_path / "copy"
        copy.mkdir()
        for path in (service.folder / "data").glob("bf16.sqlite3*"):
            if not path.name.endswith("-shm"):  # in memory, as far as a machine is concerned
                shutil.copy(path, copy / path.name)
    finally:
        over.set()
        os.kill(service.process.pid, signal.SIGCONT)
        for sender in senders:
            sender.join()
    with closing(sqlite3.connect(copy / "bf16.sqlite3")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = {job_id for (job_id,) in db.execute("SELECT id FROM job")}
    assert len(known) >= ANSWERED and set(known) <= found


# Upgrade


@pytest.fixture
def old_data(tmp_path: Path, engine_service: RunningService) -> tuple[Path, list[str]]:
    """A database of the first schema with waiting jobs, and a job that its service left running."""
    job = engine_service.submit()
    engine_service.wait_for_job(job)
    request = sqlite3.connect(engine_service.folder / "data" / "bf16.sqlite3")
    with closing(request):
        (text,) = request.execute("SELECT request FROM job WHERE id = ?", (job,)).fetchone()
    path = tmp_path / "data" / "bf16.sqlite3"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(f"{sql.migrations()[1]} PRAGMA user_version = 1;")
        for i in range(4):
            db.execute(
                "INSERT INTO job (id, status, request, created_at, attempts) VALUES (?, ?, ?, ?, ?)",
                (f"old{i}", "queued" if i else "running", text, "2026-01-01T00:00:00Z", int(not i)),
            )
    return path, [f"old{i}" for i in range(4)]


def test_upgrade_runs_the_jobs_of_the_old_schema_in_their_order(
    start_engine: StartEngine, tmp_path: Path, old_data: tuple[Path, list[str]]
) -> None:
    path, job_ids = old_data
    service = start_engine(folder=tmp_path)
    jobs = [service.wait_for_job(job_id) for job_id in job_ids]
    assert [job["status"] for job in jobs] == ["succeeded"] * 4
    started = [job["started_at"] for job in jobs]
    assert started == sorted(started)
    assert list(path.parent.glob("bf16.sqlite3.*1*")), "no copy of the old schema was kept"


# Hardware


def test_gpu_that_is_not_there_refuses_the_start_by_name(tmp_path: Path) -> None:
    service = RunningService(tmp_path, main=ENGINE_MAIN, TEST_ENGINE="scripted", FLUX_GPUS="6,7")
    service.start(wait=False)
    try:
        assert service.process.wait(REFUSED_SECONDS) == EXIT_CONFIGURATION
    finally:
        service.process.kill()
        service.client.close()
    assert "GPU 6, 7 is asked for" in service.log() and str(ROOT) not in service.log()


def test_jobs_for_what_is_not_here_any_more_are_told_and_kept(start_engine: StartEngine) -> None:
    service = start_engine(TEST_ANYWHERE="1", wait_for_workers=False)
    service.client.post("/queue/pause")
    waiting = [service.submit(model="flux-schnell", width=512, height=512) for _ in range(2)]
    service.stop()
    del service._environ["TEST_ANYWHERE"]  # as with a card that is gone
    service.start()
    told = [line for line in service.log().splitlines() if "action=jobs_stranded" in line]
    assert len(told) == 1 and "2 waiting jobs are for flux-schnell" in told[0]
    assert [service.job(job_id)["status"] for job_id in waiting] == ["queued"] * 2


# Models


def test_job_whose_model_is_missing_fails_as_such_and_one_after_it_loads(
    restarted: Restarted,
) -> None:
    missing, again = restarted.missing, restarted.again
    assert (missing["status"], missing["error"]["code"]) == ("failed", "model_unavailable")
    assert again["status"] == "succeeded"
