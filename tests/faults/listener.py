"""Server-Sent Events as a client sees them, over a socket of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.service import RunningService

PATIENCE_SECONDS = 120  # a limit, not a wait
ENDS = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One event."""

    name: str
    id: int | None
    data: Any


class Listener:
    """Reads a stream in a thread from the moment it is made. Close it, or use it with `with`."""

    def __init__(
        self, service: RunningService, path: str, last_id: object = None, **headers: str
    ) -> None:
        self.events: list[Told] = []
        self.is_over = False
        self._changed = threading.Condition()
        self._connection = http.client.HTTPConnection(
            "127.0.0.1", service.port, timeout=PATIENCE_SECONDS
        )
        if last_id is not None:
            headers["Last-Event-ID"] = str(last_id)
        self._connection.connect()
        self._socket = self._connection.sock
        self._connection.request("GET", path, headers=headers)
        self._answer = self._connection.getresponse()
        self.status = self._answer.status
        self.content_type = self._answer.headers["Content-Type"]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]

    @property
    def ids(self) -> list[int]:
        return [event.id for event in self.events if event.id is not None]

    def named(self, name: str) -> list[Told]:
        return [event for event in self.events if event.name == name]

    def wait_for(
        self, name: str, where: Callable[[Any], bool] = lambda data: True, *, after: int = 0
    ) -> Told:
        """The first event of that name, beyond the first `after` events, whose data are as wanted."""

        def found() -> Told | None:
            for event in self.events[after:]:
                if event.name == name and where(event.data):
                    return event
            return None

        with self._changed:
            self._changed.wait_for(lambda: found() or self.is_over, PATIENCE_SECONDS)
        event = found()
        assert event is not None, f"no {name} among {self.names}"
        return event

    def wait_for_end(self) -> list[Told]:
        """Every event, when the service has ended the stream."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.is_over, PATIENCE_SECONDS), self.names
        return self.events

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the service may have hung up before
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._answer.close()
        self._connection.close()

    def _read(self) -> None:
        fields: dict[str, str] = {}
        try:
            while line := self._answer.readline():
                text = line.decode().rstrip("\r\n")
                if text.startswith(":"):
                    continue
                if text:
                    name, _, value = text.partition(": ")
                    fields[name] = value
                elif fields:
                    self._add(fields)
                    fields = {}
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            pass  # closed, by us or by a service that was killed
        finally:
            with self._changed:
                self.is_over = True
                self._changed.notify_all()

    def _add(self, fields: dict[str, str]) -> None:
        told = Told(
            name=fields.get("event", "message"),
            id=int(fields["id"]) if "id" in fields else None,
            data=json.loads(fields["data"]) if "data" in fields else None,
        )
        with self._changed:
            self.events.append(told)
            self._changed.notify_all()


def connect(
    service: RunningService, path: str, *, buffer_bytes: int | None = None
) -> socket.socket:
    """A listener that has asked and reads nothing."""
    connection = socket.socket()
    if buffer_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", service.port))
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def rest_of(connection: socket.socket) -> bytes:
    """Everything until the service hangs up."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def listen(service: RunningService, job_id: str, last_id: object = None) -> Listener:
    """To one job."""
    return Listener(service, f"/jobs/{job_id}/events", last_id)


def is_in_order(names: list[str]) -> bool:
    """Whether a job that no fault has met told its way: queued, loading, started, progress, one end."""
    order = ["queued", "loading", "started", "progress", *ENDS]
    ranks = [min(order.index(name), order.index(ENDS[0])) for name in names]
    return ranks == sorted(ranks) and sum(name in ENDS for name in names) == 1
