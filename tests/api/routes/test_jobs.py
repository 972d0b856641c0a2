"""`/jobs`: submit, read, list, cancel, and keys that make a submit safe to repeat."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import httpx2
import pytest

from models.types import Stage
from tests.service import RunningService

EVERY_FIELD = {
    "id", "status", "request", "created_at", "started_at", "finished_at", "position", "attempts",
    "progress", "result", "error", "node", "gpu",
}  # fmt: skip
BODY = {"prompt": "a red balloon", "width": 128, "height": 128, "seed": 1}


@pytest.fixture
def running(engine_service: RunningService) -> Iterator[str]:
    """A job that holds the worker until the test is over."""
    gate = uuid.uuid4().hex
    job_id = engine_service.submit(f"hold {gate}")
    engine_service.wait_for_job(job_id, "running")
    yield job_id
    engine_service.release(gate)
    engine_service.wait_for_job(job_id)
    engine_service.wait_until(lambda: engine_service.client.get("/health").json()["queued"] == 0)
    engine_service.wait_for_workers()


def post_job(service: RunningService, key: str | None = None, **body) -> httpx2.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return service.client.post("/jobs", json={**BODY, **body}, headers=headers)


def count(service: RunningService) -> int:
    stats = service.client.get("/queue-stats").json()
    return sum(stats[name] for name in ("queued", "running", "succeeded", "failed", "cancelled"))


def cancel(service: RunningService, job_id: str) -> httpx2.Response:
    return service.client.post(f"/jobs/{job_id}/cancel")


def is_utc(text: str) -> bool:
    return text.endswith("Z") and datetime.fromisoformat(text).utcoffset() is not None


# Submit and read


def test_submit_answers_202_with_id_status_and_position(
    engine_service: RunningService, running: str
) -> None:
    answers = [post_job(engine_service) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202] * 3
    assert [answer.json()["position"] for answer in answers] == [1, 2, 3]
    assert {answer.json()["status"] for answer in answers} == {"queued"}
    assert len({answer.json()["id"] for answer in answers}) == 3


def test_job_waiting_has_every_field(engine_service: RunningService, running: str) -> None:
    job = engine_service.job(engine_service.submit(seed=5))
    assert set(job) >= EVERY_FIELD
    assert (job["status"], job["position"], job["attempts"]) == ("queued", 1, 0)
    assert is_utc(job["created_at"])
    nothing = ("started_at", "finished_at", "progress", "result", "error")
    assert [job[name] for name in nothing] == [None] * len(nothing)
    assert (job["request"]["seed"], job["request"]["width"]) == (5, 128)


def test_job_running_tells_its_progress(engine_service: RunningService, running: str) -> None:
    engine_service.wait_until(lambda: (engine_service.job(running)["progress"] or {}).get("step"))
    job = engine_service.job(running)
    assert (job["status"], job["position"], job["attempts"]) == ("running", None, 1)
    assert is_utc(job["started_at"])
    assert job["progress"]["stage"] == Stage.DENOISING
    assert job["progress"]["steps"] == job["request"]["num_inference_steps"]


def test_job_progress_counts_the_steps_of_all_pictures(engine_service: RunningService) -> None:
    gate = uuid.uuid4().hex
    job_id = engine_service.submit(f"hold-late {gate}", num_inference_steps=4, num_images=8)
    shown: list[dict] = []

    def seen() -> dict:
        job = engine_service.job(job_id)
        shown.extend([job["progress"]] if job["progress"] else [])
        return job

    # Four pictures are drawn, and the next four are at their first step.
    engine_service.wait_until(lambda: (seen()["progress"] or {}).get("step", 0) > 16)
    assert shown[-1]["step"] == 20
    engine_service.release(gate)
    engine_service.wait_until(lambda: seen()["status"] == "succeeded")
    assert {progress["steps"] for progress in shown} == {32}
    steps = [progress["step"] for progress in shown]
    assert steps == sorted(steps) and steps[-1] <= 32


def test_job_ended_has_its_result(engine_service: RunningService) -> None:
    job = engine_service.wait_for_job(engine_service.submit(seed=7, num_images=2))
    assert (job["status"], job["error"], job["progress"]) == ("succeeded", None, None)
    assert [image["seed"] for image in job["result"]["images"]] == [7, 8]
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]


def test_job_request_sent_again_gives_the_same_bytes(engine_service: RunningService) -> None:
    """What a job says of its request is itself a request."""
    first = engine_service.wait_for_job(engine_service.submit())
    answer = engine_service.client.post("/jobs", json=first["request"])
    second = engine_service.wait_for_job(answer.json()["id"])
    urls = [job["result"]["image_url"] for job in (first, second)]
    assert engine_service.client.get(urls[0]).content == engine_service.client.get(urls[1]).content


@pytest.mark.parametrize("path", ["/jobs/{}", "/jobs/{}/image"], ids=["job", "image"])
@pytest.mark.parametrize("job_id", ["0" * 26, "nothing", "%2e%2e", "%00", "'; --"])
def test_job_unknown_id_is_404(engine_service: RunningService, path: str, job_id: str) -> None:
    answer = engine_service.client.get(path.format(job_id))
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.headers["content-type"] == "application/problem+json"


def test_cancel_unknown_id_is_404(engine_service: RunningService) -> None:
    assert cancel(engine_service, "0" * 26).status_code == 404


# List


def test_list_is_newest_first(engine_service: RunningService, running: str) -> None:
    submitted = [engine_service.submit() for _ in range(3)]
    listed = engine_service.client.get("/jobs?limit=4").json()["jobs"]
    assert [job["id"] for job in listed] == [*reversed(submitted), running]


@pytest.mark.parametrize("status", ["queued", "running", "succeeded", "failed", "cancelled"])
def test_list_filters_by_status(engine_service: RunningService, running: str, status: str) -> None:
    waiting = engine_service.submit()
    cancel(engine_service, engine_service.submit())
    listed = engine_service.client.get(f"/jobs?status={status}&limit=500").json()["jobs"]
    ids = {job["id"] for job in listed}
    assert {job["status"] for job in listed} <= {status}
    assert (waiting in ids, running in ids) == (status == "queued", status == "running")


def test_list_pages_cover_all_once(engine_service: RunningService) -> None:
    for job_id in [engine_service.submit() for _ in range(5)]:
        engine_service.wait_for_job(job_id)
    listed = engine_service.client.get("/jobs?limit=5").json()["jobs"]
    pages = [
        engine_service.client.get(f"/jobs?limit=2&offset={offset}").json()["jobs"]
        for offset in (0, 2, 4)
    ]
    ids = [job["id"] for page in pages for job in page]
    assert ids[:5] == [job["id"] for job in listed]
    assert len(set(ids)) == 6


def test_list_beyond_the_end_is_empty(engine_service: RunningService) -> None:
    assert engine_service.client.get("/jobs?offset=1000000").json()["jobs"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"), ("limit=501", "limit"), ("limit=a", "limit"), ("limit=1.5", "limit"),
        ("offset=-1", "offset"), ("offset=99999999999999999999", "offset"),
        ("status=done", "status"), ("status=QUEUED", "status"),
    ],
)  # fmt: skip
def test_list_wrong_query_is_refused(
    engine_service: RunningService, query: str, field: str
) -> None:
    answer = engine_service.client.get(f"/jobs?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert [error["field"] for error in answer.json()["errors"]] == [field]


# Cancel


def test_cancel_waiting_job_ends_it_at_once(engine_service: RunningService, running: str) -> None:
    job_id = engine_service.submit()
    assert cancel(engine_service, job_id).json()["cancelled"] is True
    job = engine_service.job(job_id)
    assert (job["status"], job["attempts"], job["started_at"]) == ("cancelled", 0, None)
    assert is_utc(job["finished_at"])


def test_cancel_waiting_job_moves_the_line_up(engine_service: RunningService, running: str) -> None:
    first, second = engine_service.submit(), engine_service.submit()
    cancel(engine_service, first)
    assert engine_service.job(second)["position"] == 1
    assert engine_service.client.get("/queue").json()["queued"] == 1


def test_cancel_running_job_frees_the_worker(engine_service: RunningService, running: str) -> None:
    behind = engine_service.submit()
    answer = cancel(engine_service, running)
    assert answer.json() == {"id": running, "cancelled": True, "status": "cancelled"}
    assert engine_service.wait_for_job(behind)["status"] == "succeeded"
    assert engine_service.job(running)["status"] == "cancelled"
    assert engine_service.job(running)["result"] is None


def test_cancel_running_job_of_many_pictures_leaves_no_file(engine_service: RunningService) -> None:
    job_id = engine_service.submit(f"hold-late {uuid.uuid4().hex}", num_images=8)
    engine_service.wait_until(lambda: any(job_id in name for name in engine_service.files()))
    cancel(engine_service, job_id)
    engine_service.wait_for_workers()
    engine_service.wait_until(lambda: not any(job_id in name for name in engine_service.files()))


def test_cancel_twice_says_the_same(engine_service: RunningService, running: str) -> None:
    job_id = engine_service.submit()
    assert cancel(engine_service, job_id).json() == cancel(engine_service, job_id).json()
    assert cancel(engine_service, job_id).status_code == 200


def test_cancel_after_the_end_changes_nothing(engine_service: RunningService) -> None:
    job_id = engine_service.submit()
    before = engine_service.wait_for_job(job_id)
    answer = cancel(engine_service, job_id)
    assert answer.status_code == 200
    assert (answer.json()["cancelled"], answer.json()["status"]) == (False, "succeeded")
    assert engine_service.job(job_id) == before


def test_cancel_of_a_failed_job_changes_nothing(engine_service: RunningService) -> None:
    job_id = engine_service.submit("raise")
    engine_service.wait_for_job(job_id, "failed")
    assert cancel(engine_service, job_id).json()["cancelled"] is False


def test_cancel_in_parallel_has_one_end(engine_service: RunningService, running: str) -> None:
    job_id = engine_service.submit()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: cancel(engine_service, job_id).json(), range(8)))
    assert all(answer == answers[0] for answer in answers) and answers[0]["cancelled"]
    assert engine_service.client.get("/queue").json()["queued"] == 0


# Idempotency-Key


def test_key_again_with_the_same_body_is_the_same_job(engine_service: RunningService) -> None:
    key, before = uuid.uuid4().hex, count(engine_service)
    first, second = post_job(engine_service, key), post_job(engine_service, key)
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]
    assert count(engine_service) == before + 1


def test_key_again_after_the_end_is_the_same_job(engine_service: RunningService) -> None:
    key = uuid.uuid4().hex
    first = post_job(engine_service, key).json()["id"]
    engine_service.wait_for_job(first)
    again = post_job(engine_service, key).json()
    assert again == {"id": first, "status": "succeeded", "position": None}


def test_key_again_with_a_drawn_seed_is_the_same_job(engine_service: RunningService) -> None:
    key = uuid.uuid4().hex
    ids = {post_job(engine_service, key, seed=None).json()["id"] for _ in range(2)}
    assert len(ids) == 1


def test_key_again_with_the_same_body_in_other_words_is_the_same_job(
    engine_service: RunningService,
) -> None:
    key = uuid.uuid4().hex
    ids = {
        post_job(engine_service, key, steps=3).json()["id"],
        post_job(engine_service, key, num_inference_steps=3, metadata={"tags": []}).json()["id"],
    }
    assert len(ids) == 1


@pytest.mark.parametrize(
    "other", [{"prompt": "b"}, {"seed": 2}, {"num_images": 2}, {"metadata": {"tags": ["a"]}}]
)
def test_key_again_with_another_body_is_422(engine_service: RunningService, other: dict) -> None:
    key = uuid.uuid4().hex
    post_job(engine_service, key)
    before = count(engine_service)
    answer = post_job(engine_service, key, **other)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
    assert count(engine_service) == before


def test_key_twenty_times_at_once_is_one_job(engine_service: RunningService) -> None:
    key, before = uuid.uuid4().hex, count(engine_service)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: post_job(engine_service, key), range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert count(engine_service) == before + 1
    assert engine_service.client.get("/health").json()["queued"] in (0, 1)


def test_key_of_a_refused_body_may_be_used_again(engine_service: RunningService) -> None:
    key = uuid.uuid4().hex
    assert post_job(engine_service, key, width=1).status_code == 400
    assert post_job(engine_service, key).status_code == 202


@pytest.mark.parametrize("key", ["", "k" * 201], ids=["empty", "too long"])
def test_key_of_a_wrong_length_is_refused(engine_service: RunningService, key: str) -> None:
    answer = post_job(engine_service, key)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"].lower() == "idempotency-key"


# A job's picture


def test_job_image_is_the_file(engine_service: RunningService) -> None:
    job = engine_service.wait_for_job(engine_service.submit(num_images=2))
    for index, image in enumerate(job["result"]["images"]):
        answer = engine_service.client.get(f"/jobs/{job['id']}/image?index={index}")
        assert answer.headers["content-type"] == "image/png"
        assert answer.content == engine_service.client.get(image["image_url"]).content


def test_job_image_without_index_is_the_first(engine_service: RunningService) -> None:
    job = engine_service.wait_for_job(engine_service.submit(num_images=2))
    first = engine_service.client.get(job["result"]["images"][0]["image_url"])
    assert engine_service.client.get(f"/jobs/{job['id']}/image").content == first.content


def test_job_image_beyond_the_last_is_404(engine_service: RunningService) -> None:
    job = engine_service.wait_for_job(engine_service.submit())
    assert engine_service.client.get(f"/jobs/{job['id']}/image?index=1").status_code == 404


@pytest.mark.parametrize("index", ["-1", "8", "a"])
def test_job_image_wrong_index_is_refused(engine_service: RunningService, index: str) -> None:
    job = engine_service.wait_for_job(engine_service.submit())
    answer = engine_service.client.get(f"/jobs/{job['id']}/image?index={index}")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "index")


def test_job_image_not_there_yet_is_404_that_says_so(
    engine_service: RunningService, running: str
) -> None:
    for job_id, status in ((running, "running"), (engine_service.submit(), "queued")):
        answer = engine_service.client.get(f"/jobs/{job_id}/image")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert status in answer.json()["detail"]


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_job_image_that_never_comes_is_404_that_says_so(
    engine_service: RunningService, running: str, status: str
) -> None:
    if status == "failed":
        job_id = engine_service.submit("raise")
        cancel(engine_service, running)
    else:
        job_id = engine_service.submit()
        cancel(engine_service, job_id)
    engine_service.wait_for_job(job_id, status)
    answer = engine_service.client.get(f"/jobs/{job_id}/image")
    assert answer.status_code == 404
    assert status in answer.json()["detail"]
