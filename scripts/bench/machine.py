"""Where figures come from: the day, the machine, the versions."""

from __future__ import annotations

import os
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = ("torch", "diffusers")


def describe(day: date | None = None) -> str:
    found = [f"{name} {_version(name)}" for name in PACKAGES]
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{day or date.today()}, {_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {_gpu()}, "
        f"Python {platform.python_version()}, {', '.join(found)}"
    )


def load() -> float:
    """How many processes wanted a core in the last minute."""
    return os.getloadavg()[0]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name} ({platform.machine()})" if name else platform.machine()


def _gpu() -> str:
    import pynvml

    try:
        pynvml.nvmlInit()
        name = str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)))
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return "no GPU"
    return name
