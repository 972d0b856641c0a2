"""ComfyUI's websocket and a client that has left it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import WebSocketDisconnect

from api.dialects.comfy_runs import Runs
from api.dialects.comfy_socket import PNG, Listener


class Closed:
    """A socket as the server has it when the client's last word came before our first."""

    async def _refuse(self, *_: Any) -> None:
        raise RuntimeError("Unexpected ASGI message, after sending 'websocket.close'.")

    send_json = send_bytes = close = _refuse


@pytest.mark.parametrize(
    "send",
    [
        lambda listener: listener._send("status", {}),
        lambda listener: listener._picture(PNG, b""),
        lambda listener: listener._close(1001),
    ],
    ids=["words", "picture", "end"],
)
def test_client_that_has_left_is_a_disconnect(send: Callable[[Listener], Awaitable[None]]) -> None:
    socket: Any = Closed()
    services: Any = None
    listener = Listener(socket, services, Runs(), "brief")

    async def sent() -> None:
        await send(listener)

    with pytest.raises(WebSocketDisconnect):
        asyncio.run(sent())
