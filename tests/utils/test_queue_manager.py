"""The line: its order, its limit, what a crowd and a client that hangs up do to it."""

from __future__ import annotations

import asyncio
import json
import socket
import uuid
from collections.abc import Callable, Iterator

import httpx2
import psutil
import pytest

from tests.service import ENGINE_MAIN, RunningService

CROWD = 200
SMALL_CROWD = 24  # of pictures that take their time
LIMIT = 100
MIB = 2**20
# What a second crowd may add to a process that has seen one. The worker's allocator takes about
# 100 MiB over its first thousand pictures, in jumps, and then no more.
API_GROWTH_MIB = 12
WORKER_GROWTH_MIB = 64


def hold(service: RunningService) -> tuple[str, str]:
    """A job that holds the worker, and the name that releases it."""
    gate = uuid.uuid4().hex
    job_id = service.submit(f"hold {gate}")
    service.wait_for_job(job_id, "running")
    return job_id, gate


def newest(service: RunningService, number: int) -> list[dict]:
    """The newest jobs, oldest first."""
    return service.client.get(f"/jobs?limit={number}").json()["jobs"][::-1]


# Order


def test_queue_jobs_start_in_the_order_they_came(engine_service: RunningService) -> None:
    _, gate = hold(engine_service)
    submitted = [engine_service.submit() for _ in range(12)]
    engine_service.release(gate)
    jobs = [engine_service.wait_for_job(job_id) for job_id in submitted]
    started = [job["started_at"] for job in jobs]
    finished = [job["finished_at"] for job in jobs]
    assert started == sorted(started) and finished == sorted(finished)


def test_queue_positions_are_exact(engine_service: RunningService) -> None:
    _, gate = hold(engine_service)
    submitted = [engine_service.submit() for _ in range(5)]
    engine_service.client.post(f"/jobs/{submitted[1]}/cancel")
    left = [submitted[0], *submitted[2:]]
    positions = [engine_service.job(job_id)["position"] for job_id in left]
    counted = engine_service.client.get("/queue").json()["queued"]
    engine_service.release(gate)
    for job_id in left:
        engine_service.wait_for_job(job_id)
    assert positions == [1, 2, 3, 4] and counted == 4


# Limit


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service in whose line two may wait."""
    running = RunningService(
        tmp_path_factory.mktemp("short"),
        main=ENGINE_MAIN,
        TEST_ENGINE="scripted",
        FLUX_MAX_QUEUE_SIZE="2",
    ).start()
    try:
        running.wait_for_workers()
        yield running
    finally:
        running.close()


def test_queue_full_refuses_one_more_and_takes_one_for_each_that_leaves(
    short: RunningService,
) -> None:
    held, gate = hold(short)
    waiting = [short.submit(), short.submit()]
    body = {"prompt": "a", "width": 128, "height": 128}
    for path in ("/jobs", "/generate"):
        answer = short.client.post(path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
        assert int(answer.headers["Retry-After"]) >= 1
        assert "FLUX_MAX_QUEUE_SIZE" in answer.json()["detail"]
    assert short.client.get("/queue-stats").json()["queued"] == 2
    short.client.post(f"/jobs/{waiting[0]}/cancel")
    waiting.append(short.submit())
    assert short.client.post("/jobs", json=body).status_code == 429
    short.release(gate)
    for job_id in (held, *waiting[1:]):
        assert short.wait_for_job(job_id)["status"] == "succeeded"


def test_queue_full_still_answers_a_repeated_key(short: RunningService) -> None:
    held, gate = hold(short)
    waiting = short.submit()
    sent = {"json": {"prompt": "a"}, "headers": {"Idempotency-Key": "k"}}
    first, again = (short.client.post("/jobs", **sent) for _ in range(2))
    refused = short.client.post("/jobs", json=sent["json"])
    short.release(gate)
    assert (first.status_code, again.status_code, refused.status_code) == (202, 202, 429)
    assert first.json() == again.json()
    for job_id in (held, waiting, first.json()["id"]):
        short.wait_for_job(job_id)


# Clients


async def crowd(service: RunningService, number: int, first_seed: int) -> list[httpx2.Response]:
    """So many clients at once, each with its own prompt and seed."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=service.url, timeout=120, limits=limits) as client:
        return await asyncio.gather(
            *(
                client.post(
                    "/generate",
                    json={
                        "prompt": f"{first_seed + i} red balloons",
                        "seed": first_seed + i,
                        "width": 128,
                        "height": 128,
                        "steps": 1,
                    },
                )
                for i in range(number)
            )
        )


def resident_mib(service: RunningService) -> tuple[float, float]:
    """Of the service's process and of its worker."""
    (worker,) = service.workers()
    pids = (service.process.pid, worker["pid"])
    return tuple(psutil.Process(pid).memory_info().rss / MIB for pid in pids)


