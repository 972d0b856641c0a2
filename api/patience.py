"""Ends connections that keep us waiting: for a request's head, for a body, for the rest of one that was refused.

The server's own patience is for connections on which nothing comes. A byte now and then would hold
one for ever, and with it a file descriptor.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import h11
from starlette.types import Message, Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

from config.errors import TooSlow

MIN_BYTES = 64 * 2**10  # of a body that must come within the patience


class PatientProtocol(H11Protocol):
    """A request's head must be whole in `patience_seconds`, and so must the rest of a body that nobody reads."""

    def __init__(self, *arguments: Any, patience_seconds: float, **values: Any) -> None:
        super().__init__(*arguments, **values)
        self._patience_seconds = patience_seconds
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.get_protocol() is self:
            self._watch()
        else:  # it has become a websocket, which looks after itself
            self._stop_watching()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        state = self.conn.their_state
        is_answered = self.cycle is not None and self.cycle.response_complete
        is_waiting = state is h11.IDLE or (state is h11.SEND_BODY and is_answered)
        is_handed_over = self.transport.get_protocol() is not self  # to the one for websockets
        if is_handed_over or not is_waiting:
            self._stop_watching()
        elif self._end is None:
            self._end = self.loop.call_later(self._patience_seconds, self.transport.close)

    def _stop_watching(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None


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
