"""Jobs that wait or run for longer than they may."""

from __future__ import annotations

import pytest

from tests.faults.handles import StartEngine, held, hold, kill_worker
from tests.faults.listener import Told, listen
from tests.service import RunningService

MAX_WAIT_SECONDS = 5
MAX_RUN_SECONDS = 3
LEAVE_SECONDS = 5  # enough for one that sees a cancel, on a machine that is busy


@pytest.fixture(scope="module")
def bounded(start_module_engine: StartEngine) -> RunningService:
    return start_module_engine(FLUX_MAX_WAIT_SECONDS=str(MAX_WAIT_SECONDS))


@pytest.fixture(scope="module")
def expired(bounded: RunningService) -> tuple[Told, int, dict]:
    """The end of a job that waited too long, how many waited then, and the job that it waited for."""
    with held(bounded) as running:
        with listen(bounded, bounded.submit()) as listener:
            end = listener.wait_for_end()[-1]
        queued = bounded.client.get("/queue").json()["queued"]
    return end, queued, bounded.job(running)


def test_job_that_waits_too_long_fails_as_timeout(expired: tuple[Told, int, dict]) -> None:
    end = expired[0]
    assert (end.name, end.data["error"]["code"], end.data["attempts"]) == ("failed", "timeout", 0)
    assert "FLUX_MAX_WAIT_SECONDS" in end.data["error"]["message"]


def test_job_that_waits_too_long_leaves_the_line(expired: tuple[Told, int, dict]) -> None:
    assert expired[1] == 0


def test_job_that_runs_longer_than_it_may_wait_is_drawn(expired: tuple[Told, int, dict]) -> None:
    assert (expired[2]["status"], expired[2]["attempts"]) == ("succeeded", 1)


def test_job_whose_worker_dies_after_that_is_tried_again_all_the_same(
    bounded: RunningService,
) -> None:
    """It has not waited for too long: it was being drawn."""
    job_id, name = hold(bounded)
    behind = bounded.wait_for_job(bounded.submit())
    assert behind["error"]["code"] == "timeout"  # so much time has passed
    with listen(bounded, job_id) as listener:
        kill_worker(bounded.workers()[0]["pid"])
        listener.wait_for("retrying")
        bounded.release(name)
        end = listener.wait_for_end()[-1]
    assert (end.name, end.data["attempts"]) == ("succeeded", 2)


@pytest.fixture(scope="module")
def limited(start_module_engine: StartEngine) -> RunningService:
    return start_module_engine(
        FLUX_MAX_RUN_SECONDS=str(MAX_RUN_SECONDS), FLUX_CANCEL_TIMEOUT_SECONDS=str(LEAVE_SECONDS)
    )


def test_job_that_runs_too_long_fails_as_timeout_and_its_worker_goes_on(
    limited: RunningService,
) -> None:
    job_id, _ = hold(limited)
    (before,) = limited.workers()
    behind = limited.submit()
    job = limited.wait_for_job(job_id)
    assert (job["status"], job["error"]["code"], job["attempts"]) == ("failed", "timeout", 1)
    assert "FLUX_MAX_RUN_SECONDS" in job["error"]["message"]
    assert limited.wait_for_job(behind)["status"] == "succeeded"
    assert limited.workers()[0]["pid"] == before["pid"]


def test_job_that_hangs_beyond_its_time_loses_its_worker(limited: RunningService) -> None:
    job_id, _ = hold(limited, "hang")
    (before,) = limited.workers()
    behind = limited.submit()
    assert limited.wait_for_job(job_id)["error"]["code"] == "timeout"
    assert limited.wait_for_job(behind)["status"] == "succeeded"
    assert limited.workers()[0]["pid"] != before["pid"]
