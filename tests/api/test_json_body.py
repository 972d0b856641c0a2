"""Bodies the quick way and the framework's way: nobody can tell from an answer which it was."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from api.auth import EVERYBODY
from api.json_body import QuickPost
from config.errors import QueueFull
from tests.service import RunningService

QUICK = "application/json"
GENERAL = "application/json; charset=utf-8"  # means the same, and is not taken the quick way
SOUND = {"prompt": "a", "width": 128, "height": 128}
PAGE = "http://127.0.0.1:9000"

REFUSED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"a"',
    b"{} {}",
    b"\xef\xbb\xbf{}",
    b'{"prompt": "\xff"}',
    b'{"prompt": "a", "prompt": "b"}',
    b'{"prompt": NaN}',
    b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"prompt": "a\\u0000"}',
    b'{"prompt": "a", "steps": 0, "width": 17}',
    b'{"prompt": "a", "colour": "red"}',
    b'{"prompt": "a", "model": "none-such"}',
    b'{"prompt": "a", "image": "x"}',
]


def post(service: RunningService, content: bytes, kind: str, **headers: str) -> httpx2.Response:
    headers = {"Content-Type": kind, **headers}
    return service.client.post("/jobs", content=content, headers=headers)


def without_id(answer: httpx2.Response) -> Any:
    body = answer.json()
    return answer.status_code, {**body, "request_id": None}


@pytest.mark.parametrize("content", REFUSED, ids=lambda content: content[:24].decode("latin-1"))
def test_body_refused_is_refused_alike_both_ways(
    engine_service: RunningService, content: bytes
) -> None:
    quick, general = (post(engine_service, content, kind) for kind in (QUICK, GENERAL))
    assert without_id(quick) == without_id(general)
    assert quick.status_code >= 400
    assert quick.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("origin", [None, PAGE])
def test_body_sound_is_answered_alike_both_ways(
    engine_service: RunningService, origin: str | None
) -> None:
    headers = {} if origin is None else {"Origin": origin}
    content = json.dumps(SOUND).encode()
    answers = [post(engine_service, content, kind, **headers) for kind in (QUICK, GENERAL)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json().keys() == answers[1].json().keys()
    assert sorted(answers[0].headers) == sorted(answers[1].headers)
    assert answers[0].headers["vary"] == answers[1].headers["vary"]


def test_body_in_pieces_is_one_body(engine_service: RunningService) -> None:
    content = json.dumps(SOUND).encode()
    head = (
        f"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {QUICK}\r\n"
        "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    pieces = [b"1\r\n" + bytes([byte]) + b"\r\n" for byte in content]
    with socket.create_connection(("127.0.0.1", engine_service.port), timeout=60) as connection:
        connection.sendall(head.encode())
        for piece in pieces:
            connection.sendall(piece)
        connection.sendall(b"0\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 202")


@pytest.mark.parametrize("kind", [QUICK, GENERAL], ids=["quick", "general"])
def test_body_that_breaks_off_makes_no_job(engine_service: RunningService, kind: str) -> None:
    """One byte is missing, and what is there would be a sound body."""
    content = json.dumps({**SOUND, "prompt": f"broken off {kind}"}).encode()
    head = (
        f"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(content) + 1}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", engine_service.port), timeout=60) as connection:
        connection.sendall(head.encode() + content)
    time.sleep(0.3)  # it would be there in a few milliseconds
    jobs = engine_service.client.get("/jobs?limit=20").json()["jobs"]
    assert f"broken off {kind}" not in [job["request"]["prompt"] for job in jobs]


# The layer alone, around an application that says what reaches it


class Body(BaseModel):
    number: int


async def full(request: Request, body: Body, services: Any) -> dict[str, Any]:
    raise QueueFull("as many as may wait do")


async def doubled(request: Request, body: Body, services: Any) -> dict[str, Any]:
    return {"number": body.number * 2}


class Echo:
    """Answers 200 with the body that it was given, and keeps what came after it."""

    def __init__(self) -> None:
        self.after: Message | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.after = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def ask(
    endpoint: Any, pieces: list[bytes], *, path: str = "/n", method: str = "POST"
) -> tuple[list[Message], Echo]:
    echo, sent = Echo(), []
    messages = [{"type": "http.request", "body": each, "more_body": True} for each in pieces]
    messages[-1]["more_body"] = False
    waiting = iter([*messages, {"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(waiting)

    async def send(message: Message) -> None:
        sent.append(message)

    app = type("App", (), {"state": type("State", (), {"services": None})})
    scope = {
        "type": "http",
        "path": path,
        "method": method,
        "headers": [(b"content-type", QUICK.encode())],
        "app": app,
        "state": {"access": EVERYBODY},
    }
    asyncio.run(QuickPost(echo, "/n", endpoint, 202)(scope, receive, send))
    return sent, echo


def test_quick_post_sound_body_calls_the_endpoint() -> None:
    sent, echo = ask(doubled, [b'{"num', b'ber": 2}'])
    assert sent[0]["status"] == 202
    assert sent[1]["body"] == b'{"number":4}'
    assert echo.after is None


@pytest.mark.parametrize("pieces", [[b'{"number": "x"}'], [b"{", b'"number"', b"}"], [b""]])
def test_quick_post_unsound_body_goes_on_whole(pieces: list[bytes]) -> None:
    sent, echo = ask(doubled, pieces)
    assert sent[1]["body"] == b"".join(pieces)
    assert echo.after == {"type": "http.disconnect"}


@pytest.mark.parametrize(("path", "method"), [("/other", "POST"), ("/n", "GET"), ("/n/", "POST")])
def test_quick_post_leaves_other_routes_alone(path: str, method: str) -> None:
    sent, _ = ask(doubled, [b'{"number": 2}'], path=path, method=method)
    assert sent[0]["status"] == 200


def test_quick_post_error_of_the_endpoint_is_not_asked_again() -> None:
    with pytest.raises(QueueFull):
        ask(full, [b'{"number": 2}'])
