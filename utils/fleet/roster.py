"""Which models the fleet can draw with, by what its replicas say; and the resolver of its requests.

A replica that is gone is thought to come back for a while, so that jobs which only it can run are taken
meanwhile and wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from config.catalog import DefaultModel, ModelRow
from config.errors import FieldError, Unavailable, UnsupportedHardware
from models.precision import known_precisions, profile_of
from utils.fleet.worker import FleetWorker
from utils.gpu_manager import WorkerSlot
from utils.lora_manager import LoraManager
from utils.requests import RequestResolver

RETURN_SECONDS = 600.0
NOBODY = (
    "no replica of the fleet is up. After a start they need some seconds; another machine joins with "
    "./start_fleet.sh --join ADDRESS"
)
NOBODY_RETRY_SECONDS = 10


class Roster:
    """`replicas` is the list that others fill. Not for several threads."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.replicas: list[FleetWorker] = []
        self._monotonic = monotonic
        # By precision and model: when a replica left that could run it.
        self._seen: dict[tuple[str, str], float] = {}

    def left(self, precision: str, models: Iterable[str]) -> None:
        """A replica that could run these is gone."""
        self._seen |= dict.fromkeys(((precision, model) for model in models), self._monotonic())

    @property
    def is_empty(self) -> bool:
        return not self.replicas

    def precisions_of(self, row: ModelRow) -> list[str]:
        """In which precisions the fleet draws with a model, or did a moment ago."""
        now = self._monotonic()
        there = {worker.precision for worker in self.replicas if row.id in worker.runnable}
        there |= {
            precision
            for (precision, model), left_at in self._seen.items()
            if model == row.id and now - left_at < RETURN_SECONDS
        }
        return sorted(there)

    def why_not(self, row: ModelRow) -> str | None:
        """Why the fleet cannot draw with a model; None where a replica can, or could a moment ago."""
        if self.precisions_of(row):
            return None
        if not self.replicas:
            return NOBODY
        return self._reasons(self.replicas, row) or f"no machine of the fleet knows {row.id}"

    def why_not_in(self, row: ModelRow, precision: str) -> str | None:
        """The same of one precision."""
        there = self.precisions_of(row)
        if precision in there:
            return None
        title = profile_of(precision).title
        able = [worker for worker in self.replicas if worker.precision == precision]
        why = self._reasons(able, row) or f"no machine of the fleet draws in {title}"
        instead = f"; {row.id} is drawn here in {', '.join(there)}" if there else ""
        return why + instead

    def _reasons(self, replicas: Iterable[FleetWorker], row: ModelRow) -> str:
        reasons = (worker.reasons.get(row.id) for worker in replicas)
        return "; ".join(dict.fromkeys(filter(None, reasons)))


class FleetResolver(RequestResolver):
    """A `RequestResolver` whose machine is the fleet."""

    def __init__(self, *args: Any, roster: Roster, **options: Any) -> None:
        self._roster = roster
        super().__init__(*args, **options)

    def why_cannot_run(self, row: ModelRow) -> str | None:
        if row.cloud is not None:
            return super().why_cannot_run(row)
        return self._roster.why_not(row)

    def why_no_files(self, row: ModelRow) -> str | None:
        return None  # each replica says what it has

    def why_not_on(self, slot: WorkerSlot, row: ModelRow) -> str | None:
        return self._roster.why_not(row)

    def require_runs_here(self, row: ModelRow) -> None:
        if row.cloud is None and self._roster.is_empty and self._roster.why_not(row) is not None:
            raise Unavailable(NOBODY, retry_after_seconds=NOBODY_RETRY_SECONDS)
        super().require_runs_here(row)

    def precisions_of(self, row: ModelRow) -> list[str]:
        return [] if row.cloud is not None else self._roster.precisions_of(row)

    def require_precision(self, row: ModelRow, precision: str | None) -> None:
        why = None if precision is None else self._roster.why_not_in(row, precision)
        if why is not None:
            raise UnsupportedHardware(why, fields=[FieldError("precision", why)])

    def _why_not_in(self, row: ModelRow, precision: str) -> str | None:
        if precision in row.memory_gib:
            return None
        return f"model {row.id} has no {profile_of(precision).title} weights"

    def _that_runs_here(self, default: DefaultModel) -> DefaultModel:
        return default  # decided before anybody has joined


class FleetLoras(LoraManager):
    """The LoRAs of a fleet, whose models are those of every precision."""

    def _rows(self) -> list[ModelRow]:
        return [row for row in self._catalog if {*known_precisions()} & {*row.memory_gib}]
