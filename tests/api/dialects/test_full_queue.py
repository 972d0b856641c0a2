"""A queue that is full, and one that stops: told to each dialect's clients in their words, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.dialects.comfy_prompts import ksampler
from tests.api.dialects.test_shapes import IS_OF
from tests.service import ENGINE_MAIN, RunningService

SIZE = {"width": 128, "height": 128}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service on which one job runs and one waits, which is all that may."""
    running = RunningService(
        tmp_path_factory.mktemp("full"),
        main=ENGINE_MAIN,
        TEST_ENGINE="scripted",
        FLUX_MAX_QUEUE_SIZE="1",
    ).start()
    try:
        running.wait_for_workers()
        held = running.submit("hold full")
        running.wait_for_job(held, "running")
        running.submit("waits")
        yield running
        running.release("full")
    finally:
        running.close()


@pytest.mark.parametrize(
    ("shape", "path", "body"),
    [
        ("openai", "/v1/images/generations", {"prompt": "x", "size": "128x128"}),
        ("openai", "/v1/images/generations", {"prompt": "x", "size": "128x128", "stream": True}),
        ("bfl", "/v1/embedded", {"prompt": "x", **SIZE}),
        ("sdapi", "/sdapi/v1/txt2img", {"prompt": "x", **SIZE}),
        ("fleet", "/api/generate-image", {"model": "embedded", "prompt": "x", **SIZE}),
        ("comfy", "/prompt", {"prompt": ksampler()}),
        ("native", "/api/txt2img", {"prompt": "x", **SIZE}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_queue_that_is_full_is_429_with_when_to_try_again(
    full: RunningService, shape: str, path: str, body: dict[str, Any]
) -> None:
    answer = full.client.post(path, json=body)
    assert answer.status_code == 429, answer.text
    assert IS_OF[shape](answer.json()), answer.text
    assert int(answer.headers["Retry-After"]) > 0


def test_iterations_that_do_not_all_find_room_leave_none_behind(full: RunningService) -> None:
    jobs = full.client.get("/jobs").json()["jobs"]
    [waits] = [job["id"] for job in jobs if job["request"]["prompt"] == "waits"]
    full.client.post(f"/jobs/{waits}/cancel")
    try:
        body = {"prompt": "iterations", "n_iter": 3, **SIZE}
        assert full.client.post("/sdapi/v1/txt2img", json=body).status_code == 429
        jobs = full.client.get("/jobs").json()["jobs"]
        left = [job["status"] for job in jobs if job["request"]["prompt"] == "iterations"]
        assert left == ["cancelled"]
    finally:
        full.submit("waits")
