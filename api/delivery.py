"""Links to pictures for whoever has them, as the clouds hand them out: without a key, for an hour.

A client of such a cloud fetches its picture with a plain GET. The link holds a signature of the
picture's id and of the link's end, made with a secret that this process drew at its start.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import FileResponse

from api.routes.images import file_of
from api.services import ServicesDep
from config.errors import NotFound

PREFIX = "/delivery"
LINK_SECONDS = 3600

router = APIRouter(tags=["images"])


class Delivery:
    """Makes links and checks them. `now` is in seconds, of any clock that is not set back."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._secret = secrets.token_bytes(32)

    def link(self, request: Request, image_id: str, filename: str) -> str:
        """The link by the name that the client called us by."""
        ends = int(self._now()) + LINK_SECONDS
        path = f"{PREFIX}/{ends}-{self._signature(image_id, ends)}/{image_id}/{filename}"
        return str(request.base_url).rstrip("/") + path

    def require(self, token: str, image_id: str) -> None:
        """Raises NotFound for a link that is not ours or has ended."""
        ends, _, signature = token.partition("-")
        is_number = ends.isascii() and ends.isdecimal() and len(ends) <= 15
        ours = self._signature(image_id, int(ends)) if is_number else ""
        if not hmac.compare_digest(ours.encode(), signature.encode()) or not is_number:
            raise NotFound("the link is not one of this service, or of an earlier start of it")
        if int(ends) < self._now():
            raise NotFound(
                f"the link has ended after {LINK_SECONDS // 60} minutes; ask for another"
            )

    def _signature(self, image_id: str, ends: int) -> str:
        return hmac.new(self._secret, f"{ends} {image_id}".encode(), sha256).hexdigest()


def delivery_of(request: Request) -> Delivery:
    return request.app.state.delivery


@router.get(
    PREFIX + "/{token}/{image_id}/{filename}",
    summary="A picture by its link, without a key",
    response_class=FileResponse,
)
async def read(
    request: Request,
    services: ServicesDep,
    token: Annotated[str, Path(max_length=100)],
    image_id: Annotated[str, Path(max_length=64)],
    filename: Annotated[str, Path(max_length=200)],
) -> Response:
    delivery_of(request).require(token, image_id)
    image = await services.queue.store.image(image_id)
    if image is None or image.filename != filename:
        raise NotFound(f"there is no picture {image_id!r} any more")
    return await file_of(services, image)
