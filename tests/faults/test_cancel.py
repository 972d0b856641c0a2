"""Who cancels, pauses, clears and tries again, at every moment of a job's life."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.handles import files_and_rows, gate, held, hold, paused
from tests.faults.listener import listen
from tests.service import RunningService

RACES = 60
# How much later (or earlier) the next one comes after a cancel that won (or lost); the longer the more alike came before.
STEP_SECONDS = 0.004
GROWTH = 1.5


def cancel(service: RunningService, job_id: str) -> dict:
    answer = service.client.post(f"/jobs/{job_id}/cancel")
    assert answer.status_code == 200, answer.text
    return answer.json()


# Cancel


def test_cancel_of_a_running_job_lets_the_next_one_begin(engine_service: RunningService) -> None:
    job_id, _ = hold(engine_service)
    (worker,) = engine_service.workers()
    behind = engine_service.submit()
    assert cancel(engine_service, job_id)["cancelled"] is True
    assert engine_service.wait_for_job(behind)["status"] == "succeeded"
    assert engine_service.workers()[0]["pid"] == worker["pid"]
    assert engine_service.job(job_id)["status"] == "cancelled"


def test_cancel_of_a_job_that_was_handed_over_early_is_never_drawn(
    engine_service: RunningService,
) -> None:
    present, name = hold(engine_service, "linger")
    job_id = engine_service.submit(f"hold {gate()}")
    engine_service.wait_until(lambda: job_id in engine_service.workers()[0]["job_ids"])
    assert cancel(engine_service, job_id)["cancelled"] is True
    engine_service.release(name)
    assert engine_service.wait_for_job(present)["status"] == "succeeded"
    assert engine_service.wait_for_job(engine_service.submit())["status"] == "succeeded"
    assert not [each for each in engine_service.files() if job_id in each]


@pytest.fixture(scope="module")
def raced(engine_service: RunningService) -> list[tuple[dict, dict, list[str]]]:
    """Jobs that were cancelled at about their last step: the answer, the job, the ends that were told.

    Where that step is, on this machine as busy as it is, the cancels before have shown.
    """
    outcomes = []
    after_seconds, step_seconds = 0.0, STEP_SECONDS
    with ThreadPoolExecutor(2) as pool:
        for _ in range(RACES):
            job_id, name = hold(engine_service)
            with listen(engine_service, job_id) as listener:
                listener.wait_for("progress")
                if after_seconds >= 0:
                    engine_service.release(name)
                time.sleep(max(0.0, after_seconds))
                cancels = [pool.submit(cancel, engine_service, job_id) for _ in range(2)]
                if after_seconds < 0:
                    time.sleep(-after_seconds)
                    engine_service.release(name)
                ends = [event.name for event in listener.wait_for_end()]
            answers = [each.result() for each in cancels]
            job = engine_service.wait_for_job(job_id)
            ends = [name for name in ends if name in ("succeeded", "failed", "cancelled")]
            is_alike = bool(outcomes) and outcomes[-1][1]["status"] == job["status"]
            outcomes += [(answer, job, ends) for answer in answers]
            step_seconds = step_seconds * GROWTH if is_alike else STEP_SECONDS
            after_seconds += step_seconds if job["status"] == "cancelled" else -step_seconds
    engine_service.wait_for_workers()
    return outcomes


def test_cancel_at_the_last_step_has_one_winner(raced: list[tuple[dict, dict, list[str]]]) -> None:
    assert {job["status"] for _, job, _ in raced} == {"succeeded", "cancelled"}
    for answer, job, ends in raced:
        assert answer["cancelled"] is (job["status"] == "cancelled")
        assert ends == [job["status"]]


def test_cancel_at_the_last_step_leaves_a_file_exactly_where_the_job_succeeded(
    raced: list[tuple[dict, dict, list[str]]], engine_service: RunningService
) -> None:
    files, named = files_and_rows(engine_service)
    assert files == named
    for _, job, _ in raced:
        assert (f"{job['id']}-0.png" in files) is (job["status"] == "succeeded")


@pytest.mark.parametrize("prompt", ["done", "raise"])
def test_cancel_after_the_end_changes_nothing(engine_service: RunningService, prompt: str) -> None:
    before = engine_service.wait_for_job(engine_service.submit(prompt))
    assert cancel(engine_service, before["id"])["cancelled"] is False
    assert engine_service.job(before["id"]) == before


# Once more


def test_retry_is_a_new_job_with_the_same_request(engine_service: RunningService) -> None:
    old = engine_service.wait_for_job(engine_service.submit("raise-once again", seed=7))
    answer = engine_service.client.post(f"/jobs/{old['id']}/retry")
    assert answer.status_code == 202 and answer.json()["id"] != old["id"]
    new = engine_service.wait_for_job(answer.json()["id"])
    assert (old["status"], new["status"]) == ("failed", "succeeded")
    assert new["request"] == old["request"]


def test_retry_leaves_the_old_job_as_it_was(engine_service: RunningService) -> None:
    old = engine_service.wait_for_job(engine_service.submit("raise"))
    new = engine_service.client.post(f"/jobs/{old['id']}/retry").json()["id"]
    engine_service.wait_for_job(new)
    assert engine_service.job(old["id"]) == old


def test_retry_of_a_job_that_has_not_ended_is_refused(engine_service: RunningService) -> None:
    with held(engine_service) as job_id:
        answer = engine_service.client.post(f"/jobs/{job_id}/retry")
    assert answer.status_code == 400 and "running" in answer.json()["detail"]


def test_retry_of_an_unknown_job_is_404(engine_service: RunningService) -> None:
    assert engine_service.client.post("/jobs/nobody/retry").status_code == 404


# The line


def test_clear_cancels_those_who_wait_and_no_other(engine_service: RunningService) -> None:
    with held(engine_service) as running:
        waiting = [engine_service.submit() for _ in range(5)]
        answer = engine_service.client.post("/queue/clear").json()
        assert engine_service.job(running)["status"] == "running"
    assert (answer["cleared"], answer["queued"]) == (5, 0)
    assert {engine_service.job(job_id)["status"] for job_id in waiting} == {"cancelled"}


def test_clear_tells_each_listener(engine_service: RunningService) -> None:
    with held(engine_service):
        job_id = engine_service.submit()
        with listen(engine_service, job_id) as listener:
            listener.wait_for("queued")
            engine_service.client.post("/queue/clear")
            assert listener.wait_for_end()[-1].name == "cancelled"


def test_pause_lets_the_running_job_end_and_begins_no_other(
    engine_service: RunningService,
) -> None:
    running, name = hold(engine_service)
    waiting = engine_service.submit()
    with paused(engine_service):
        engine_service.release(name)
        assert engine_service.wait_for_job(running)["status"] == "succeeded"
        engine_service.wait_for_workers()
        queue = engine_service.client.get("/queue").json()
        assert (queue["paused"], queue["queued"]) == (True, 1) and "paused" in queue["held"]
        assert engine_service.job(waiting)["status"] == "queued"
    assert engine_service.wait_for_job(waiting)["status"] == "succeeded"
