"""Connections as they are before there is a request: what is no HTTP, and what keeps us waiting for it.

The server's own patience is for connections on which nothing comes. A byte now and then would hold
one for ever, and with it a file descriptor.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.errors import problem
from api.middleware import SECURITY_HEADERS
from config.errors import InvalidRequest

log = logging.getLogger("api.access")


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
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered like every other wrong request; the connection ends."""
        request_id = secrets.token_hex(8)
        log.info(
            "no HTTP", extra={"action": "bad_request", "request_id": request_id, "status": 400}
        )
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(self._refusal(request_id))
        if self.cycle is not None:  # a route may wait for the rest of a body
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _refusal(self, request_id: str) -> bytes:
        answer = problem(InvalidRequest("what came is no HTTP request"), request_id)
        headers = [*answer.raw_headers, *SECURITY_HEADERS, (b"connection", b"close")]
        events = (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        )
        return b"".join(self.conn.send(event) or b"" for event in events)

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
