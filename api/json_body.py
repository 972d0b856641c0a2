"""Reads JSON bodies strictly: a name that stands twice is an error, and so is what only looks like JSON."""

from __future__ import annotations

import json
import math
import re
import typing
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.services import services_for
from config.errors import InvalidRequest

MAX_NAMES = 200  # of one object
MAX_DEPTH = 64  # of what a dialect passes over and tells again
_HALF_PAIR = re.compile("[\ud800-\udfff]")


class StrictJsonRequest(Request):
    """A request whose `json()` raises InvalidRequest with the reason, or JSONDecodeError with the place."""

    async def json(self) -> Any:
        return parse(await self.body())


class StrictJsonRoute(APIRoute):
    """Gives a route's bodies to StrictJsonRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictJsonRequest(request.scope, request.receive))

        return strict


class QuickPost:
    """Calls the endpoint `(request, body, services)` of one path itself when the body is sound.

    The framework's general way (layers, routes, content type, dependencies, for every call) takes
    longer than all that a submit does. Whatever is not sound goes that way and is answered by it.
    """

    def __init__(
        self, app: ASGIApp, path: str, endpoint: Callable[..., Awaitable[Any]], status: int
    ) -> None:
        self._app = app
        self._path = path
        self._endpoint = endpoint
        self._status = status
        self._model = typing.get_type_hints(endpoint)["body"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") != self._path or scope.get("method") != "POST":
            return await self._app(scope, receive, send)
        if Headers(scope=scope).get("content-type") != "application/json":
            return await self._app(scope, receive, send)
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        if messages[-1]["type"] == "http.disconnect":  # what came of the body may look whole
            return await self._app(scope, _once_more(messages, receive), send)
        try:
            content = b"".join(message.get("body", b"") for message in messages)
            body = self._model.model_validate(parse(content))
        except (ValidationError, json.JSONDecodeError, InvalidRequest):
            return await self._app(scope, _once_more(messages, receive), send)
        request = Request(scope)
        answer = await self._endpoint(request, body, services_for(request))
        content = _ENCODER.encode(answer).encode()
        headers = [
            (b"content-length", b"%d" % len(content)),
            (b"content-type", b"application/json"),
        ]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def _once_more(messages: list[Message], receive: Receive) -> Receive:
    """`receive` for somebody who has not seen the messages that came already."""
    waiting = iter(messages)

    async def replay() -> Message:
        message = next(waiting, None)
        return await receive() if message is None else message

    return replay


def parse(content: bytes) -> Any:
    """A value from JSON. Raises InvalidRequest with the reason, or JSONDecodeError with the place."""
    try:
        return _DECODER.decode(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequest.of("body", f"is not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise InvalidRequest.of("body", "is nested too deeply") from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise InvalidRequest.of("body", "holds a number with too many digits") from error


def why_not_tellable(value: Any) -> str | None:
    """Why no answer can hold a value that was parsed; None when one can."""
    waiting = [(value, 0)]
    while waiting:
        each, depth = waiting.pop()
        if isinstance(each, str):
            found = None if each.isascii() else _HALF_PAIR.search(each)
            if found is not None:
                return (
                    f"holds the character U+{ord(found.group()):04X}, which is no text; remove it"
                )
        elif isinstance(each, float):
            if not math.isfinite(each):
                return "holds a number that is none or too large"
        elif isinstance(each, dict | list):
            if depth == MAX_DEPTH:
                return f"is nested deeper than {MAX_DEPTH} levels"
            inner = (*each, *each.values()) if isinstance(each, dict) else each
            waiting.extend((item, depth + 1) for item in inner)
    return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_NAMES:
        raise InvalidRequest.of(
            "body", f"has an object with {len(pairs)} names; no request has that many"
        )
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise InvalidRequest.of(twice[:64], "stands twice in the body; send it once")
    return found


# Made once: `json.loads` and `json.dumps` make one for every call.
_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
