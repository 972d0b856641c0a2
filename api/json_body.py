"""Reads JSON bodies strictly: a name that stands twice is an error, and so is what only looks like JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

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
