"""What GPUs there are, which worker runs on which, and how busy they are. No torch: NVML only.

Indices are nvidia-smi's (PCI bus order). A worker is pinned by UUID, which does not change when
a card drops off the bus. A CUDA_VISIBLE_DEVICES that the operator set narrows `auto`.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from config.errors import ConfigurationError
from config.settings import WorkerSettings

log = logging.getLogger(__name__)

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One card. Memory in MiB."""

    index: int
    uuid: str
    name: str
    memory_total_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSlot:
    """A place for one worker: its GPUs, or none for the CPU. Several in split mode: one model over all of them."""

    name: str
    gpus: tuple[Gpu, ...] = ()
    cpu_devices: int = 1  # stand-ins for as many GPUs in split mode
    is_apple: bool = False  # Apple's GPU, by MPS

    @property
    def kind(self) -> str:
        """What torch calls such devices."""
        return "cuda" if self.gpus else "mps" if self.is_apple else "cpu"

    @property
    def visible_devices(self) -> str:
        """What the child gets as CUDA_VISIBLE_DEVICES; empty hides every card."""
        return ",".join(gpu.uuid for gpu in self.gpus)

    @property
    def devices(self) -> int:
        """How many devices the model is spread over."""
        return len(self.gpus) or self.cpu_devices


@dataclass(frozen=True, slots=True)
class Placement:
    """Which workers to start; without a GPU, why."""

    slots: tuple[WorkerSlot, ...]
    why_no_gpu: str

    @property
    def gpu_names(self) -> tuple[str, ...]:
        return tuple(gpu.name for slot in self.slots for gpu in slot.gpus)


def place_workers(settings: WorkerSettings, environ: Mapping[str, str] = os.environ) -> Placement:
    """One slot per GPU that is asked for (in split mode one for all of them), or one for the CPU.

    Raises ConfigurationError for a GPU that is asked for and not there.
    """
    if settings.device in ("cpu", "mps"):
        return _without_cuda(settings)
    if settings.fake_gpus:
        slots = tuple(WorkerSlot(name=f"cpu{i}") for i in range(settings.fake_gpus))
        why = f"FLUX_FAKE_GPUS asks for {settings.fake_gpus} CPU workers"
        return Placement(_arranged(slots, settings), why)
    if settings.gpus == "none" and settings.device == "cuda":
        raise ConfigurationError("FLUX_DEVICE is cuda, and FLUX_GPUS is none; leave one out")
    if settings.gpus == "none":
        return Placement(_CPU, "FLUX_GPUS is none")
    gpus, why = list_gpus()
    if settings.gpus == "auto":
        visible = environ.get("CUDA_VISIBLE_DEVICES")
        if gpus and visible is not None:
            gpus, why = _narrow(gpus, visible), f"CUDA_VISIBLE_DEVICES is {visible!r}"
        if not gpus and settings.device == "cuda":
            raise ConfigurationError(
                f"FLUX_DEVICE is cuda, and there is no NVIDIA GPU: {why}; auto takes what there is"
            )
        if not gpus and is_apple_silicon():
            return Placement(_MPS, f"{why}; Apple's GPU is used")
        if not gpus:
            return Placement(_CPU, why)
        return Placement(_arranged(tuple(map(_slot, gpus)), settings), "")
    by_index = {gpu.index: gpu for gpu in gpus}
    wanted = [int(part) for part in settings.gpus.split(",")]
    absent = [index for index in wanted if index not in by_index]
    if absent:
        there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus) or f"none ({why})"
        raise ConfigurationError(
            f"GPU {', '.join(map(str, absent))} is asked for (-g or FLUX_GPUS = {settings.gpus}) and not there; "
            f"this machine has: {there}. Leave -g out to run on what there is"
        )
    return Placement(_arranged(tuple(_slot(by_index[i]) for i in wanted), settings), "")


