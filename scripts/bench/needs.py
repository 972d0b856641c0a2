"""What a part cannot run without. Every need is a function that says why it is not met, and what to do, or None."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from scripts.bench import rivals

Need = Callable[[], str | None]


def program(name: str, package: str) -> Need:
    def look() -> str | None:
        if shutil.which(name):
            return None
        return f"{name} is not installed (Debian: apt install {package})"

    return look


def module(name: str, how: str) -> Need:
    def look() -> str | None:
        if importlib.util.find_spec(name) is not None:
            return None
        return f"the package {name} is not installed; {how}"

    return look


def chromium() -> str | None:
    if shutil.which("chromium") or shutil.which("chromium-browser"):
        return None
    return "chromium is not installed (Debian: apt install chromium)"


def linux() -> str | None:
    """Who has which memory is read from /proc."""
    return None if sys.platform == "linux" else "resident memory is read from /proc, on Linux alone"


def gpu() -> str | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return f"no NVIDIA GPU here ({error})"
    return None if count else "no NVIDIA GPU here"


def rivals_of(part: str) -> Need:
    """Fetches the packages, once."""

    def look() -> str | None:
        try:
            rivals.install(part)
        except rivals.MissingRival as error:
            return f"{error}; python -m scripts.bench.rivals {part} tries it again"
        return None

    return look


def weights(folder: Path | None, kind: str) -> str | None:
    """Of FLUX.1's size, as `random_snapshot` writes them."""
    if folder is None:
        return "no weights of FLUX.1's size: write some with python -m scripts.bench.random_snapshot DIR, and give --weights DIR"
    if not (folder / kind).is_dir():
        return (
            f"{folder} has no {kind} (python -m scripts.bench.random_snapshot {folder} writes it)"
        )
    return None
