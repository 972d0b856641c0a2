"""Told to end: what running and waiting jobs, listeners and clients see of it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.faults.handles import StartEngine, gate, hold, rows
from tests.faults.listener import Listener, Told, connect, listen
from tests.service import RunningService

# Long where the running job can end, short where it cannot and the stop must not wait for it.
DRAIN_SECONDS = 30
SHORT_DRAIN_SECONDS = 2
# More than the drain, for what follows it: a worker that hangs is asked, and then ended in four seconds.
AFTER_DRAIN_SECONDS = 9
# Status and attempts of a job that is begun anew after the next start.
RELEASED = [("queued", 0)]
BODY = {"prompt": "a red balloon", "width": 128, "height": 128}


def told_to_end(service: RunningService) -> float:
    """Send the signal; returns when."""
    service.process.send_signal(signal.SIGTERM)
    return time.monotonic()


def wait_until_draining(service: RunningService) -> dict:
    """The answer that says why the service is not ready, while it still answers."""
    service.wait_until(lambda: service.client.get("/health/ready").status_code == 503)
    return service.client.get("/health/ready").json()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A stop with one job running, five waiting, a client for each, and listeners, one of them deaf."""

    status: int
    seconds: float
    ready: dict
    refused: httpx2.Response
    running_answer: httpx2.Response
    waiting_answer: httpx2.Response
    everything: list[Told]
    of_running: list[Told]
    of_waiting: list[Told]
    running: dict
    waiting: list[dict]


@pytest.fixture(scope="module")
def draining(start_module_engine: StartEngine) -> RunningService:
    return start_module_engine(FLUX_DRAIN_SECONDS=str(DRAIN_SECONDS))


@pytest.fixture(scope="module")
def ended(draining: RunningService) -> Iterator[Ended]:
    service, name = draining, gate()
    with ThreadPoolExecutor(2) as pool:
        running_client = pool.submit(service.generate, prompt=f"hold {name}", width=128, height=128)
        service.wait_until(lambda: service.client.get("/queue").json()["running"])
        (running,) = service.client.get("/queue").json()["running"]
        waiting_client = pool.submit(service.generate, prompt="waits", width=128, height=128)
        service.wait_until(lambda: service.client.get("/queue").json()["queued"] == 1)
        waiting = [job["id"] for job in service.client.get("/jobs?status=queued").json()["jobs"]]
        waiting += [service.submit() for _ in range(4)]
        everything = Listener(service, "/events")
        of_running, of_waiting = listen(service, running), listen(service, waiting[-1])
        for listener, first in (
            (everything, "queue"),
            (of_running, "progress"),
            (of_waiting, "queued"),
        ):
            listener.wait_for(first)
        with connect(service, "/events", buffer_bytes=4096):
            began = told_to_end(service)
            ready = wait_until_draining(service)
            refused = httpx2.post(f"{service.url}/jobs", json=BODY, timeout=60)  # not a kept one
            service.release(name)
            status = service.process.wait(60)
            seconds = time.monotonic() - began
        heard = [each.wait_for_end() for each in (everything, of_running, of_waiting)]
        for listener in (everything, of_running, of_waiting):
            listener.close()
        answers = running_client.result(), waiting_client.result()
    service.start()
    yield Ended(
        status=status,
        seconds=seconds,
        ready=ready,
        refused=refused,
        running_answer=answers[0],
        waiting_answer=answers[1],
        everything=heard[0],
        of_running=heard[1],
        of_waiting=heard[2],
        running=service.job(running),
        waiting=[service.wait_for_job(job_id) for job_id in waiting],
    )


def test_stop_exits_0_within_the_drain(ended: Ended) -> None:
    assert ended.status == 0
    assert ended.seconds < DRAIN_SECONDS + AFTER_DRAIN_SECONDS


def test_stop_makes_the_service_unready_with_the_reason(ended: Ended) -> None:
    assert "stopping" in ended.ready["reason"]


def test_stop_refuses_new_jobs_with_a_time_to_come_back(ended: Ended) -> None:
    assert (ended.refused.status_code, ended.refused.json()["code"]) == (503, "unavailable")
    assert int(ended.refused.headers["Retry-After"]) >= 1


