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


def replica(*runnable: str, precision: str = "bf16", **reasons: str) -> Any:
    return SimpleNamespace(
        runnable=dict.fromkeys(runnable, 1.0), reasons=reasons, precision=precision
    )


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
    roster.left("bf16", ["embedded"])
    assert roster.why_not(ROW) is None
    clock.now += module.RETURN_SECONDS
    assert roster.why_not(ROW) is not None


def test_roster_precision_that_no_replica_has_names_those_there_are(clock: Clock) -> None:
    roster = Roster(clock)
    roster.replicas += [replica("embedded")]
    assert roster.why_not_in(ROW, "bf16") is None
    words = "no machine of the fleet draws in FP4; embedded is drawn here in bf16"
    assert roster.why_not_in(ROW, "fp4") == words


def test_roster_precision_whose_replica_cannot_tells_the_reason(clock: Clock) -> None:
    roster = Roster(clock)
    roster.replicas += [replica("embedded"), replica(precision="fp4", embedded="too large")]
    assert roster.why_not_in(ROW, "fp4") == "too large; embedded is drawn here in bf16"


def test_roster_waits_a_while_for_the_precision_of_a_replica_that_left(clock: Clock) -> None:
    roster = Roster(clock)
    roster.replicas += [replica("embedded")]
    roster.left("fp4", ["embedded"])
    assert roster.precisions_of(ROW) == ["bf16", "fp4"] and roster.why_not_in(ROW, "fp4") is None
    clock.now += module.RETURN_SECONDS
    assert roster.precisions_of(ROW) == ["bf16"] and roster.why_not_in(ROW, "fp4") is not None
