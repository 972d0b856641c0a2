"""Workers that are killed, that hang, that lose their device: what becomes of their jobs and of the others."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.faults.handles import (
    StartEngine,
    files_and_rows,
    gate,
    held,
    hold,
    kill_worker,
    paused,
    picture,
    rows,
)
from tests.faults.listener import Listener, listen
from tests.service import START_SECONDS, RunningService

# A limit, not a wait: a worker's start takes as long as its libraries do.
REPLACED_SECONDS = START_SECONDS
# Another width than other jobs have: such a job is drawn alone.
ANOTHER_PX = 144


def worker(service: RunningService) -> dict:
    (only,) = service.workers()
    return only


def deaths(service: RunningService) -> int:
    return worker(service)["deaths_last_10_minutes"]


# Killed at a step


@pytest.fixture(scope="module")
def mortal(start_module_engine: StartEngine) -> RunningService:
    """The more often its worker has died, the longer it waits for the next: half as long as by default."""
    return start_module_engine(TEST_RESTART_SECONDS="0.25")


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """A job whose worker was killed at a step, and the same request undisturbed."""

    service: RunningService
    job: dict
    heard: Listener
    alike: str


@pytest.fixture(scope="module")
def killed(mortal: RunningService) -> Iterator[Killed]:
    name = gate()
    body = {"prompt": f"hold {name}", "seed": 11, "num_inference_steps": 3, "num_images": 2}
    job_id = mortal.submit(**body)
    with listen(mortal, job_id) as heard:
        heard.wait_for("progress", lambda data: data["step"] >= 1)
        kill_worker(worker(mortal)["pid"])
        heard.wait_for("retrying")
        mortal.release(name)
        job = mortal.wait_for_job(job_id, seconds=REPLACED_SECONDS)
        heard.wait_for_end()
        alike = mortal.submit(**body)
        mortal.wait_for_job(alike)
        yield Killed(service=mortal, job=job, heard=heard, alike=alike)


def test_job_of_a_killed_worker_succeeds_at_its_second_attempt(killed: Killed) -> None:
    assert (killed.job["status"], killed.job["attempts"]) == ("succeeded", 2)


def test_job_of_a_killed_worker_keeps_its_seed(killed: Killed) -> None:
    assert [image["seed"] for image in killed.job["result"]["images"]] == [11, 12]


def test_job_of_a_killed_worker_has_the_bytes_of_an_undisturbed_one(killed: Killed) -> None:
    assert picture(killed.service, killed.job["id"]) == picture(killed.service, killed.alike)


def test_job_of_a_killed_worker_leaves_one_result(killed: Killed) -> None:
    found = rows(
        killed.service, "SELECT count(*), count(DISTINCT filename) FROM image WHERE job_id = ?",
        killed.job["id"],
    )  # fmt: skip
    assert found == [(2, 2)]
    assert len([name for name in killed.service.files() if killed.job["id"] in name]) == 2


def test_job_of_a_killed_worker_tells_its_retry_and_one_end(killed: Killed) -> None:
    told = killed.heard.names
    assert told.count("retrying") == 1 and told.count("succeeded") == 1
    assert told.index("retrying") < told.index("succeeded") == len(told) - 1
    after = told[told.index("retrying") :]
    assert after.count("started") == 1


def test_job_of_a_killed_worker_tells_why_it_is_tried_again(killed: Killed) -> None:
    (retry,) = killed.heard.named("retrying")
    assert retry.data["attempts"] == 1 and "SIGKILL" in retry.data["reason"]
    assert retry.data["position"] == 1


# Killed again and again


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisoned:
    """A job that kills every worker, the one behind it, and what was said while no worker was up."""

    service: RunningService
    job: dict
    deaths: int
    behind_meanwhile: dict
    picture_meanwhile: bytes
    reason: str
    behind: dict


@pytest.fixture(scope="module")
def poisoned(mortal: RunningService, killed: Killed) -> Poisoned:
    """Together with the death of `killed` its two are three."""
    before = deaths(mortal)
    with paused(mortal):
        job_id, behind = mortal.submit("kill"), mortal.submit(width=ANOTHER_PX)
    unready: list[str] = []

    def is_unready() -> bool:
        answer = mortal.client.get("/health/ready")
        if answer.status_code == 503:
            unready.append(answer.json()["reason"])
        return bool(unready)

    mortal.wait_until(is_unready, REPLACED_SECONDS, "was never unready")
    meanwhile = mortal.job(behind)
    drawn = picture(mortal, killed.job["id"])
    job = mortal.wait_for_job(job_id)
    return Poisoned(
        service=mortal,
        job=job,
        deaths=deaths(mortal) - before,
        behind_meanwhile=meanwhile,
        picture_meanwhile=drawn,
        reason=unready[0],
        behind=mortal.wait_for_job(behind, seconds=REPLACED_SECONDS),
    )


def test_job_that_kills_two_workers_fails_as_poison(poisoned: Poisoned) -> None:
    job = poisoned.job
    assert (job["status"], job["attempts"], job["error"]["code"]) == ("failed", 2, "poison")
    assert "SIGKILL" in job["error"]["message"] and poisoned.deaths == 2


def test_service_after_three_deaths_is_not_ready_and_says_why(poisoned: Poisoned) -> None:
    assert "SIGKILL" in poisoned.reason


def test_job_behind_waits_while_no_worker_is_up(poisoned: Poisoned) -> None:
    assert (poisoned.behind_meanwhile["status"], poisoned.behind_meanwhile["attempts"]) == (
        "queued",
        0,
    )


def test_pictures_are_served_while_no_worker_is_up(poisoned: Poisoned, killed: Killed) -> None:
    assert poisoned.picture_meanwhile == picture(killed.service, killed.job["id"])


def test_job_behind_a_poisonous_one_is_drawn_at_its_first_attempt(poisoned: Poisoned) -> None:
    assert (poisoned.behind["status"], poisoned.behind["attempts"]) == ("succeeded", 1)


def test_service_is_ready_again_when_a_worker_is_up(poisoned: Poisoned) -> None:
    assert poisoned.service.client.get("/health/ready").status_code == 200


def test_service_whose_workers_were_killed_has_a_row_for_each_file(poisoned: Poisoned) -> None:
    files, named = files_and_rows(poisoned.service)
    assert files == named


# Hung


@pytest.fixture(scope="module")
def impatient(start_module_engine: StartEngine) -> RunningService:
    return start_module_engine(FLUX_STALL_TIMEOUT_SECONDS="4", FLUX_CANCEL_TIMEOUT_SECONDS="1")


def test_cancel_of_a_hung_job_ends_it_at_once_and_its_worker_soon(
    impatient: RunningService,
) -> None:
    job_id, _ = hold(impatient, "hang")
    pid = worker(impatient)["pid"]
    cancelled = impatient.client.post(f"/jobs/{job_id}/cancel").json()
    behind = impatient.submit()
    assert (cancelled["cancelled"], impatient.job(job_id)["status"]) == (True, "cancelled")
    job = impatient.wait_for_job(behind, seconds=REPLACED_SECONDS)
    assert (job["status"], job["attempts"]) == ("succeeded", 1)
    assert worker(impatient)["pid"] != pid
    assert impatient.job(job_id)["status"] == "cancelled"


def test_worker_that_is_stopped_by_a_signal_counts_as_hung_and_its_job_is_tried_again(
    impatient: RunningService,
) -> None:
    """A process that gets no time is as dead as one that waits for its device. At its last attempt such a job fails."""
    job_id, _ = hold(impatient, "hang")
    with listen(impatient, job_id) as heard:
        os.kill(worker(impatient)["pid"], signal.SIGSTOP)
        retry = heard.wait_for("retrying")
        heard.wait_for_end()
    assert "no step" in retry.data["reason"]
    job = impatient.job(job_id)
    assert (job["status"], job["attempts"], job["error"]["code"]) == ("failed", 2, "timeout")
    assert "no step" in job["error"]["message"]


# Killed while it has its next job


def test_next_job_is_handed_over_before_the_present_one_ends(mortal: RunningService) -> None:
    job_id, name = hold(mortal, "linger")
    behind = mortal.submit()
    mortal.wait_until(lambda: worker(mortal)["job_ids"] == [job_id, behind])
    mortal.release(name)
    assert mortal.wait_for_job(behind)["status"] == "succeeded"


def test_worker_killed_with_its_next_job_costs_that_one_no_attempt(mortal: RunningService) -> None:
    job_id, name = hold(mortal, "linger")
    behind, last = mortal.submit(), mortal.submit()
    mortal.wait_until(lambda: behind in worker(mortal)["job_ids"])
    kill_worker(worker(mortal)["pid"])
    mortal.release(name)
    jobs = [mortal.wait_for_job(each, seconds=REPLACED_SECONDS) for each in (job_id, behind, last)]
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert [job["attempts"] for job in jobs] == [2, 1, 1]
    started = [job["started_at"] for job in jobs]
    assert started == sorted(started)


def test_cuda_error_ends_the_worker_with_70_and_the_next_job_never_sees_it(
    mortal: RunningService,
) -> None:
    pid = worker(mortal)["pid"]
    with paused(mortal):
        job_id, behind = mortal.submit("cuda-once context"), mortal.submit(width=ANOTHER_PX)
    jobs = [mortal.wait_for_job(each, seconds=REPLACED_SECONDS) for each in (job_id, behind)]
    assert [(job["status"], job["attempts"]) for job in jobs] == [
        ("succeeded", 2),
        ("succeeded", 1),
    ]
    assert "exit status 70" in worker(mortal)["last_death"] and worker(mortal)["pid"] != pid


# Out of memory


def test_job_that_fits_with_less_is_drawn_at_the_same_attempt(
    engine_service: RunningService,
) -> None:
    before = worker(engine_service)["pid"]
    job = engine_service.wait_for_job(engine_service.submit("oom", width=192))
    assert (job["status"], job["attempts"]) == ("succeeded", 1)
    assert worker(engine_service)["pid"] == before


def test_job_that_does_not_fit_costs_the_next_small_one_nothing(
    engine_service: RunningService,
) -> None:
    with paused(engine_service):
        large, small = engine_service.submit("oom", width=512), engine_service.submit("oom")
    assert engine_service.wait_for_job(large)["error"]["code"] == "oom"
    job = engine_service.wait_for_job(small)
    assert (job["status"], job["attempts"]) == ("succeeded", 1)


# Two workers


@pytest.fixture(scope="module")
def pair(start_module_engine: StartEngine) -> RunningService:
    return start_module_engine(FLUX_FAKE_GPUS="2")


def test_both_workers_are_busy_while_a_job_waits(pair: RunningService) -> None:
    with held(pair), held(pair):
        waiting = pair.submit()
        assert [each["state"] for each in pair.workers()] == ["busy", "busy"]
        assert pair.job(waiting)["position"] == 1
    assert pair.wait_for_job(waiting)["status"] == "succeeded"


def test_two_workers_start_jobs_in_the_order_they_came(pair: RunningService) -> None:
    pair.wait_for_workers()
    with paused(pair):
        waiting = [pair.submit("slow", num_inference_steps=i % 3 + 1) for i in range(10)]
    jobs = [pair.wait_for_job(job_id) for job_id in waiting]
    started = [job["started_at"] for job in jobs]
    assert started == sorted(started)
    assert {job["gpu"] for job in jobs} == {"cpu0", "cpu1"}


def was_put_back(job: dict) -> bool:
    """Whether it waits for its second attempt, or is at it already."""
    return job["status"] == "queued" or job["attempts"] == 2


def test_one_of_two_workers_killed_leaves_the_other_at_its_job(pair: RunningService) -> None:
    victim, first_gate = hold(pair)
    other, second_gate = hold(pair)
    waiting = pair.submit()
    pids = {each["job_id"]: each["pid"] for each in pair.workers()}
    kill_worker(pids[victim])
    pair.wait_until(lambda: was_put_back(pair.job(victim)))
    pair.release(first_gate)
    pair.release(second_gate)
    jobs = [pair.wait_for_job(each) for each in (other, victim, waiting)]
    assert [(job["status"], job["attempts"]) for job in jobs] == [
        ("succeeded", 1),
        ("succeeded", 2),
        ("succeeded", 1),
    ]
    assert pids[other] in [each["pid"] for each in pair.workers()]
    assert jobs[1]["started_at"] <= jobs[2]["started_at"]  # in whole milliseconds


def test_worker_that_dies_at_every_load_does_not_use_up_the_jobs_that_wait(
    start_engine: Callable[..., RunningService],
) -> None:
    service = start_engine(TEST_ENGINE="exits_while_loading", TEST_RESTART_SECONDS="0.05")
    jobs = [service.submit() for _ in range(4)]
    assert service.wait_for_job(jobs[0])["error"]["code"] == "poison"
    service.wait_until(
        lambda: deaths(service) >= 5, REPLACED_SECONDS, "has not died five times"
    )  # the last ones without a job: it must show first that it can load
    assert [service.job(job_id)["status"] for job_id in jobs[2:]] == ["queued", "queued"]
    service.wait_until(lambda: service.client.get("/health/ready").status_code == 503)
