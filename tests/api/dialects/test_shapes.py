"""What is answered before any route is reached, in the words of the dialect whose path it is."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from http.client import HTTPResponse
from typing import Any

import pytest

from api.dialects import shapes
from config.errors import FluxError, InvalidRequest, TooLarge, Unavailable
from tests.api.dialects.conftest import KEY
from tests.service import RunningService

IS_OF: dict[str, Callable[[Any], bool]] = {
    "openai": lambda body: set(body["error"]) == {"message", "type", "param", "code"},
    "bfl": lambda body: list(body) == ["detail"],
    "sdapi": lambda body: set(body) == {"error", "detail", "body", "errors"},
    "fleet": lambda body: list(body) == ["error"] and isinstance(body["error"], str),
    "comfy": lambda body: set(body) == {"error", "node_errors"} and "type" in body["error"],
    "native": lambda body: {"type", "title", "status", "code"} <= set(body),
}
PATHS = [
    ("openai", "POST", "/v1/images/generations"),
    ("openai", "POST", "/v1/images/edits"),
    ("openai", "GET", "/v1/models"),
    ("openai", "POST", "/v1/chat/completions"),
    ("bfl", "POST", "/v1/flux-dev"),
    ("bfl", "GET", "/v1/get_result"),
    ("sdapi", "POST", "/sdapi/v1/txt2img"),
    ("sdapi", "GET", "/sdapi/v1/options"),
    ("fleet", "POST", "/api/generate-image"),
    ("fleet", "GET", "/dashboard/api/health"),
    ("comfy", "POST", "/prompt"),
    ("comfy", "POST", "/api/prompt"),
    ("comfy", "GET", "/history/x"),
    ("comfy", "POST", "/upload/image"),
    ("comfy", "GET", "/object_info"),
    ("native", "POST", "/api/txt2img"),
    ("native", "GET", "/api/models"),
    ("native", "GET", "/api/backends"),
    ("native", "GET", "/queue"),
    ("native", "POST", "/generate"),
    ("native", "GET", "/v1x"),
    ("native", "GET", "/promptly"),
]


@pytest.mark.parametrize(("shape", "method", "path"), PATHS)
def test_key_that_is_missing(keyed: RunningService, shape: str, method: str, path: str) -> None:
    answer = keyed.client.request(method, path)
    assert answer.status_code == 401
    assert IS_OF[shape](answer.json()), answer.text
    assert "WWW-Authenticate" in answer.headers
    assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize(("shape", "method", "path"), PATHS)
def test_host_that_is_foreign(
    engine_service: RunningService, shape: str, method: str, path: str
) -> None:
    answer = engine_service.client.request(method, path, headers={"Host": "evil.example"})
    assert answer.status_code == 403
    assert IS_OF[shape](answer.json()), answer.text


@pytest.mark.parametrize(
    ("shape", "path"), [(shape, path) for shape, method, path in PATHS if method == "POST"]
)
def test_origin_that_is_foreign(engine_service: RunningService, shape: str, path: str) -> None:
    headers = {"Origin": "http://evil.example", "Content-Type": "text/plain"}
    answer = engine_service.client.post(path, content=b'{"prompt": "x"}', headers=headers)
    assert answer.status_code == 403
    assert IS_OF[shape](answer.json()), answer.text


@pytest.mark.parametrize(
    ("shape", "path"), [(shape, path) for shape, method, path in PATHS if method == "POST"]
)
def test_body_that_says_it_is_too_long_is_refused_before_it_is_sent(
    engine_service: RunningService, shape: str, path: str
) -> None:
    with socket.create_connection(("127.0.0.1", engine_service.port), timeout=60) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {2**40}\r\n\r\n"
        connection.sendall(head.encode())
        answer = HTTPResponse(connection, method="POST")
        answer.begin()
        body = json.loads(answer.read())
    assert answer.status == 413
    assert IS_OF[shape](body), body


@pytest.mark.parametrize(("shape", "method", "path"), PATHS)
def test_path_that_is_not_there(
    engine_service: RunningService, shape: str, method: str, path: str
) -> None:
    answer = engine_service.client.request("DELETE", path)
    assert answer.status_code in (404, 405)
    assert IS_OF[shape](answer.json()), answer.text


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"a":1,"a":2}', b"[" * 5000])
@pytest.mark.parametrize(
    ("shape", "path"),
    [
        (shape, path)
        for shape, method, path in PATHS
        if method == "POST" and shape != "native" and "chat" not in path and "upload" not in path
    ],
)
def test_body_that_is_no_object(
    engine_service: RunningService, shape: str, path: str, body: bytes
) -> None:
    path = path.replace("flux-dev", "embedded")
    answer = engine_service.client.post(path, content=body)
    assert answer.status_code in (400, 422), answer.text
    assert IS_OF[shape](answer.json()), answer.text


# The shapes themselves


def test_queue_that_is_full_is_a_rate_limit_to_openai() -> None:
    error = FluxError("as many jobs wait as may wait", retry_after_seconds=9)
    error.code, error.status = "queue_full", 429
    shaped = shapes.openai(error)
    assert (shaped.status, shaped.body["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "x-should-retry" not in shaped.headers


@pytest.mark.parametrize(("code", "status"), [("moderated", 502), ("nsfw_blocked", 422)])
def test_picture_that_was_blocked_is_the_clients_fault_to_openai(code: str, status: int) -> None:
    error = FluxError("the picture was blocked")
    error.code, error.status = code, status
    shaped = shapes.openai(error)
    assert (shaped.status, shaped.body["error"]["code"]) == (400, "moderation_blocked")


def test_service_that_is_stopping_may_be_asked_again() -> None:
    assert "x-should-retry" not in shapes.openai(Unavailable("stopping")).headers
    assert shapes.openai(FluxError("broken")).headers == {"x-should-retry": "false"}


def test_wrong_field_has_its_place_for_bfl() -> None:
    shaped = shapes.bfl(InvalidRequest.of("loras.0.name", "is empty"))
    assert shaped.status == 422
    assert shaped.body["detail"][0]["loc"] == ["body", "loras", "0", "name"]


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/v1/images/edits", 30),
        ("/v1/flux-dev", 30),
        ("/sdapi/v1/img2img", 30),
        ("/upload/image", 30),
        ("/prompt", 1),
        ("/v1/images/generations", 1),
        ("/sdapi/v1/options", None),
        ("/generate", None),
        ("/history", None),
    ],
)
def test_body_limit_is_by_what_may_be_in_it(path: str, limit: int | None) -> None:
    found = shapes.body_limit(path, 30 * 2**20)
    assert found == (None if limit is None else limit * 2**20)


def test_key_in_the_url_is_refused_in_the_dialects_words(keyed: RunningService) -> None:
    answer = keyed.client.get(f"/v1/models?api_key={KEY}")
    assert answer.status_code == 401
    assert IS_OF["openai"](answer.json())
    assert KEY not in answer.text


def test_too_large_is_told_with_its_limit() -> None:
    error = TooLarge("the body is longer than 2097152 bytes")
    assert shapes.fleet(error).body == {"error": "the body is longer than 2097152 bytes"}
