"""Time and chance, injected so that tests decide both."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


def utc_now() -> datetime:
    return datetime.now(UTC)


def rfc3339(moment: datetime) -> str:
    """UTC with milliseconds: `2026-01-31T12:00:00.000Z`. Sorts as text."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_job_id() -> str:
    """26 lower-case hex digits: 12 of Unix milliseconds, so that ids sort by time, and 56 random bits."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(7)}"


def new_seed() -> int:
    # 32 bits: every tool that may be shown the seed can hold it.
    return secrets.randbelow(2**32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance:
    """Where ids, seeds and times come from."""

    now: Callable[[], datetime] = utc_now  # the wall clock: it may be moved at any time
    monotonic: Callable[[], float] = time.monotonic  # seconds; how long something takes
    job_id: Callable[[], str] = new_job_id
    seed: Callable[[], int] = new_seed
