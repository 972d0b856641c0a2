"""The service itself, the queue as a whole, the page, what is not built, what does not exist."""

from __future__ import annotations

import re
import uuid

import pytest

from api.document import DIALECTS
from api.routes.page import FRONTEND
from api.version import VERSION
from config.settings import ROOT
from tests.service import RunningService

BUILT = {
    ("POST", "/generate"), ("POST", "/jobs"), ("GET", "/jobs"), ("GET", "/jobs/{job_id}"),
    ("POST", "/jobs/{job_id}/cancel"), ("GET", "/jobs/{job_id}/image"), ("GET", "/queue"),
    ("GET", "/images"), ("GET", "/images/{image_id}"), ("GET", "/images/{image_id}/thumbnail"),
    ("DELETE", "/images/{image_id}"), ("GET", "/download/{filename}"), ("GET", "/health"),
    ("GET", "/health/live"), ("GET", "/health/ready"), ("GET", "/info"), ("GET", "/api/backends"),
    ("GET", "/api/models"), ("GET", "/model-status"), ("POST", "/load-model"),
    ("POST", "/unload-model"), ("GET", "/gpu-info"), ("GET", "/queue-stats"),
    ("POST", "/jobs/{job_id}/retry"), ("GET", "/jobs/{job_id}/events"), ("GET", "/events"),
    ("GET", "/loras"), ("POST", "/loras"), ("PUT", "/loras/{name}"), ("POST", "/upload-lora"),
    ("GET", "/loras/{name}"), ("PATCH", "/loras/{name}"), ("DELETE", "/loras/{name}"),
    ("GET", "/lora-status"), ("POST", "/apply-lora"), ("POST", "/remove-lora"),
    ("POST", "/queue/pause"), ("POST", "/queue/resume"), ("POST", "/queue/clear"),
    ("POST", "/upload-image-generate"), ("POST", "/images/inspect"), ("GET", "/usage"),
    ("GET", "/admin/keys"), ("POST", "/admin/keys"), ("DELETE", "/admin/keys/{key_id}"),
    ("POST", "/submit-request"), ("GET", "/request-status/{job_id}"),
    ("PUT", "/images/{image_id}/pin"), ("DELETE", "/images/{image_id}/pin"), ("GET", "/metrics"),
    ("GET", "/admin/cleanup"), ("POST", "/admin/cleanup"), ("POST", "/cancel-request/{job_id}"),
    ("DELETE", "/cancel-request/{job_id}"), ("GET", "/delivery/{token}/{image_id}/{filename}"),
}  # fmt: skip


# Health and facts


def test_health_of_a_service_that_can_serve(engine_service: RunningService) -> None:
    engine_service.wait_for_workers()
    for path in ("/health", "/health/ready"):
        answer = engine_service.client.get(path)
        assert (answer.status_code, answer.json()["status"]) == (200, "ok")
        assert answer.json()["reason"] is None
    health = engine_service.client.get("/health").json()
    assert (health["precision"], health["default_model"]) == ("bf16", "embedded")
    assert health["workers"][0]["state"] == "idle"


def test_health_live_tells_little(engine_service: RunningService) -> None:
    answer = engine_service.client.get("/health/live")
    assert answer.json() == {"status": "ok", "service": "flux-api-bf16"}


def test_info_says_what_draws_and_why(engine_service: RunningService) -> None:
    info = engine_service.client.get("/info").json()
    assert (info["precision"], info["version"]) == ("bf16", VERSION)
    assert info["default_model"] == "embedded" and "no GPU" in info["default_model_reason"]
    assert set(info["libraries"]) == {"torch", "diffusers", "transformers"}
    assert info["key_needed"] is False
    assert info["not_built"]["fields"] == []


def test_info_tells_no_path_of_this_machine(engine_service: RunningService) -> None:
    for path in ("/info", "/health", "/queue", "/model-status", "/gpu-info"):
        text = engine_service.client.get(path).text
        assert str(ROOT) not in text and str(engine_service.folder) not in text


def test_gpu_info_without_a_gpu_says_why(engine_service: RunningService) -> None:
    info = engine_service.client.get("/gpu-info").json()
    assert info["gpus"] == []
    assert re.search("driver|nvidia", info["reason"], re.IGNORECASE)
    assert [device["kind"] for device in info["devices"]] == ["cpu"]


# Queue


def test_queue_shows_who_runs_and_how_many_wait(engine_service: RunningService) -> None:
    gate = uuid.uuid4().hex
    running = engine_service.submit(f"hold {gate}")
    engine_service.wait_until_at_work(running)
    waiting = [engine_service.submit() for _ in range(2)]
    queue = engine_service.client.get("/queue").json()
    engine_service.release(gate)
    for job_id in waiting:
        engine_service.wait_for_job(job_id)
    assert (queue["paused"], queue["running"], queue["queued"]) == (False, [running], 2)
    assert queue["max_queue_size"] == 100
    (worker,) = queue["workers"]
    assert (worker["state"], worker["job_id"]) == ("busy", running)


