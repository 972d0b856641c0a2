"""The models a worker keeps loaded, within its memory: who is used longest ago leaves for the next.

What a model takes is measured when it is loaded: what the device holds after less what it held
before. So a model that shares a text encoder with another counts without it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from config.catalog import Catalog, ModelRow
from config.errors import ModelUnavailable
from models.types import ImageModel
from utils import model_memory
from utils.model_memory import Held, Limits

log = logging.getLogger("worker")


class DeviceMemory(Protocol):
    """The memory that models are loaded into, GiB."""

    def used_gib(self) -> float:
        """What this process holds of it."""

    def limits(self, held_gib: float) -> Limits:
        """What models may take, of which `held_gib` are theirs already."""

    def give_back(self) -> None:
        """Return what is no longer used to the system."""


@dataclass(slots=True, kw_only=True)
class Resident:
    """A loaded model."""

    row: ModelRow
    model: ImageModel
    gib: float
    used_at: float


class Residents:
    """Loads rows and lets go of them. `load(row, offload)` is the precision's loader.

    `is_out_of_memory(error)` tells a device that is full from other failures. `on_change()` is called
    when a model has come or gone.
    """

    def __init__(
        self,
        load: Callable[[ModelRow, bool | None], ImageModel],
        memory: DeviceMemory,
        catalog: Catalog,
        *,
        precision: str,
        offload: str,
        is_out_of_memory: Callable[[BaseException], bool],
        on_change: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._memory = memory
        self._catalog = catalog
        self._precision = precision
        self._offload = offload
        self._is_out_of_memory = is_out_of_memory
        self._on_change = on_change
        self._monotonic = monotonic
        self._residents: dict[str, Resident] = {}

    @property
    def held(self) -> list[Held]:
        """What is loaded, most recently used first."""
        held = [
            Held(model=name, gib=each.gib, used_at=each.used_at)
            for name, each in self._residents.items()
        ]
        return sorted(held, key=lambda each: -each.used_at)

    def use(self, model_id: str) -> ImageModel | None:
        """The model if it is loaded; it is the most recently used one then."""
        resident = self._residents.get(model_id)
        if resident is None:
            return None
        resident.used_at = self._monotonic()
        return resident.model

    def load(self, model_id: str) -> ImageModel:
        """Load a model that is not, with room made for it first. Raises ModelUnavailable for want of room."""
        row = self._catalog[model_id]
        offload = self._make_room(row)
        before = self._memory.used_gib()
        model = self._load_with_room(row, offload)
        gib = max(0.0, self._memory.used_gib() - before)
        self._residents[model_id] = Resident(
            row=row, model=model, gib=gib, used_at=self._monotonic()
        )
        self._on_change()
        return model

    def unload(self, model_id: str | None = None) -> None:
        """Let go of one model, or of all."""
        names = list(self._residents) if model_id is None else [model_id]
        gone = [self._residents.pop(name) for name in names if name in self._residents]
        expected, before = sum(each.gib for each in gone), self._memory.used_gib()
        for each in gone:
            each.model.unload()
        gone.clear()
        self._memory.give_back()
        self._inherit(expected - (before - self._memory.used_gib()))
        self._on_change()

    def keep_only(self, model_id: str | None) -> bool:
        """Let go of all models but one; whether any was there."""
        others = [name for name in self._residents if name != model_id]
        for name in others:
            self.unload(name)
        return bool(others)

    def _inherit(self, kept_gib: float) -> None:
        """What a model left behind is shared with one that stays: it counts as that one's from now on.

        At most up to what it would take by itself: a process gives memory back a little late.
        """
        if kept_gib <= 0 or not self._residents:
            return
        heir = max(self._residents.values(), key=lambda each: each.used_at)
        most = heir.row.memory_gib.get(self._precision, 0.0)
        heir.gib = max(heir.gib, min(heir.gib + kept_gib, most))

    def _make_room(self, row: ModelRow) -> bool | None:
        """Have models leave for a row; returns whether its weights must wait in main memory (None: either).

        One after the other, because what one gives back is known when it has left. Raises
        ModelUnavailable where the row does not fit, whoever leaves.
        """
        while True:
            held = self.held
            limits = self._memory.limits(sum(each.gib for each in held))
            plan = model_memory.plan(row, self._precision, held, limits, self._offload)
            if plan is None:
                words = model_memory.refusal(
                    row, self._precision, limits, self._offload, self._catalog
                )
                raise ModelUnavailable(words, retry_after_seconds=60)
            if not plan.leaving:
                return plan.offload if limits.can_offload else None
            name = plan.leaving[0]
            log.info(
                "%s leaves the memory for %s",
                name,
                row.id,
                extra={"action": "model_leaves", "model": name},
            )
            self.unload(name)

    def _load_with_room(self, row: ModelRow, offload: bool | None) -> ImageModel:
        """Load; a device that is full all the same has the other models leave, and is tried once more."""
        try:
            return self._load(row, offload)
        except Exception as error:
            if not self._is_out_of_memory(error):
                raise
            error.__traceback__ = None  # it keeps the tensors alive
        had_others = self.keep_only(None)
        self._memory.give_back()
        if had_others:
            try:
                return self._load(row, offload)
            except Exception as error:
                if not self._is_out_of_memory(error):
                    raise
                error.__traceback__ = None
            self._memory.give_back()
        limits = self._memory.limits(0.0)
        words = model_memory.refusal(row, self._precision, limits, self._offload, self._catalog)
        raise ModelUnavailable(
            f"the memory was full before the model was loaded: {words}", retry_after_seconds=60
        )
