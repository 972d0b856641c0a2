from __future__ import annotations

import pytest

from fleet.regret import MEMORY_SECONDS, Regret


def test_waiting_counts_for_each_that_waits_as_long_as_it_is_watched() -> None:
    regret = Regret()
    regret.watch({"dev": 3}, 100.0)
    assert regret.of("dev", 110.0) == 30.0
    regret.watch({}, 110.0)
    assert regret.of("dev", 111.0) == pytest.approx(30.0, rel=0.01)


def test_waiting_of_long_ago_counts_little() -> None:
    regret = Regret()
    regret.watch({"dev": 3}, 100.0)
    regret.watch({}, 110.0)
    assert regret.of("dev", 110.0 + 5 * MEMORY_SECONDS) < 0.01 * 30.0


def test_load_begins_the_account_anew() -> None:
    regret = Regret()
    regret.watch({"dev": 3, "klein": 1}, 100.0)
    regret.forget("dev", 110.0)
    assert (regret.of("dev", 120.0), regret.of("klein", 120.0)) == (0.0, 20.0)


def test_model_nobody_waited_for_has_none() -> None:
    assert Regret().of("dev", 5.0) == 0.0