def test_queue_stats_count_jobs_by_status(engine_service: RunningService) -> None:
    engine_service.wait_until_quiet()
    before = engine_service.client.get("/queue-stats").json()
    engine_service.wait_for_job(engine_service.submit("raise"))
    engine_service.wait_for_job(engine_service.submit())
    engine_service.wait_until_quiet()
    after = engine_service.client.get("/queue-stats").json()
    assert after["failed"] - before["failed"] == 1
    assert after["succeeded"] - before["succeeded"] == 1
    assert (after["queued"], after["running"], after["cancelled"]) == (0, 0, before["cancelled"])
    assert after["mean_job_seconds"] > 0
    assert after["estimated_wait_seconds"] == 0


# The document


def test_openapi_lists_our_own_routes_and_nothing_else(engine_service: RunningService) -> None:
    paths = engine_service.client.get("/openapi.json").json()["paths"]
    listed = {
        (method.upper(), path)
        for path, item in paths.items()
        for method, operation in item.items()
        if DIALECTS.isdisjoint(operation["tags"])
    }
    assert listed == BUILT


def test_openapi_describes_errors_as_they_are(engine_service: RunningService) -> None:
    """A wrong body is 400 with a problem, so 422 with another shape must not be promised."""
    paths = engine_service.client.get("/openapi.json").json()["paths"]
    responses = paths["/generate"]["post"]["responses"]
    assert "HTTPValidationError" not in str(responses)
    assert "400" in responses or "4XX" in responses or "default" in responses


def test_docs_answer(engine_service: RunningService) -> None:
    answer = engine_service.client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")


def test_docs_load_nothing_from_elsewhere(engine_service: RunningService) -> None:
    """A script of another host would run with the rights of this service's own page."""
    page = engine_service.client.get("/docs").text
    sources = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert [source for source in sources if "//" in source] == []


# What does not exist


@pytest.mark.parametrize(
    "path", ["/nothing", "/generate/x", "/jobs/x/y", "/images/x/y/z", "/%00", "/" + "a" * 5000, "/redoc"]
)  # fmt: skip
def test_route_unknown_is_404_as_a_problem(engine_service: RunningService, path: str) -> None:
    answer = engine_service.client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["X-Request-Id"]
    assert len(answer.text) < 1000


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/generate"), ("DELETE", "/jobs"), ("POST", "/health"), ("PUT", "/images/x"), ("POST", "/ui/")],
)  # fmt: skip
def test_route_with_a_wrong_method_is_405_as_a_problem(
    engine_service: RunningService, method: str, path: str
) -> None:
    answer = engine_service.client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["content-type"] == "application/problem+json"
    assert method in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("DELETE", "/loras", "GET, POST"), ("POST", "/loras/x", "GET, PUT, PATCH, DELETE")],
)
def test_path_of_several_routes_names_the_methods_of_all(
    engine_service: RunningService, method: str, path: str, allowed: str
) -> None:
    answer = engine_service.client.request(method, path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
    assert answer.json()["detail"].endswith(f"it answers {allowed}")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD", "TRACE", "FOO"])
def test_route_of_post_names_its_method(engine_service: RunningService, method: str) -> None:
    answer = engine_service.client.request(method, "/generate")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "path", ["/health", "/health/live", "/info", "/jobs", "/images", "/openapi.json", "/ui/", "/docs"]
)  # fmt: skip
def test_head_is_answered_as_get_without_the_body(
    engine_service: RunningService, path: str
) -> None:
    got, asked = engine_service.client.get(path), engine_service.client.head(path)
    assert (asked.status_code, asked.content) == (got.status_code, b"")
    assert asked.headers["content-type"] == got.headers["content-type"]
    assert (
        engine_service.client.get("/health/live").status_code == 200
    ), "the connection is in order"


def test_head_of_an_unknown_route_is_404(engine_service: RunningService) -> None:
    assert engine_service.client.head("/nothing").status_code == 404


def test_head_of_a_stream_is_refused(engine_service: RunningService) -> None:
    assert engine_service.client.head("/events").status_code == 405


# The page


@pytest.mark.parametrize("path", ["/ui/", "/ui/index.html"])
def test_page_is_served_with_its_policy(engine_service: RunningService, path: str) -> None:
    answer = engine_service.client.get(path)
    assert answer.content == (FRONTEND / "index.html").read_bytes()
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "*;" not in policy.replace(":*;", ";")


@pytest.mark.parametrize("path", ["/", "/ui"])
def test_page_is_found_from_its_shorter_names(engine_service: RunningService, path: str) -> None:
    answer = engine_service.client.get(path)
    assert answer.status_code == 307
    assert answer.headers["location"].endswith("/ui/")


@pytest.mark.parametrize(
    "path",
    [
        "/ui/../main_bf16.py", "/ui/%2e%2e/main_bf16.py", "/ui/..%2fmain_bf16.py",
        "/ui/%2e%2e%2fmain_bf16.py", "/ui/..%5cmain_bf16.py", "/ui//etc/passwd",
        "/ui/%2fetc%2fpasswd", "/ui/%00", "/ui/index.html%00.png", "/ui/" + "a" * 300,
        "/ui/%ff", "/ui/" + "a/" * 2000, "/uix/index.html",
    ],
)  # fmt: skip
def test_page_serves_nothing_outside_its_folder(engine_service: RunningService, path: str) -> None:
    answer = engine_service.client.get(path)
    assert answer.status_code == 404
    assert b"FLUX API" not in answer.content and b"root:" not in answer.content
