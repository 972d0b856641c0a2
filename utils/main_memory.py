"""How much main memory there is for this process, and how much of it is free, in GiB.

A container's limit counts where it is lower than the machine's memory.
"""

from __future__ import annotations

from pathlib import Path

import psutil

GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")


def total_gib(cgroup: Path = CGROUP) -> float:
    total = psutil.virtual_memory().total
    limit = _number(cgroup / "memory.max")
    return min(total, limit if limit is not None else total) / GIB


def free_gib(cgroup: Path = CGROUP) -> float:
    """What could be taken now without swapping; the page cache counts as free."""
    free = psutil.virtual_memory().available
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used + _cached(cgroup)))
    return free / GIB


def resident_gib() -> float:
    """What this process holds."""
    return psutil.Process().memory_info().rss / GIB


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # no such limit: `max`, or another kind of system


def _cached(cgroup: Path) -> int:
    """Of the used bytes those that only repeat a file."""
    try:
        lines = (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(value) for name, value in map(str.split, lines) if name == "inactive_file")
