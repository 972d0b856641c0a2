"""A machine of the fleet as its replicas find it: its name, its places for workers, its folders."""

from __future__ import annotations

import fcntl
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from config.catalog import Catalog, DefaultModel, choose_default, load_catalog
from config.errors import ConfigurationError
from config.settings import Settings
from models.families import mflux_command
from models.precision import PrecisionProfile, known_precisions, profile_of
from utils import main_memory
from utils.clock import Chance
from utils.gpu_manager import Placement, WorkerSlot, place_workers
from utils.lora_manager import LoraManager
from utils.model_files import ModelFiles
from utils.requests import RequestResolver

MFLUX = "mflux"  # the resource of a machine that has its commands
GPU_KEPT_GIB = 1.0  # of a card, which models do not get
CPU_SHARE = 0.5  # of main memory, which they get


def name_of(settings: Settings) -> str:
    return settings.fleet.fleet_node or socket.gethostname()


def folder_of(settings: Settings) -> Path:
    """What this machine keeps as a part of a fleet: apart from what its services keep."""
    return settings.storage.data_dir / "fleet" / name_of(settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """`settings` have the folders of a part of a fleet; `default` is what is drawn with here if nobody says."""

    name: str
    settings: Settings
    profile: PrecisionProfile
    catalog: Catalog
    placement: Placement
    default: DefaultModel
    resolver: RequestResolver

    @property
    def resources(self) -> dict[str, int]:
        """What Ray is told: a place for a replica each, by what it can do."""
        places = len(self.placement.slots)
        has_mflux = any(
            row.command and mflux_command.why_not_here(row) is None for row in self.catalog
        )
        return {self.profile.name: places} | ({MFLUX: places} if has_mflux else {})

    def able(self, slot: WorkerSlot) -> tuple[dict[str, float], dict[str, str]]:
        """The models that a worker of the slot can draw with, GiB of each, and why not with the others."""
        models, reasons = {}, {}
        room = self.memory_gib(slot)
        for row in self.catalog:
            if row.cloud is not None:
                continue
            reason = self.resolver.why_not_on(slot, row) or self.resolver.why_no_files(row)
            if reason is not None:
                reasons[row.id] = reason
            else:
                # What does not fit as a whole has weights that wait in main memory.
                models[row.id] = min(row.memory_gib[self.profile.name], room)
        return models, reasons

    def memory_gib(self, slot: WorkerSlot) -> float:
        """What the models of a worker may take together, as the worker itself reckons."""
        budget = self.settings.models.model_memory_gib
        if budget != "auto":
            return budget
        if slot.gpus:
            return sum(gpu.memory_total_mib / 1024 - GPU_KEPT_GIB for gpu in slot.gpus)
        return main_memory.total_gib() * CPU_SHARE


def machine_of(settings: Settings) -> Machine:
    """This machine by its settings. Raises ConfigurationError."""
    profile, chance = _profile_of(settings), Chance()
    folder = folder_of(settings)
    storage = settings.storage.model_copy(
        update={
            "data_dir": folder,
            "output_dir": folder / "pictures",
            "lora_dir": folder / "loras",
        }
    )
    models = settings.models
    if models.engine not in profile.engines:  # of another precision's machine
        models = models.model_copy(update={"engine": "auto"})
    mine = settings.model_copy(update={"storage": storage, "models": models})
    catalog = mflux_command.quantised(load_catalog(), settings.models.mflux_quantize)
    placement = place_workers(settings.worker)
    default = choose_default(
        catalog, settings.models.model, placement.gpu_names, placement.why_no_gpu
    )
    resolver = RequestResolver(
        catalog,
        default,
        profile,
        placement,
        chance,
        LoraManager(mine, profile, catalog, chance),
        models=settings.models,
        files=ModelFiles(settings.models, profile),
    )
    return Machine(
        name=name_of(settings),
        settings=mine,
        profile=profile,
        catalog=catalog,
        placement=placement,
        default=resolver.default,
        resolver=resolver,
    )


def _profile_of(settings: Settings) -> PrecisionProfile:
    precision, known = settings.fleet.fleet_precision, known_precisions()
    if precision == "auto":
        return profile_of(known[0])
    if precision not in known:
        raise ConfigurationError(
            f"FLUX_FLEET_PRECISION = {precision!r}: there is no such precision; there is: auto, {', '.join(known)}"
        )
    return profile_of(precision)


def take_place(machine: Machine) -> tuple[WorkerSlot, int]:
    """A place that no other replica of this machine has, and the lock that keeps it while this process lives.

    Raises RuntimeError where all are taken.
    """
    folder = machine.settings.storage.data_dir / "places"
    folder.mkdir(parents=True, exist_ok=True)
    for slot in machine.placement.slots:
        handle = os.open(folder / slot.name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            continue
        return slot, handle
    raise RuntimeError(f"every place of {machine.name} is taken: {len(machine.placement.slots)}")
