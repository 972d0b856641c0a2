"""What a GPU had in use and took in energy while something ran, by NVML.

Memory is looked at every 20 ms, all programs' on the card together. Energy is the card's own counter, in millijoules
since its driver was loaded; cards before Volta have none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LOOK_SECONDS = 0.02


@dataclass(slots=True)
class Used:
    """What was used between two moments; whole once the block of `metered` is left."""

    peak_bytes: int = 0
    millijoules: int | None = None

    def per_picture(self, pictures: int) -> str:
        """Energy in words, where the card tells."""
        if self.millijoules is None:
            return "energy unknown: this card has no counter"
        return f"{self.millijoules / 1000 / pictures:,.1f} J a picture"

    def peak(self) -> str:
        return f"at most {self.peak_bytes / 1e9:.1f} GB of the GPU"


@contextmanager
def metered(nvml: Any = None, index: int = 0) -> Iterator[Used]:
    """`nvml` is the module pynvml, or what stands in for it."""
    if nvml is None:
        import pynvml as nvml
    nvml.nvmlInit()
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        used, over = Used(), threading.Event()

        def look() -> None:
            used.peak_bytes = max(used.peak_bytes, nvml.nvmlDeviceGetMemoryInfo(handle).used)

        def keep_looking() -> None:
            while not over.wait(LOOK_SECONDS):
                look()

        look()
        before = _millijoules(nvml, handle)
        thread = threading.Thread(target=keep_looking, daemon=True)
        thread.start()
        try:
            yield used
        finally:
            over.set()
            thread.join()
            look()
            after = _millijoules(nvml, handle)
            if before is not None and after is not None:
                used.millijoules = after - before
    finally:
        nvml.nvmlShutdown()


def _millijoules(nvml: Any, handle: Any) -> int | None:
    try:
        return nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError_NotSupported:
        return None
