"""What this machine has, for the doctor: GPUs, torch, folders, ports.

Every question is answered in words, a failure too: a doctor that dies of the illness helps nobody.
Modules that the services' packages bring are imported where they are used, since they may be what
is missing. torch is asked in a process of its own, which also shows whether it loads at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
PROBE_SECONDS = 120


class State(StrEnum):
    OK = "ok"
    NOTE = "note"  # worth knowing; nothing stops because of it
    NO = "no"  # is not to be had here; stops only what needs it
    WRONG = "wrong"  # not as it should be, and the services may draw all the same
    FAULT = "fault"  # broken: what needs it stops


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report: what was looked at, how it is, and what to do about it."""

    name: str
    state: State
    text: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One GPU. Memory in MiB; None where the driver does not say."""

    index: int
    uuid: str
    name: str
    memory_total_mib: int
    memory_free_mib: int | None
    capability: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """The GPUs that the driver shows, the newest CUDA that it knows, and why there is no GPU."""

    cards: tuple[Card, ...] = ()
    driver_cuda: tuple[int, int] | None = None
    why_none: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """The installed torch: its version, its CUDA, the architectures it is built for, whether it
    sees a GPU. `why_not`: it is missing, or does not load."""

    version: str = ""
    cuda: str | None = None
    architectures: tuple[str, ...] = ()
    sees_gpu: bool = False
    why_not: str = ""


def look_at_cards() -> Cards:
    """Every GPU that NVML shows, with its compute capability."""
    try:
        from utils.gpu_manager import list_gpus, read_load
    except ImportError as error:
        return Cards(why_none=f"the package {error.name} is missing")
    gpus, why = list_gpus()
    if not gpus:
        return Cards(why_none=why)
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            capability = {gpu.uuid: _capability(pynvml, gpu.uuid) for gpu in gpus}
            number = _cuda_of_driver(pynvml)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return Cards(why_none=f"the NVIDIA driver failed ({error})")
    cards = tuple(
        Card(
            index=gpu.index,
            uuid=gpu.uuid,
            name=gpu.name,
            memory_total_mib=gpu.memory_total_mib,
            memory_free_mib=read_load(gpu).get("memory_free_mib"),
            capability=capability[gpu.uuid],
        )
        for gpu in gpus
    )
    return Cards(cards=cards, driver_cuda=number)


def _cuda_of_driver(nvml: Any) -> tuple[int, int] | None:
    try:
        number = nvml.nvmlSystemGetCudaDriverVersion_v2()  # 13020 is 13.2
    except nvml.NVMLError:
        return None
    return number // 1000, number % 1000 // 10


def _capability(nvml: Any, uuid: str) -> tuple[int, int] | None:
    try:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(nvml.nvmlDeviceGetHandleByUUID(uuid))
    except nvml.NVMLError:
        return None
    return int(major), int(minor)


_PROBE = """
import json, torch
print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.get_arch_list(), torch.cuda.is_available()]))
"""


def look_at_torch() -> Torch:
    """What torch says of itself, in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Torch(why_not=f"torch could not be asked: {error}")
    try:
        named, cuda, architectures, sees_gpu = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return Torch(why_not=f"torch does not load: {last}")
    return Torch(
        version=named, cuda=cuda, architectures=tuple(architectures), sees_gpu=bool(sees_gpu)
    )


def why_torch_cannot_use(torch: Torch, card: Card) -> str | None:
    """Why torch cannot compute on the card; None when it can."""
    if torch.why_not:
        return torch.why_not
    if torch.cuda is None:
        return f"torch {torch.version} is a build without CUDA"
    if not torch.sees_gpu:
        return (
            f"torch {torch.version} sees no GPU; its CUDA {torch.cuda} may be newer than the driver"
        )
    numbers = [tuple(map(int, re.findall(r"\d+", name))) for name in torch.architectures]
    # sm_86 runs what is built for 8.0; the last digit is the minor version.
    known = {divmod(number[0], 10) for number in numbers if number}
    if card.capability and known:
        major, minor = card.capability
        if not any(have[0] == major and have[1] <= minor for have in known):
            return f"torch {torch.version} has no kernels for compute capability {major}.{minor}"
    return None


def look_at_folder(name: str, folder: Path, min_free_mib: int = 0) -> Finding:
    """Whether files can be written into a folder that is there or can be made, and the free space."""
    existing = folder
    try:
        # A link that leads nowhere is there, and nothing can be made in its place.
        while not (existing.exists() or existing.is_symlink() or existing == existing.parent):
            existing = existing.parent
        if not existing.is_dir():
            what = (
                "no folder"
                if existing.exists()
                else f"a link to {existing.readlink()}, which is not there"
            )
            return Finding(
                name=name,
                state=State.FAULT,
                text=f"{folder}: {existing} is {what}",
                fix="remove or rename it, or set another folder in .env",
            )
        if not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
            return Finding(
                name=name,
                state=State.FAULT,
                text=f"{folder}: {existing} cannot be read and written by this user",
                fix=f"give yourself the right (chown, chmod u+rwx {existing}), or set another folder in .env",
            )
        free_mib = shutil.disk_usage(existing).free // 2**20
    except OSError as error:
        return Finding(
            name=name,
            state=State.FAULT,
            text=f"{folder} cannot be looked at: {error.strerror or error}",
            fix="check its permissions and those of the folders above it",
        )
    there = "" if existing == folder else ", is made when it is needed"
    if free_mib < min_free_mib:
        return Finding(
            name=name,
            state=State.FAULT,
            text=f"{folder}: {free_mib} MiB are free, less than the {min_free_mib} MiB kept in reserve (FLUX_MIN_FREE_MIB)",
            fix="delete pictures or make room",
        )
    return Finding(
        name=name, state=State.OK, text=f"{folder}: writable, {free_mib / 1024:.1f} GiB free{there}"
    )


def look_at_port(
    name: str, host: str, port: int, *, script: Path | None = None, page: Path | None = None
) -> Finding:
    """Whether a port is free, held by what this checkout starts there, or by somebody else."""
    try:
        import psutil

        from utils import port_guard
    except ImportError as error:
        return Finding(name=name, state=State.NOTE, text=f"not looked at: {error.name} is missing")
    is_ours = port_guard.runs_script(script) if script else port_guard.serves_folder(page or ROOT)
    try:
        if port_guard.can_listen(host, port):
            return Finding(name=name, state=State.OK, text=f"{port} on {host}: free")
        holders = port_guard.holders(host, port)
    except (port_guard.PortUnavailable, OSError, psutil.Error) as error:
        return Finding(
            name=name,
            state=State.FAULT,
            text=f"{port} on {host}: {error}",
            fix="set another host or port",
        )
    foreign = [holder for holder in holders if holder is None or not is_ours(holder)]
    if holders and not foreign:
        pids = ", ".join(str(holder.pid) for holder in holders)
        return Finding(
            name=name, state=State.OK, text=f"{port} on {host}: ours, it is running (pid {pids})"
        )
    who = "; ".join(map(port_guard.describe, foreign)) or "a process that does not show"
    return Finding(
        name=name,
        state=State.FAULT,
        text=f"{port} on {host}: held by somebody else, {who}",
        fix="end it yourself, or choose another port (--port, or in .env)",
    )


def free_gib(folder: Path) -> float | None:
    """Free space where a folder is or would be; None where that cannot be seen."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return shutil.disk_usage(folder).free / GIB
    except OSError:
        return None
