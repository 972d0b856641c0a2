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
        "finishing": [] if worker is None else finishing(worker),
        "load": load,
        "is_draining": worker is None,
    }


def finishing(worker: Worker) -> list[str]:
    """Jobs whose last steps are done, while the next may come."""
    if not worker.takes_jobs:
        return []
    return [job.id for job in worker.jobs.values() if job.is_drawn]


def stats_of(report: Mapping[str, Any]) -> ReplicaStats:
    """Raises TypeError for what is no report."""
    sets = {name: frozenset(report[name]) for name in ("resources", "jobs", "finishing")}
    return ReplicaStats(**{**report, **sets, "models": tuple(report["models"])})
