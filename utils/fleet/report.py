"""What a replica tells Ray of itself, and the same as routing reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fleet.replica import ReplicaStats
from utils.fleet.machine import Machine
from utils.worker.parent import Worker


def report_of(
    worker: Worker | None,
    *,
    replica: str,
    machine: Machine,
    able: Mapping[str, float],
    memory_gib: float,
    load: float,
) -> dict[str, Any]:
    """Plain values: Ray carries them from process to process. Without a worker: it sleeps."""
    held = {} if worker is None else worker.models
    return {
        "replica": replica,
        "node": machine.name,
        "resources": sorted(machine.resources),
        "model_gib": dict(able),
        "memory_gib": memory_gib,
        "models": sorted(held, key=lambda model: held[model].used_at),
        "jobs": [] if worker is None else list(worker.jobs),
        "takes": 2 if worker is not None and worker.jobs and worker.takes_jobs else 1,
        "load": load,
        "is_draining": worker is None,
    }


def stats_of(report: Mapping[str, Any]) -> ReplicaStats:
    """Raises TypeError for what is no report."""
    sets = {name: frozenset(report[name]) for name in ("resources", "jobs")}
    return ReplicaStats(**{**report, **sets, "models": tuple(report["models"])})
