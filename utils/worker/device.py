"""What a worker computes on: CUDA cards, Apple's GPU (MPS), or the CPU; its memory and its names.

torch is used if a loader has imported it: a model that draws without it needs none. Memory is in GiB.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from dataclasses import dataclass
from typing import Any

from utils import main_memory
from utils.main_memory import GIB
from utils.model_memory import Limits


@dataclass(frozen=True, slots=True)
class Device:
    """`names` are torch's, one for each card the model is spread over; `kind` is "cuda", "mps" or "cpu"."""

    kind: str
    names: tuple[str, ...]
    budget_gib: float | None = None  # FLUX_MODEL_MEMORY_GIB; None: by the device

    def describe(self) -> str:
        if self.kind == "cuda":
            return " + ".join(_torch().cuda.get_device_name(name) for name in self.names)
        return " + ".join(self.names)

    def memory_mib(self) -> int:
        """What this process holds: on its GPUs, or of main memory, MiB."""
        if self.kind == "cuda":
            return sum(_torch().cuda.memory_reserved(name) for name in self.names) // 2**20
        if self.kind == "mps":
            return _torch().mps.driver_allocated_memory() // 2**20
        return int(main_memory.resident_gib() * 1024)

    def used_gib(self) -> float:
        """What tensors hold of it; on the CPU, what the process does."""
        if self.kind == "cuda":
            return sum(_torch().cuda.memory_allocated(name) for name in self.names) / GIB
        if self.kind == "mps":
            return _torch().mps.current_allocated_memory() / GIB
        return main_memory.resident_gib()

    def limits(self, held_gib: float) -> Limits:
        """What models may take, of which `held_gib` are theirs already."""
        if self.kind == "cuda":
            total, available = map(sum, zip(*map(_cuda_gib, self.names), strict=True))
            return self._limits("GPU memory", total, available)
        total, free = main_memory.total_gib(), main_memory.free_gib()
        if self.kind == "mps":
            # The GPU shares main memory; macOS gives it a part.
            total = min(total, _torch().mps.recommended_max_memory() / GIB)
            return self._limits("the memory that macOS gives the GPU", total, free + held_gib)
        return self._limits("main memory", total, free + held_gib)

    def give_back(self) -> None:
        """Return what is no longer used to the system."""
        gc.collect()
        if self.kind == "cuda":
            torch = _torch()
            # The 32 MiB that products are computed with on Hopper; made again when they are needed.
            torch._C._cuda_clearCublasWorkspaces()
            for name in self.names:
                with torch.cuda.device(name):
                    torch.cuda.empty_cache()
        elif self.kind == "mps":
            _torch().mps.empty_cache()
        trim_heap()

    def _limits(self, what: str, total: float, available: float) -> Limits:
        return Limits(
            device=what,
            total_gib=total,
            available_gib=min(total, available),
            budget_gib=self.budget_gib,
            is_gpu=self.kind == "cuda",
            is_cpu=self.kind == "cpu",
            can_offload=self.kind == "cuda" and len(self.names) == 1,
        )


def find(kind: str, count: int, budget_gib: float | None) -> Device:
    """The device of a worker that was given `kind`; `count` stand-ins on the CPU for as many cards."""
    torch = _torch()
    if kind == "mps":
        if not (torch and torch.backends.mps.is_available()):
            sys.exit(
                "this torch sees no Apple GPU (MPS); set FLUX_DEVICE=cpu, or install its macOS wheel"
            )
        return Device("mps", ("mps",), budget_gib)
    if torch and torch.cuda.is_available():
        names = tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
        return Device("cuda", names, budget_gib)
    return Device("cpu", ("cpu",) * count, budget_gib)


def _cuda_gib(name: str) -> tuple[float, float]:
    """A card's memory, and what other programs leave of it."""
    torch = _torch()
    free, total = torch.cuda.mem_get_info(name)
    return total / GIB, (free + torch.cuda.memory_reserved(name)) / GIB


def _torch() -> Any:
    """torch, or None while no loader needed it."""
    return sys.modules.get("torch")


def trim_heap() -> None:
    """Give freed memory back to the system; the C library would keep much of it."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return  # another C library, which has its own ways