def _without_cuda(settings: WorkerSettings) -> Placement:
    if settings.gpus not in ("auto", "none"):
        raise ConfigurationError(
            f"FLUX_DEVICE is {settings.device}, and -g or FLUX_GPUS asks for GPU {settings.gpus}; leave one out"
        )
    if settings.device == "cpu":
        slots = tuple(WorkerSlot(name=f"cpu{i}") for i in range(settings.fake_gpus)) or _CPU
        return Placement(_arranged(slots, settings), "FLUX_DEVICE is cpu")
    if not is_apple_silicon():
        raise ConfigurationError(
            "FLUX_DEVICE is mps, which is the GPU of Apple's own chips (macOS on arm64); this is "
            f"{platform.system()} on {platform.machine()}. auto takes what there is"
        )
    return Placement(_MPS, "FLUX_DEVICE is mps: Apple's GPU is used")


def is_apple_silicon() -> bool:
    """Whether this machine's GPU is Apple's, which torch computes on by MPS."""
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def _arranged(slots: tuple[WorkerSlot, ...], settings: WorkerSettings) -> tuple[WorkerSlot, ...]:
    if settings.gpu_mode == "each":
        return slots
    return (
        WorkerSlot(
            name="+".join(slot.name for slot in slots),
            gpus=tuple(gpu for slot in slots for gpu in slot.gpus),
            cpu_devices=len(slots),
        ),
    )


def list_gpus() -> tuple[list[Gpu], str]:
    """The cards NVML sees in PCI bus order, and when there are none, why."""
    try:
        with _nvml() as nvml:
            gpus = []
            for index in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                gpus.append(
                    Gpu(
                        index=index,
                        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
                        name=_text(nvml.nvmlDeviceGetName(handle)),
                        memory_total_mib=nvml.nvmlDeviceGetMemoryInfo(handle).total // MIB,
                    )
                )
    except NvmlUnavailable as error:
        return [], str(error)
    return gpus, "" if gpus else "the NVIDIA driver sees no GPU"


def read_load(gpu: Gpu) -> dict[str, float | int | str | None]:
    """Memory (MiB), utilisation (%), temperature (°C), power (W) of a card now; None where NVML will not say."""
    try:
        with _nvml() as nvml:
            handle = nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            return {
                "memory_used_mib": memory.used // MIB,
                "memory_free_mib": memory.free // MIB,
                "utilization_percent": _ask(
                    nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu
                ),
                "temperature_c": _ask(
                    nvml,
                    lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
                ),
                "power_w": _ask(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            }
    except NvmlUnavailable as error:
        return {"error": str(error)}


class NvmlUnavailable(Exception):
    """There is no driver, or it does not answer."""


@contextmanager
def _nvml():
    try:
        import pynvml
    except ImportError as error:
        raise NvmlUnavailable("nvidia-ml-py is not installed") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlUnavailable(f"no NVIDIA driver answers: {_text(error)}") from error
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise NvmlUnavailable(f"the NVIDIA driver failed: {_text(error)}") from error
    finally:
        pynvml.nvmlShutdown()


def _ask(nvml, question):
    try:
        return question()
    except nvml.NVMLError:
        return None  # not every card answers everything


def _narrow(gpus: list[Gpu], visible: str) -> list[Gpu]:
    """The cards CUDA_VISIBLE_DEVICES names, by index or by (the start of) a UUID, in its order."""
    chosen = []
    for part in filter(None, (part.strip() for part in visible.split(","))):
        match = [gpu for gpu in gpus if part == str(gpu.index) or gpu.uuid.startswith(part)]
        if not match:
            break  # as CUDA does: an entry it does not know ends the list
        chosen += [gpu for gpu in match[:1] if gpu not in chosen]
    return chosen


def _slot(gpu: Gpu) -> WorkerSlot:
    return WorkerSlot(name=f"gpu{gpu.index}", gpus=(gpu,))


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


_CPU = (WorkerSlot(name="cpu"),)
_MPS = (WorkerSlot(name="mps", is_apple=True),)
