"""Routes of the contract that this version does not have: each answers 501 and says what is missing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Response

from config.errors import NotBuilt

NOT_BUILT = (("GET", "/metrics", "Prometheus metrics"),)

router = APIRouter()


def _answer(what: str) -> Callable[[], Awaitable[Response]]:
    async def not_built() -> Response:
        raise NotBuilt(f"{what} is not built yet in this version; GET /docs lists what is")

    return not_built


for _method, _path, _what in NOT_BUILT:
    router.add_api_route(_path, _answer(_what), methods=[_method], include_in_schema=False)
