"""A client that sends bytes as it likes: a head that promises what does not come, a body in pieces."""

from __future__ import annotations

import json
import socket
from typing import Any

from tests.service import RunningService


def head(path: str = "/loras/a.safetensors", method: str = "PUT", **headers: Any) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Sender:
    """A connection of its own."""

    def __init__(self, service: RunningService) -> None:
        self._socket = socket.create_connection(("127.0.0.1", service.port), timeout=60)

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def close(self) -> None:
        self._socket.close()

    def answer(self) -> tuple[int, dict[str, Any]]:
        """Status and JSON, read to the end that its length says."""
        got = b""
        while b"\r\n\r\n" not in got:
            piece = self._socket.recv(65536)
            assert piece, f"closed after {got!r}"
            got += piece
        headers, _, body = got.partition(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in headers.lower().splitlines()
            if line.startswith(b"content-length")
        )
        while len(body) < length:
            body += self._socket.recv(65536)
        return int(headers.split(b" ", 2)[1]), json.loads(body[:length])
