"""Replicas, jobs and cards for tests of the fleet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleet.replica import ReplicaStats
from fleet.routing import Decision, Router
from fleet.simulator import CardModel, SimCard
from fleet.wanted import Wanted

SIZES = {"schnell": 34.0, "dev": 34.0, "klein": 16.0}
SECONDS = {"schnell": 1.0, "dev": 5.0, "klein": 0.5}
LOADS = {"schnell": 6.0, "dev": 6.0, "klein": 3.0}


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def stats(replica: str, models: Sequence[str] = (), **values: Any) -> ReplicaStats:
    """A replica with room for one large model, measured."""
    known: dict[str, Any] = {
        "node": f"node of {replica}",
        "model_gib": SIZES,
        "memory_gib": 44.0,
        "models": tuple(models),
        "job_seconds": SECONDS,
        "load_seconds": LOADS,
    }
    return ReplicaStats(replica=replica, **(known | values))


def wanted(seq: int, model: str, **values: Any) -> Wanted:
    return Wanted(job=f"job{seq}", seq=seq, model=model, **values)


def begun(router: Router) -> list[Decision]:
    """All that begin now."""
    decisions = []
    while (decision := router.next()) is not None:
        decisions.append(decision)
    return decisions


def pairs(decisions: Sequence[Decision]) -> list[tuple[str, str]]:
    """(job, replica) of decisions."""
    return [(decision.job, decision.replica) for decision in decisions]


CARD = CardModel(
    name="test card",
    resources=frozenset({"bf16"}),
    memory_gib=44.0,
    model_gib=SIZES,
    job_seconds=SECONDS,
    load_gib_per_second=34 / 6,
    lora_seconds=0.5,
)


def cards(count: int, kind: CardModel = CARD) -> list[SimCard]:
    return [SimCard(f"c{place}", f"node{place}", kind, frozenset()) for place in range(count)]
