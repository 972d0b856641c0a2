"""Replicas that sleep and are woken, by the rule of `fleet/scaling.py`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from config.settings import FleetSettings
from fleet.replica import ReplicaStats
from fleet.waiting import Waiting
from tests.fleet_parts import wanted
from utils.fleet.scale import UP_AFTER_SECONDS, Scale

IDLE_SECONDS = 60.0


class Replica:
    def __init__(self, name: str, model: str) -> None:
        self.name = self.replica = name
        self._model = model
        self.is_draining = self.is_leaving = self.is_asleep = False
        self.jobs: dict[str, Any] = {}

    def stats(self) -> ReplicaStats:
        sizes = {self._model: 1.0}
        return ReplicaStats(
            replica=self.name, node="n", jobs=frozenset(self.jobs), model_gib=sizes, memory_gib=1.0
        )

    def sleep(self) -> None:
        assert not self.jobs
        self.is_asleep, self.is_leaving = True, False

    def wake(self) -> None:
        self.is_asleep = False


class Fleet:
    """Replicas that each can draw with one model; what waits is waited for by no router."""

    def __init__(self, *models: str, **settings: Any) -> None:
        self.now = 0.0
        self._waiting = Waiting()
        router = SimpleNamespace(waiting=self._waiting, demand=lambda: {})
        queue: Any = SimpleNamespace(
            dispatcher=SimpleNamespace(router=router, routes=True), wake=lambda: None
        )
        self.replicas = [Replica(f"r{index}", model) for index, model in enumerate(models)]
        limits = FleetSettings(fleet_idle_seconds=IDLE_SECONDS, **settings)
        self._scale = Scale(self.replicas, queue, limits, lambda: self.now)  # type: ignore[arg-type]

    def go(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now += 1
            self._scale.look()

    def wait(self, model: str, count: int = 1) -> None:
        for _ in range(count):
            self._seq = getattr(self, "_seq", 0) + 1
            self._waiting.add(wanted(self._seq, model), self.now)

    def end(self, seq: int) -> None:
        self._waiting.remove(self._waiting.at(seq))

    @property
    def awake(self) -> int:
        return sum(not each.is_asleep for each in self.replicas)


def test_scale_idle_replicas_fall_asleep_down_to_the_least() -> None:
    fleet = Fleet(*["embedded"] * 4, fleet_min_replicas=1)
    fleet.go(IDLE_SECONDS - 1)
    assert fleet.awake == 4
    fleet.go(4 * IDLE_SECONDS)
    assert fleet.awake == 1


def test_scale_waiting_jobs_wake_replicas() -> None:
    fleet = Fleet(*["embedded"] * 4, fleet_min_replicas=1)
    fleet.go(5 * IDLE_SECONDS)
    fleet.wait("embedded", 8)
    fleet.go(UP_AFTER_SECONDS + 2)
    assert fleet.awake == 4


def test_scale_no_more_than_the_most_are_awake() -> None:
    fleet = Fleet(*["embedded"] * 4, fleet_max_replicas=2)
    fleet.wait("embedded", 100)
    fleet.go(10)
    assert fleet.awake == 2


def test_scale_job_that_only_a_sleeping_replica_can_draw_wakes_it() -> None:
    fleet = Fleet("embedded", "embedded", "klein", fleet_min_replicas=1)
    fleet.replicas[2].is_asleep = True
    fleet.wait("klein")
    fleet.go(2)
    assert not fleet.replicas[2].is_asleep


def test_scale_limit_is_kept_and_an_idle_replica_makes_room() -> None:
    fleet = Fleet("embedded", "klein", fleet_max_replicas=1)
    fleet.replicas[1].is_asleep = True
    fleet.wait("klein")
    for _ in range(5):
        fleet.go(1)
        assert fleet.awake <= 1
    assert [each.is_asleep for each in fleet.replicas] == [True, False]


def test_scale_replica_makes_room_when_its_turn_is_over_and_not_before() -> None:
    fleet = Fleet("embedded", "klein", fleet_max_replicas=1)
    first, other = fleet.replicas
    other.is_asleep = True
    first.jobs["j"] = 1
    for model in ("embedded", "klein", "embedded"):
        fleet.wait(model)
    fleet.go(3)
    assert not first.is_leaving  # the oldest of all is its own
    fleet.end(1)
    fleet.go(3)
    assert first.is_leaving and other.is_asleep  # it has a job still
    first.jobs.clear()
    fleet.go(2)
    assert (first.is_asleep, other.is_asleep) == (True, False)
    fleet.go(3)
    assert not other.is_leaving  # before it has drawn
    fleet.end(2)
    fleet.go(3)
    assert (first.is_asleep, other.is_asleep) == (False, True)


def test_scale_those_are_woken_that_can_draw_what_waits() -> None:
    fleet = Fleet(*["embedded"] * 3, *["klein"] * 3, fleet_min_replicas=1)
    for each in fleet.replicas[1:]:
        each.is_asleep = True
    fleet.wait("klein", 6)
    fleet.go(UP_AFTER_SECONDS + 3)
    assert [each.is_asleep for each in fleet.replicas[:3]] == [False, True, True]
    assert sum(not each.is_asleep for each in fleet.replicas[3:]) == 2


def test_scale_replica_with_a_job_is_not_put_to_sleep() -> None:
    fleet = Fleet(*["embedded"] * 2, fleet_min_replicas=1)
    for each in fleet.replicas:
        each.jobs["j"] = 1
    fleet.go(10 * IDLE_SECONDS)
    assert fleet.awake == 2


def test_scale_leaving_replica_that_is_needed_stays() -> None:
    fleet = Fleet(*["embedded"] * 2, fleet_min_replicas=1)
    fleet.go(IDLE_SECONDS + 1)
    (leaving,) = [each for each in fleet.replicas if each.is_leaving]
    leaving.jobs["j"] = 1  # it was on its way
    fleet.wait("embedded", 8)
    fleet.go(UP_AFTER_SECONDS + 2)
    assert not leaving.is_leaving and fleet.awake == 2


def test_scale_machine_that_is_drained_is_not_counted() -> None:
    fleet = Fleet(*["embedded"] * 3, fleet_min_replicas=2)
    fleet.replicas[0].is_draining = True
    fleet.go(5 * IDLE_SECONDS)
    assert not fleet.replicas[0].is_asleep and fleet.awake == 3


@pytest.mark.parametrize(
    ("least", "most", "expected"), [(0, 0, (4, 4)), (1, 0, (1, 4)), (0, 2, (2, 2)), (9, 9, (4, 4))]
)
def test_scale_limits_follow_from_settings_and_places(
    least: int, most: int, expected: tuple[int, int]
) -> None:
    limits = Fleet(
        *["embedded"] * 4, fleet_min_replicas=least, fleet_max_replicas=most
    )._scale.limits(4)
    assert (limits.least, limits.most) == expected
