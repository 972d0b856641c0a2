"""Reads JSON bodies strictly: a name that stands twice is an error, and so is what only looks like JSON."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import ValidationError

from config.errors import InvalidRequest

MAX_NAMES = 200  # of one object


class StrictJsonRequest(Request):
    """A request whose `json()` raises InvalidRequest with the reason, or JSONDecodeError with the place."""

    async def json(self) -> Any:
        body = await self.body()
        try:
            return json.loads(body.decode("utf-8"), object_pairs_hook=_object)
        except UnicodeDecodeError as error:
            raise InvalidRequest.of("body", f"is not UTF-8 at byte {error.start}") from error
        except RecursionError as error:
            raise InvalidRequest.of("body", "is nested too deeply") from error
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            raise InvalidRequest.of("body", "holds a number with too many digits") from error


class StrictJsonRoute(APIRoute):
    """Gives a route's bodies to StrictJsonRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictJsonRequest(request.scope, request.receive))

        return strict


class QuickJsonRoute(StrictJsonRoute):
    """Calls an endpoint `(request, body, services)` itself when the body is sound.

    The framework's general way (content type, dependencies, parameters, all of it for every call)
    costs a submit a third of its time. Whatever is not sound goes that way and is answered by it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        general, endpoint = APIRoute.get_route_handler(self), self.endpoint
        hints = typing.get_type_hints(endpoint)
        if list(inspect.signature(endpoint).parameters) != ["request", "body", "services"]:
            return super().get_route_handler()
        model, status = hints["body"], self.status_code or 200

        async def quick(request: Request) -> Response:
            strict = StrictJsonRequest(request.scope, request.receive)
            if request.headers.get("content-type") != "application/json":
                return await general(strict)
            try:
                body = model.model_validate(await strict.json())
            except (ValidationError, json.JSONDecodeError, InvalidRequest):
                return await general(strict)  # the body was read, and is kept by `strict`
            answer = await endpoint(strict, body, request.app.state.services)
            return JSONResponse(answer, status)

        return quick


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
