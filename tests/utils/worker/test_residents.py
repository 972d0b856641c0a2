"""The models of one worker: who stays, who leaves, what a full device means. On models of made-up sizes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from config.catalog import Catalog, ModelRow, load_catalog
from config.errors import ModelUnavailable
from utils.model_memory import Limits
from utils.worker.residents import Residents

EMBEDDED = load_catalog()["embedded"]
SIZES = {"a": 4.0, "b": 6.0, "c": 8.0, "huge": 40.0}


class Full(Exception):
    pass


class Model:
    engine, compute, batches_exactly = "none", "none", True

    def __init__(self, bench: Bench, gib: float) -> None:
        self._bench, self._gib = bench, gib
        bench.used += gib

    def unload(self) -> None:
        self._bench.used -= max(0.0, self._gib - self._bench.left_behind)


class Bench:
    """A device of 20 GiB, and a loader that fills it."""

    def __init__(self, *, budget: float | None = None, offload: str = "auto") -> None:
        rows = {
            name: EMBEDDED.model_copy(
                update={"id": name, "memory_gib": {"bf16": gib}, "offloaded_gib": {}}
            )
            for name, gib in SIZES.items()
        }
        rows["b"] = rows["b"].model_copy(update={"offloaded_gib": {"bf16": 2.0}})
        self.used = 0.0
        self.given_back = 0
        self.left_behind = 0.0  # of each model that is unloaded, because another shares it
        self.loads: list[tuple[str, bool | None]] = []
        self.fails: list[Exception] = []
        self.changes: list[list[str]] = []
        self.real_sizes: dict[str, float] = {}
        self.limit = Limits(
            device="GPU memory",
            total_gib=20.0,
            available_gib=20.0,
            budget_gib=budget,
            is_gpu=True,
            can_offload=True,
        )
        self.residents = Residents(
            self.load,
            self,
            Catalog(rows),
            precision="bf16",
            offload=offload,
            is_out_of_memory=lambda error: isinstance(error, Full),
            on_change=lambda: self.changes.append(self.names),
            monotonic=itertools.count().__next__,
        )

    def load(self, row: ModelRow, offload: bool | None) -> Model:
        self.loads.append((row.id, offload))
        if self.fails:
            raise self.fails.pop(0)
        return Model(self, self.real_sizes.get(row.id, SIZES[row.id]))

    @property
    def names(self) -> list[str]:
        return [held.model for held in self.residents.held]

    # DeviceMemory

    def used_gib(self) -> float:
        return self.used

    def limits(self, held_gib: float) -> Limits:
        return self.limit

    def give_back(self) -> None:
        self.given_back += 1


def test_models_stay_beside_each_other_while_there_is_room() -> None:
    bench = Bench()
    for name in "abc":
        bench.residents.load(name)
    assert bench.names == ["c", "b", "a"]
    assert [held.gib for held in bench.residents.held] == [8.0, 6.0, 4.0]


def test_model_that_is_used_again_is_not_loaded_again() -> None:
    bench = Bench()
    first = bench.residents.load("a")
    assert bench.residents.use("a") is first and bench.residents.use("b") is None
    assert len(bench.loads) == 1


def test_least_recently_used_leaves_for_the_next() -> None:
    bench = Bench(budget=12)
    bench.residents.load("a")
    bench.residents.load("b")
    bench.residents.use("a")
    bench.residents.load("c")
    assert bench.names == ["c", "a"]
    assert bench.used == 12.0


def test_changes_are_told_as_they_come() -> None:
    bench = Bench(budget=10)
    for name in ("a", "b", "c"):
        bench.residents.load(name)
    assert bench.changes == [["a"], ["b", "a"], ["b"], [], ["c"]]


def test_model_takes_what_was_measured_and_not_what_was_expected() -> None:
    """One that shares parts with another takes less, and leaves more room."""
    bench = Bench(budget=14)
    bench.real_sizes = {"b": 1.0}
    bench.residents.load("a")
    bench.residents.load("b")
    bench.residents.load("c")
    assert bench.names == ["c", "b", "a"]


def test_model_that_stays_inherits_what_it_shares_with_one_that_left() -> None:
    """`b` was measured without the 3 GiB that `a` had brought; they stay with it, and count."""
    bench = Bench(budget=12)
    bench.real_sizes = {"b": 3.0}
    bench.residents.load("a")
    bench.residents.load("b")
    bench.left_behind = 3.0
    bench.residents.unload("a")
    assert [held.gib for held in bench.residents.held] == [6.0] and bench.used == 6.0
    bench.left_behind = 0.0
    bench.residents.load("c")  # 8 beside 6 is too much
    assert bench.names == ["c"]


def test_model_inherits_no_more_than_it_would_take_by_itself() -> None:
    bench = Bench()
    bench.residents.load("a")
    bench.residents.load("b")
    bench.left_behind = 100.0
    bench.residents.unload("a")
    assert [held.gib for held in bench.residents.held] == [6.0]


def test_model_that_never_fits_is_refused_and_nobody_leaves() -> None:
    bench = Bench()
    bench.residents.load("a")
    with pytest.raises(ModelUnavailable, match="huge needs 40.0 GiB.*What would fit.*c .8 GiB"):
        bench.residents.load("huge")
    assert bench.names == ["a"] and bench.loads == [("a", False)]


def test_weights_wait_in_main_memory_where_that_is_asked_for() -> None:
    bench = Bench(offload="on")
    bench.residents.load("b")
    assert bench.loads == [("b", True)]


def test_where_weights_cannot_wait_the_loader_is_told_nothing() -> None:
    bench = Bench()
    bench.limit = replace(bench.limit, can_offload=False)
    bench.residents.load("b")
    assert bench.loads == [("b", None)]


def test_device_that_is_full_all_the_same_has_the_others_leave_and_tries_again() -> None:
    bench = Bench()
    bench.residents.load("a")
    bench.fails = [Full()]
    bench.residents.load("b")
    assert bench.names == ["b"] and bench.given_back > 0


def test_device_that_is_full_without_others_is_a_refusal_with_numbers() -> None:
    bench = Bench()
    bench.fails = [Full()]
    with pytest.raises(ModelUnavailable, match="the memory was full.*b needs 2.0 GiB"):
        bench.residents.load("b")
    assert bench.names == []
    bench.residents.load("b")
    assert bench.names == ["b"]


def test_other_failures_are_not_tried_again() -> None:
    bench = Bench()
    bench.residents.load("a")
    bench.fails = [ValueError("damaged")]
    with pytest.raises(ValueError, match="damaged"):
        bench.residents.load("b")
    assert bench.names == ["a"] and len(bench.loads) == 2


def test_unload_lets_go_of_one_or_of_all() -> None:
    bench = Bench()
    for name in "abc":
        bench.residents.load(name)
    bench.residents.unload("b")
    assert bench.names == ["c", "a"] and bench.used == 12.0
    bench.residents.unload("b")
    bench.residents.unload()
    assert bench.names == [] and bench.used == 0.0


def test_keep_only_lets_go_of_the_others() -> None:
    bench = Bench()
    for name in "abc":
        bench.residents.load(name)
    assert bench.residents.keep_only("b") and bench.names == ["b"]
    assert not bench.residents.keep_only("b")
