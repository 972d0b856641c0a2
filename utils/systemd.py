"""Tells systemd how the service is: the `sd_notify` protocol, one datagram a message.

Without NOTIFY_SOCKET (not started by systemd, or not as `Type=notify`) nothing is sent.
Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"


def notify(*lines: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send a message such as `READY`; whether there was somebody to send it to."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # the abstract namespace
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            log.warning("systemd was not told: %s", error, extra={"action": "notify_failed"})
            return False
    return True


def more_time(seconds: float) -> str:
    """A message: what is under way (a start, a stop) may take so long from now on."""
    return f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}"


def watchdog_seconds(environ: Mapping[str, str] = os.environ) -> float | None:
    """How often systemd wants to hear from this process; None when it does not."""
    text, process = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not text.isdecimal() or int(text) == 0 or process not in ("", str(os.getpid())):
        return None
    return int(text) / 1_000_000


async def feed_watchdog(is_well: Callable[[], bool]) -> None:
    """Say that all is well, twice as often as asked, as long as `is_well()` says so. Ends when nobody asks.

    It runs in the event loop, so that a loop that hangs is not vouched for.
    """
    seconds = watchdog_seconds()
    if seconds is None:
        return
    while True:
        if is_well():
            notify(WATCHDOG)
        else:
            log.error("not well: the watchdog is not fed", extra={"action": "watchdog_hungry"})
        await asyncio.sleep(seconds / 2)
