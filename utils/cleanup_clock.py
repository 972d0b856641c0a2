"""Whether the wall clock may be believed when something is removed for its age.

A clock that was set forward makes everything old at once. Within one start of the machine a second clock
tells how much time really went by; a clock that was moved must hold for a day before ages count again.
A machine that has just started may not have its time yet.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from utils.clock import rfc3339

MAX_DRIFT = timedelta(hours=1)
HOLD_SECONDS = 24 * 3600.0
AFTER_BOOT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Uptime:
    """Which start of the machine this is, and seconds since, sleep included."""

    boot: str
    seconds: float


def uptime() -> Uptime:
    path = Path("/proc/sys/kernel/random/boot_id")
    boot = path.read_text(encoding="ascii").strip() if path.exists() else ""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return Uptime(boot=boot, seconds=time.clock_gettime(clock))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The clock when it was believed last, and since when (uptime, seconds) it tells another time."""

    at: str
    boot: str
    seconds: float
    moved_since: float | None = None

    def to_text(self) -> str:
        return json.dumps(asdict(self))


def look(before: str | None, now: datetime, up: Uptime) -> tuple[Reading, str | None]:
    """What to remember for the next look, and why ages do not count now; None when they do."""
    fresh = Reading(at=rfc3339(now), boot=up.boot, seconds=up.seconds)
    if before is None:
        return fresh, None
    last = Reading(**json.loads(before))
    if last.boot != up.boot:
        if up.seconds < AFTER_BOOT_SECONDS:
            return last, "the machine has just started and may not have its time yet"
        return fresh, None
    passed = now - datetime.fromisoformat(last.at)
    moved = passed - timedelta(seconds=up.seconds - last.seconds)
    if moved <= MAX_DRIFT:
        return fresh, None  # also one that was set back: it makes nothing older
    since = up.seconds if last.moved_since is None else last.moved_since
    if up.seconds - since >= HOLD_SECONDS:
        return fresh, None
    hours = (HOLD_SECONDS - (up.seconds - since)) / 3600
    return (
        Reading(at=last.at, boot=last.boot, seconds=last.seconds, moved_since=since),
        f"the clock was set forward by {_span(moved)}; if it stays so, ages count again in {hours:.0f} h",
    )


def _span(moved: timedelta) -> str:
    return f"{moved.days} days" if moved.days > 1 else f"{moved.total_seconds() / 3600:.1f} h"