def drawn_of_crowd(service: RunningService, number: int, first_seed: int) -> int:
    """How many of a crowd were drawn: nobody lost, nobody mixed up, order kept, the others told."""
    service.wait_until_quiet()
    done_before = service.client.get("/queue-stats").json()["succeeded"]
    answers = asyncio.run(crowd(service, number, first_seed))
    drawn = {i: answer for i, answer in enumerate(answers) if answer.status_code == 200}
    late = [answer for answer in answers if answer.status_code == 429]
    assert len(drawn) + len(late) == number
    assert all(1 <= int(answer.headers["Retry-After"]) <= 3600 for answer in late)
    assert {answer.json()["code"] for answer in late} <= {"queue_full"}
    for i, answer in drawn.items():
        said = answer.json()
        assert (said["seed"], said["prompt"]) == (first_seed + i, f"{first_seed + i} red balloons")
    stats = service.client.get("/queue-stats").json()
    assert stats["succeeded"] - done_before == len(drawn)
    assert (stats["queued"], stats["running"]) == (0, 0)
    jobs = newest(service, len(drawn))
    created = [job["created_at"] for job in jobs]
    started = [job["started_at"] for job in jobs]
    assert created == sorted(created) and started == sorted(started)
    return len(drawn)


def test_queue_crowd_is_drawn_or_told_to_come_back(engine_service: RunningService) -> None:
    memory = []
    for first_seed in (0, 1000):
        drawn = drawn_of_crowd(engine_service, CROWD, first_seed)
        assert LIMIT <= drawn <= CROWD
        memory.append(resident_mib(engine_service)[0])
    assert memory[1] - memory[0] < API_GROWTH_MIB


def test_queue_crowd_on_the_real_model_leaves_its_memory_flat(service: RunningService) -> None:
    memory = []
    for first_seed in (0, 1000):
        assert drawn_of_crowd(service, SMALL_CROWD, first_seed) == SMALL_CROWD
        memory.append(resident_mib(service)[1])
    assert memory[1] - memory[0] < WORKER_GROWTH_MIB


def post_and_hang_up(
    service: RunningService, path: str, prompt: str, until: Callable[[dict], bool]
) -> str:
    """Send a request, close the connection when its job is as wanted; returns the job's id."""
    content = json.dumps({"prompt": prompt, "width": 128, "height": 128}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(head.encode() + content)
        found: list[str] = []

        def is_there() -> bool:
            for job in newest(service, 1):
                if job["request"]["prompt"] == prompt and until(job):
                    found.append(job["id"])
            return bool(found)

        service.wait_until(is_there)
    return found[0]


def test_client_that_hangs_up_cancels_its_running_job(engine_service: RunningService) -> None:
    gate = uuid.uuid4().hex
    job_id = post_and_hang_up(
        engine_service, "/generate", f"hold {gate}", lambda job: job["status"] == "running"
    )
    assert engine_service.wait_for_job(job_id)["status"] == "cancelled"
    engine_service.wait_for_workers()


def test_client_that_hangs_up_cancels_its_waiting_job(engine_service: RunningService) -> None:
    held, gate = hold(engine_service)
    job_id = post_and_hang_up(
        engine_service, "/generate", uuid.uuid4().hex, lambda job: job["status"] == "queued"
    )
    ended = engine_service.wait_for_job(job_id)
    assert (ended["status"], ended["attempts"]) == ("cancelled", 0)
    assert engine_service.job(held)["status"] == "running"
    engine_service.release(gate)
    engine_service.wait_for_job(held)


def test_client_that_hangs_up_leaves_a_submitted_job_alone(
    engine_service: RunningService,
) -> None:
    gate = uuid.uuid4().hex
    job_id = post_and_hang_up(
        engine_service, "/jobs", f"hold {gate}", lambda job: job["status"] == "running"
    )
    engine_service.release(gate)
    assert engine_service.wait_for_job(job_id)["status"] == "succeeded"


def test_client_whose_job_another_cancels_is_told(engine_service: RunningService) -> None:
    """Somebody asked for it, so it is no failure of the service."""
    gate = uuid.uuid4().hex

    async def scenario() -> httpx2.Response:
        async with httpx2.AsyncClient(base_url=engine_service.url, timeout=120) as client:
            waiting = asyncio.create_task(
                client.post("/generate", json={"prompt": f"hold {gate}", "width": 128})
            )
            running = []
            while not running:
                answer = await client.get("/jobs?status=running")
                running = answer.json()["jobs"]
            await client.post(f"/jobs/{running[0]['id']}/cancel")
            return await waiting

    answer = asyncio.run(scenario())
    assert answer.json()["code"] == "cancelled"
    assert answer.status_code < 500
