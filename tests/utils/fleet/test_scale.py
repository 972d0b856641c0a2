"""Replicas that sleep and are woken, by the rule of `fleet/scaling.py`."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from config.settings import FleetSettings
from fleet.replica import ReplicaStats
from utils.fleet.scale import UP_AFTER_SECONDS, Scale

IDLE_SECONDS = 60.0


class Replica:
    def __init__(self, name: str) -> None:
        self.name = self.replica = name
        self.is_draining = self.is_leaving = self.is_asleep = False
        self.jobs: dict[str, Any] = {}

    def stats(self) -> ReplicaStats:
        return ReplicaStats(replica=self.name, node="n", jobs=frozenset(self.jobs))

    def sleep(self) -> None:
        assert not self.jobs
        self.is_asleep, self.is_leaving = True, False

    def wake(self) -> None:
        self.is_asleep = False


class Fleet:
    def __init__(self, count: int, **settings: Any) -> None:
        self.now = 0.0
        self.waiting: Counter[str] = Counter()
        router = SimpleNamespace(waiting=SimpleNamespace(by_model=self.waiting), demand=lambda: {})
        queue: Any = SimpleNamespace(dispatcher=SimpleNamespace(router=router), wake=lambda: None)
        self.replicas = [Replica(f"r{index}") for index in range(count)]
        limits = FleetSettings(fleet_idle_seconds=IDLE_SECONDS, **settings)
        self._scale = Scale(self.replicas, queue, limits, lambda: self.now)  # type: ignore[arg-type]

    def go(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now += 1
            self._scale.look()

    @property
    def awake(self) -> int:
        return sum(not each.is_asleep for each in self.replicas)


def test_scale_idle_replicas_fall_asleep_down_to_the_least() -> None:
    fleet = Fleet(4, fleet_min_replicas=1)
    fleet.go(IDLE_SECONDS - 1)
    assert fleet.awake == 4
    fleet.go(4 * IDLE_SECONDS)
    assert fleet.awake == 1


def test_scale_waiting_jobs_wake_replicas() -> None:
    fleet = Fleet(4, fleet_min_replicas=1)
    fleet.go(5 * IDLE_SECONDS)
    fleet.waiting["embedded"] = 8
    fleet.go(UP_AFTER_SECONDS + 2)
    assert fleet.awake == 4


def test_scale_no_more_than_the_most_are_awake() -> None:
    fleet = Fleet(4, fleet_max_replicas=2)
    fleet.waiting["embedded"] = 100
    fleet.go(10)
    assert fleet.awake == 2


def test_scale_replica_with_a_job_is_not_put_to_sleep() -> None:
    fleet = Fleet(2, fleet_min_replicas=1)
    for each in fleet.replicas:
        each.jobs["j"] = 1
    fleet.go(10 * IDLE_SECONDS)
    assert fleet.awake == 2


def test_scale_leaving_replica_that_is_needed_stays() -> None:
    fleet = Fleet(2, fleet_min_replicas=1)
    fleet.go(IDLE_SECONDS + 1)
    (leaving,) = [each for each in fleet.replicas if each.is_leaving]
    leaving.jobs["j"] = 1  # it was on its way
    fleet.waiting["embedded"] = 8
    fleet.go(UP_AFTER_SECONDS + 2)
    assert not leaving.is_leaving and fleet.awake == 2


def test_scale_machine_that_is_drained_is_not_counted() -> None:
    fleet = Fleet(3, fleet_min_replicas=2)
    fleet.replicas[0].is_draining = True
    fleet.go(5 * IDLE_SECONDS)
    assert not fleet.replicas[0].is_asleep and fleet.awake == 3


@pytest.mark.parametrize(
    ("least", "most", "expected"), [(0, 0, (4, 4)), (1, 0, (1, 4)), (0, 2, (2, 2)), (9, 9, (4, 4))]
)
def test_scale_limits_follow_from_settings_and_places(
    least: int, most: int, expected: tuple[int, int]
) -> None:
    limits = Fleet(4, fleet_min_replicas=least, fleet_max_replicas=most)._scale.limits(4)
    assert (limits.least, limits.most) == expected