def test_stop_lets_the_running_job_end_and_answers_its_client(ended: Ended) -> None:
    assert (ended.running["status"], ended.running["attempts"]) == ("succeeded", 1)
    assert ended.running_answer.status_code == 200


def test_stop_tells_the_client_of_a_waiting_job_that_it_is_kept(ended: Ended) -> None:
    assert ended.waiting_answer.status_code == 503
    assert ended.waiting[0]["id"] in ended.waiting_answer.json()["detail"]


@pytest.mark.parametrize("heard", ["everything", "of_waiting"])
def test_stop_tells_listeners_and_when_to_come_back(ended: Ended, heard: str) -> None:
    last = getattr(ended, heard)[-1]
    assert last.name == "bye" and "stopping" in json.dumps(last.data)


def test_stop_tells_the_listener_of_the_running_job_its_end(ended: Ended) -> None:
    assert ended.of_running[-1].name == "succeeded"


def test_stop_keeps_waiting_jobs_in_their_order(ended: Ended) -> None:
    assert [(job["status"], job["attempts"]) for job in ended.waiting] == [("succeeded", 1)] * 5
    started = [job["started_at"] for job in ended.waiting]
    assert started == sorted(started)


@pytest.mark.limit
def test_stop_releases_a_job_that_does_not_end_in_time_with_its_attempt(
    start_engine: StartEngine,
) -> None:
    """Told twice, which is once."""
    service = start_engine(FLUX_DRAIN_SECONDS=str(SHORT_DRAIN_SECONDS))
    job_id, _ = hold(service)
    began = told_to_end(service)
    wait_until_draining(service)
    told_to_end(service)
    status = service.process.wait(60)
    assert status == 0
    assert time.monotonic() - began < SHORT_DRAIN_SECONDS + AFTER_DRAIN_SECONDS
    assert rows(service, "SELECT status, attempts FROM job WHERE id = ?", job_id) == RELEASED


@pytest.mark.limit
def test_stop_while_a_job_hangs_ends_all_the_same(start_engine: StartEngine) -> None:
    service = start_engine(FLUX_DRAIN_SECONDS="1")
    job_id, _ = hold(service, "hang")
    began = told_to_end(service)
    assert service.process.wait(60) == 0
    assert time.monotonic() - began < 1 + AFTER_DRAIN_SECONDS
    assert rows(service, "SELECT status, attempts FROM job WHERE id = ?", job_id) == RELEASED


@pytest.mark.limit
def test_stop_while_a_model_is_loaded_ends_all_the_same(start_engine: StartEngine) -> None:
    service = start_engine(TEST_ENGINE="waits_while_loading", FLUX_DRAIN_SECONDS="1")
    job_id = service.submit()
    with listen(service, job_id) as listener:
        listener.wait_for("loading")
    began = told_to_end(service)
    assert service.process.wait(60) == 0
    assert time.monotonic() - began < 1 + AFTER_DRAIN_SECONDS
    assert rows(service, "SELECT status, attempts FROM job WHERE id = ?", job_id) == RELEASED


def test_stop_while_workers_start_keeps_the_jobs(start_engine: StartEngine, tmp_path: Path) -> None:
    service = start_engine(
        wait_for_workers=False,
        TEST_ENGINE="waits_at_start",
        TEST_GATE=str(tmp_path / "never"),
        FLUX_FAKE_GPUS="2",
    )
    for _ in range(3):
        service.submit()
    assert {each["state"] for each in service.workers()} == {"starting"}
    assert service.stop() == 0
    assert rows(service, "SELECT status, attempts FROM job") == RELEASED * 3


def test_worker_that_gets_the_signal_too_costs_its_job_no_attempt(
    start_engine: StartEngine,
) -> None:
    """As from a supervisor that signals every process of a service."""
    service = start_engine()
    job_id, _ = hold(service)
    (worker,) = service.workers()
    service.process.send_signal(signal.SIGTERM)
    wait_until_draining(service)
    os.kill(worker["pid"], signal.SIGTERM)
    assert service.process.wait(60) == 0
    assert rows(service, "SELECT status, attempts FROM job WHERE id = ?", job_id) == RELEASED
