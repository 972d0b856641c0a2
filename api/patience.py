"""Ends requests whose body keeps us waiting. Of connections before there is a request: `api/connection.py`."""

from __future__ import annotations

import asyncio
import time

from starlette.types import Message, Receive

from config.errors import TooSlow

MIN_BYTES = 64 * 2**10  # of a body that must come within the patience


def patiently(receive: Receive, patience_seconds: float) -> Receive:
    """`receive` for a request whose body must go on coming in. Raises TooSlow when it does not."""
    ends = time.monotonic() + patience_seconds
    in_window, is_whole = 0, False

    async def received() -> Message:
        nonlocal ends, in_window, is_whole
        if is_whole:
            return await receive()  # whether the client is still there
        try:
            async with asyncio.timeout(ends - time.monotonic()):
                message = await receive()
        except TimeoutError as error:
            raise TooSlow(
                f"the body came too slowly: less than {MIN_BYTES // 1024} KiB in {patience_seconds:g} s "
                "(FLUX_UPLOAD_PATIENCE_SECONDS)"
            ) from error
        is_whole = not message.get("more_body", False)
        in_window += len(message.get("body", b""))
        if in_window >= MIN_BYTES:
            ends, in_window = time.monotonic() + patience_seconds, 0
        return message

    return received
