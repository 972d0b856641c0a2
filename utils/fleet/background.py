"""Calls that block, in threads that nobody waits for when the process ends.

Ray's may wait a minute for a machine that is gone; the loop's own threads would be waited for at its end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


async def run(call: Callable[..., Value], *values: object) -> Value:
    """What the call returns, or raises."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Value] = loop.create_future()

    def tell(value: Value | None, error: BaseException | None) -> None:
        if outcome.done():
            return  # who asked is gone
        if error is None:
            outcome.set_result(value)  # type: ignore[arg-type]
        else:
            outcome.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = call(*values)
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(tell, value, error)
        except RuntimeError:
            pass  # the loop has ended

    threading.Thread(target=work, name=f"blocking {call.__name__}", daemon=True).start()
    return await outcome
