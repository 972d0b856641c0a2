"""More than the service takes: crowds, full lines, long bodies; keys that come at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import httpx2
import pytest

from tests.faults.handles import StartEngine, gate, held, paused
from tests.service import RunningService

LIMIT = 100
SUBMITS = 1000
AT_ONCE = 50
PER_KEY = 3
KEYS = ("first-key-of-sixteen", "second-key-of-sixteen")
BODY = {"prompt": "a red balloon", "width": 128, "height": 128}
MIB = 2**20


async def all_at_once(service: RunningService, *requests: dict) -> list[httpx2.Response]:
    """Answers to `POST /jobs` with these arguments, sent together."""
    limits = httpx2.Limits(max_connections=100)
    async with httpx2.AsyncClient(base_url=service.url, timeout=120, limits=limits) as client:
        return await asyncio.gather(*(client.post("/jobs", **request) for request in requests))


def statuses(answers: list[httpx2.Response]) -> dict[int, int]:
    found = [answer.status_code for answer in answers]
    return {status: found.count(status) for status in sorted(set(found))}


# A thousand at once


@pytest.fixture(scope="module")
def stormed(engine_service: RunningService) -> tuple[list[httpx2.Response], list[int]]:
    """The answers to a thousand submits, and to `/health/live` meanwhile."""

    async def storm() -> tuple[list[httpx2.Response], list[int]]:
        async with httpx2.AsyncClient(base_url=engine_service.url, timeout=60) as client:
            task = asyncio.create_task(all_at_once(engine_service, *[{"json": BODY}] * SUBMITS))
            alive = []
            while not task.done():
                alive.append((await client.get("/health/live")).status_code)
            return await task, alive

    engine_service.wait_until_quiet()
    with paused(engine_service):
        stormed = asyncio.run(storm())
        engine_service.client.post("/queue/clear")
    return stormed


def test_storm_fills_the_line_to_its_limit_and_no_further(
    stormed: tuple[list[httpx2.Response], list[int]],
) -> None:
    assert statuses(stormed[0]) == {202: LIMIT, 429: SUBMITS - LIMIT}


def test_storm_tells_those_who_are_late_when_to_come_back(
    stormed: tuple[list[httpx2.Response], list[int]],
) -> None:
    late = [answer for answer in stormed[0] if answer.status_code == 429]
    assert {answer.json()["code"] for answer in late} == {"queue_full"}
    assert all(1 <= int(answer.headers["Retry-After"]) <= 3600 for answer in late)


def test_storm_gives_each_job_its_own_place(
    stormed: tuple[list[httpx2.Response], list[int]],
) -> None:
    places = [answer.json()["position"] for answer in stormed[0] if answer.status_code == 202]
    assert sorted(places) == list(range(1, LIMIT + 1))


def test_storm_leaves_the_service_answering(
    stormed: tuple[list[httpx2.Response], list[int]],
) -> None:
    assert stormed[1] and set(stormed[1]) == {200}


# Idempotency keys


def test_key_fifty_times_at_once_is_one_job(engine_service: RunningService) -> None:
    request = {"json": BODY, "headers": {"Idempotency-Key": gate()}}
    answers = asyncio.run(all_at_once(engine_service, *[request] * AT_ONCE))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_key_at_once_with_two_bodies_is_one_job_and_the_other_is_refused(
    engine_service: RunningService,
) -> None:
    headers = {"Idempotency-Key": gate()}
    requests = [{"json": {**BODY, "seed": i % 2}, "headers": headers} for i in range(AT_ONCE)]
    answers = asyncio.run(all_at_once(engine_service, *requests))
    taken = {answer.json()["id"] for answer in answers if answer.status_code == 202}
    refused = {answer.json()["code"] for answer in answers if answer.status_code == 422}
    assert statuses(answers) == {202: AT_ONCE // 2, 422: AT_ONCE // 2}
    assert len(taken) == 1 and refused == {"idempotency_mismatch"}


# Each key its share


@pytest.fixture(scope="module")
def shared(start_module_engine: StartEngine) -> Iterator[RunningService]:
    """A service with two keys, whose queue is paused."""
    service = start_module_engine(
        wait_for_workers=False,
        FLUX_API_KEYS=",".join(KEYS),
        FLUX_MAX_QUEUED_PER_KEY=str(PER_KEY),
        FLUX_MAX_QUEUE_SIZE="5",
        FLUX_MAX_BODY_BYTES=str(MIB),
    )
    service.client.post("/queue/pause", headers={"X-API-Key": KEYS[0]})
    yield service


@pytest.fixture
def empty(shared: RunningService) -> RunningService:
    shared.client.post("/queue/clear", headers={"X-API-Key": KEYS[0]})
    return shared


def of(key: str, **headers: str) -> dict:
    return {"json": BODY, "headers": {"X-API-Key": key, **headers}}


def test_limit_of_a_key_holds_when_many_come_at_once(empty: RunningService) -> None:
    answers = asyncio.run(all_at_once(empty, *[of(KEYS[0])] * 20))
    assert statuses(answers) == {202: PER_KEY, 429: 20 - PER_KEY}


def test_limit_of_a_key_says_so(empty: RunningService) -> None:
    answer = [empty.client.post("/jobs", **of(KEYS[0])) for _ in range(PER_KEY + 1)][-1]
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert "FLUX_MAX_QUEUED_PER_KEY" in answer.json()["detail"]
    assert int(answer.headers["Retry-After"]) >= 1


def test_limit_of_a_key_is_not_anothers(empty: RunningService) -> None:
    for _ in range(PER_KEY + 1):
        empty.client.post("/jobs", **of(KEYS[0]))
    assert empty.client.post("/jobs", **of(KEYS[1])).status_code == 202


def test_limit_of_all_keys_together_holds(empty: RunningService) -> None:
    answers = asyncio.run(all_at_once(empty, *[of(key) for key in KEYS for _ in range(PER_KEY)]))
    assert statuses(answers) == {202: 5, 429: 1}


def test_limit_of_a_key_holds_for_a_retry(empty: RunningService) -> None:
    job_id = empty.client.post("/jobs", **of(KEYS[0])).json()["id"]
    empty.client.post(f"/jobs/{job_id}/cancel", headers={"X-API-Key": KEYS[0]})
    for _ in range(PER_KEY):
        empty.client.post("/jobs", **of(KEYS[0]))
    answer = empty.client.post(f"/jobs/{job_id}/retry", headers={"X-API-Key": KEYS[0]})
    assert answer.status_code == 429


def test_idempotency_key_of_another_owner_is_another_key(empty: RunningService) -> None:
    name = gate()
    first, second = (
        empty.client.post("/jobs", **of(key, **{"Idempotency-Key": name})) for key in KEYS
    )
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] != second.json()["id"]


def test_idempotency_key_of_another_owner_does_not_tell_its_body(empty: RunningService) -> None:
    name = gate()
    empty.client.post("/jobs", **of(KEYS[0], **{"Idempotency-Key": name}))
    other = of(KEYS[1], **{"Idempotency-Key": name})
    assert empty.client.post("/jobs", **{**other, "json": {**BODY, "seed": 7}}).status_code == 202


# Bodies


def stream(service: RunningService, path: str, number_of_bytes: int) -> int:
    """The status of a request whose body comes in chunks, without a length."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {KEYS[0]}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    filler = b'{"prompt": "' + b"a" * (number_of_bytes - 14) + b'"}'
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(head.encode())
        try:
            for start in range(0, len(filler), 16384):
                part = filler[start : start + 16384]
                connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
            connection.sendall(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was cut; the answer is there
        return int(connection.recv(4096).split()[1])


@pytest.mark.parametrize(
    ("path", "number_of_bytes"),
    [("/jobs", MIB + 1), ("/generate", MIB + 1), ("/load-model", 64 * 1024 + 1)],
)
def test_body_in_chunks_beyond_its_routes_limit_is_cut(
    shared: RunningService, path: str, number_of_bytes: int
) -> None:
    assert stream(shared, path, number_of_bytes) == 413


@pytest.mark.parametrize(
    ("path", "number_of_bytes"),
    [("/jobs", MIB), ("/jobs", 64 * 1024 + 1), ("/load-model", 64 * 1024)],
)
def test_body_in_chunks_at_its_routes_limit_is_read(
    shared: RunningService, path: str, number_of_bytes: int
) -> None:
    """And refused for what it says."""
    assert stream(shared, path, number_of_bytes) == 400


def test_body_that_was_cut_leaves_no_job(empty: RunningService) -> None:
    stream(empty, "/jobs", 2 * MIB)
    queue = empty.client.get("/queue", headers={"X-API-Key": KEYS[0]}).json()
    assert queue["queued"] == 0


def test_line_that_was_full_takes_jobs_when_there_is_room(engine_service: RunningService) -> None:
    with held(engine_service):
        asyncio.run(all_at_once(engine_service, *[{"json": BODY}] * (LIMIT + 5)))
        late = engine_service.client.post("/jobs", json=BODY).status_code
    engine_service.wait_until_quiet()
    assert late == 429
    assert engine_service.wait_for_job(engine_service.submit())["status"] == "succeeded"
