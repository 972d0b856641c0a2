"""Which models a fleet can draw with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from config.catalog import load_catalog
from utils.fleet import roster as module
from utils.fleet.roster import Roster

ROW = load_catalog()["embedded"]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def replica(*runnable: str, **reasons: str) -> Any:
    return SimpleNamespace(runnable=dict.fromkeys(runnable, 1.0), reasons=reasons)


def test_roster_without_replicas_says_how_they_join(clock: Clock) -> None:
    assert "./start_fleet.sh --join" in (Roster(clock).why_not(ROW) or "")


def test_roster_one_replica_that_can_is_enough(clock: Clock) -> None:
    roster = Roster(clock)
    roster.replicas += [replica(embedded="too large"), replica("embedded")]
    assert roster.why_not(ROW) is None


def test_roster_tells_each_reason_once(clock: Clock) -> None:
    roster = Roster(clock)
    roster.replicas += [replica(embedded="too large")] * 2 + [replica(embedded="no files")]
    assert roster.why_not(ROW) == "too large; no files"


def test_roster_waits_a_while_for_a_replica_that_left(clock: Clock) -> None:
    roster = Roster(clock)
    roster.left(["embedded"])
    assert roster.why_not(ROW) is None
    clock.now += module.RETURN_SECONDS
    assert roster.why_not(ROW) is not None
