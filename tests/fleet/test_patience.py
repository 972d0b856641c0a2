from __future__ import annotations

import math
from collections import Counter

import pytest

from fleet.card import Card
from fleet.demand import Demand
from fleet.patience import LONGEST_SECONDS, PRICE, Patience
from fleet.routing import Router
from tests.fleet_parts import LOADS, Clock, begun, pairs, stats, wanted

NOW = 1000.0


def patience(asked_for: str, copies: str, cards: int = 4) -> Patience:
    """Of names of models, one for each job and for each copy."""
    demand = Demand()
    for model in asked_for.split():
        demand.add(model, NOW)
    return Patience(LONGEST_SECONDS, demand, Counter(copies.split()), lambda model: cards)


def idle(*models: str, memory_gib: float = 40.0) -> Card:
    return Card(stats("idle", models, memory_gib=memory_gib))


def busy(model: str, seconds: float = 3.0) -> Card:
    """It has the model, and has to do for so long."""
    card = Card(stats("busy", [model], job_seconds={model: seconds}))
    card.send(wanted(0, model), NOW)
    return card


def test_load_is_begun_when_waiting_has_come_to_its_price() -> None:
    price = PRICE * LOADS["dev"]
    for spent, loads in ((price - 5, False), (price, True)):
        some = patience("dev schnell", "dev schnell")
        some.regret.watch({"dev": 10}, NOW - spent / 10)
        until = some.until(idle("klein"), "dev", {"dev": 1}, [busy("dev")], NOW, NOW)
        assert until == (None if loads else pytest.approx(NOW + 3.6))  # when the other one is late


def test_many_that_would_wait_long_are_foreseen() -> None:
    some = patience("dev schnell", "dev schnell")
    card, others = idle("klein"), [busy("dev", 5.0)]
    assert some.until(card, "dev", {"dev": 2}, others, NOW, NOW) is not None
    assert some.until(card, "dev", {"dev": 30}, others, NOW, NOW) is None


def test_only_copy_of_what_is_asked_for_is_dearer_than_one_of_several() -> None:
    count = 16
    for copies, expected in (("dev schnell klein klein klein", True), ("dev schnell klein", False)):
        some = patience("dev dev schnell klein klein klein", copies)
        card = idle("klein", memory_gib=40.0)
        until = some.until(card, "dev", {"dev": count}, [busy("dev", 4.0)], NOW, NOW)
        assert (until is None) is expected


def test_model_beyond_its_share_of_the_work_is_dearer() -> None:
    some = patience("dev " * 9 + "schnell", "dev dev schnell schnell")
    for model, loads in (("dev", True), ("schnell", False)):
        some.regret.watch({model: 150}, NOW - 1)
        until = some.until(idle("klein"), model, {model: 1}, [busy(model)], NOW, NOW)
        assert (until is None) is loads


def test_room_is_used_at_once() -> None:
    some = patience("dev schnell klein", "dev dev dev schnell klein")
    for memory_gib, waits in ((90.0, False), (40.0, True)):
        card = idle("klein", memory_gib=memory_gib)
        until = some.until(card, "dev", {"dev": 1}, [busy("dev")], NOW, NOW)
        assert (until is not None) is waits


def test_nobody_waits_longer_than_the_longest() -> None:
    some = patience("dev schnell", "dev schnell")
    others = [busy("dev", 40.0)]
    came_at = NOW - LONGEST_SECONDS
    assert some.until(idle("klein"), "dev", {"dev": 1}, others, came_at + 1, NOW) == NOW + 1
    assert some.until(idle("klein"), "dev", {"dev": 1}, others, came_at, NOW) is None


def test_model_that_nobody_has_is_loaded_at_once() -> None:
    some = patience("dev schnell", "schnell")
    assert some.until(idle("klein"), "dev", {"dev": 1}, [], NOW, NOW) is None


def test_waiting_again_and_again_brings_another_copy() -> None:
    clock = Clock()
    router = Router(clock=clock)
    router.report(stats("a", ["schnell"]))
    router.report(stats("b", ["klein"]))
    router.wait(wanted(0, "schnell"))
    last = begun(router)[0].job
    rounds, chosen = 0, "a"
    while chosen == "a":
        rounds += 1
        router.wait(wanted(rounds, "schnell"))
        waited = begun(router)
        clock.now += 1.0
        if not waited:
            router.ended(last)
            waited = begun(router)
        ((last, chosen),) = pairs(waited)
        assert rounds < 200
    assert rounds > 20
    assert router.wakes_at == math.inf
