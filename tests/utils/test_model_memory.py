"""Which models fit beside each other, who leaves first, and what would fit instead."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.catalog import load_catalog
from utils import model_memory
from utils.model_memory import Held, Limits, leaving, plan, refusal

CATALOG = load_catalog()
SCHNELL = CATALOG["flux-schnell"]
EMBEDDED = CATALOG["embedded"]


def gpu(total: float, available: float | None = None, budget: float | None = None) -> Limits:
    return Limits(
        device="GPU memory",
        total_gib=total,
        available_gib=total if available is None else available,
        budget_gib=budget,
        is_gpu=True,
        can_offload=True,
    )


def cpu(total: float, available: float, budget: float | None = None) -> Limits:
    return replace(
        gpu(total, available, budget),
        device="main memory",
        is_gpu=False,
        is_cpu=True,
        can_offload=False,
    )


def held(**gib: float) -> list[Held]:
    """In the order in which they were used."""
    return [
        Held(model=name, gib=size, used_at=float(at)) for at, (name, size) in enumerate(gib.items())
    ]


def test_model_beside_which_there_is_room_has_nobody_leave() -> None:
    assert leaving(8, held(a=8), gpu(24)) == ()


def test_least_recently_used_leaves_first_and_no_more_than_must() -> None:
    assert leaving(8, held(a=6, b=6, c=6), gpu(24)) == ("a",)
    assert leaving(16, held(a=6, b=6, c=6), gpu(24)) == ("a", "b")


def test_model_that_fits_alone_has_all_others_leave() -> None:
    assert leaving(24, held(a=6, b=6), gpu(24)) == ("a", "b")


def test_model_that_does_not_fit_alone_has_nobody_leave_in_vain() -> None:
    assert leaving(24.1, held(a=6), gpu(24)) is None


def test_models_together_leave_a_reserve_on_a_gpu_and_half_of_main_memory() -> None:
    assert leaving(12, held(a=11), gpu(24)) == ()
    assert leaving(12, held(a=11.1), gpu(24)) == ("a",)
    assert leaving(2, held(a=6), cpu(16, 16)) == ()
    assert leaving(2, held(a=6.1), cpu(16, 16)) == ("a",)


def test_budget_that_is_set_counts_for_all_together_and_for_one() -> None:
    assert leaving(8, held(a=4), gpu(24, budget=12)) == ()
    assert leaving(8.1, held(a=4), gpu(24, budget=12)) == ("a",)
    assert leaving(12.1, [], gpu(24, budget=12)) is None


def test_what_other_programs_hold_is_not_ours() -> None:
    assert leaving(8, held(a=4), gpu(24, available=10)) == ("a",)
    assert leaving(11, [], gpu(24, available=10)) is None


@given(
    needed=st.floats(0, 50),
    sizes=st.lists(st.floats(0, 30), max_size=6),
    total=st.floats(2, 80),
    budget=st.none() | st.floats(1, 80),
)
def test_whatever_stays_fits_and_is_the_most_recently_used(
    needed: float, sizes: list[float], total: float, budget: float | None
) -> None:
    limits = gpu(total, budget=budget)
    models = held(**{f"m{index}": size for index, size in enumerate(sizes)})
    gone = leaving(needed, models, limits)
    if gone is None:
        assert needed > limits.alone_gib
        return
    assert gone == tuple(each.model for each in models[: len(gone)])
    kept = sum(each.gib for each in models[len(gone) :])
    assert not models[len(gone) :] or needed + kept <= limits.together_gib + 1e-6
    if gone:  # one fewer would not have done
        assert needed + kept + models[len(gone) - 1].gib > limits.together_gib - 1e-6


def test_weights_stay_on_the_gpu_where_they_fit_and_wait_where_they_do_not() -> None:
    assert plan(SCHNELL, "bf16", [], gpu(40), "auto").offload is False
    assert plan(SCHNELL, "bf16", [], gpu(24), "auto").offload is True
    assert plan(SCHNELL, "bf16", [], gpu(80), "on").offload is True


def test_weights_that_may_not_wait_are_refused_where_they_do_not_fit() -> None:
    assert plan(SCHNELL, "bf16", [], gpu(24), "off") is None


def test_weights_wait_only_where_there_is_such_a_way() -> None:
    assert plan(EMBEDDED, "bf16", [], gpu(24), "on").offload is False
    several = replace(gpu(24), can_offload=False)
    assert plan(SCHNELL, "bf16", [], several, "auto") is None


def test_others_leave_before_weights_wait() -> None:
    assert plan(SCHNELL, "bf16", held(a=20), gpu(40), "auto") == model_memory.Loading(
        leaving=("a",), offload=False
    )


def words(limits: Limits, precision: str = "bf16", offload: str = "auto") -> str:
    return refusal(SCHNELL, precision, limits, offload, CATALOG)


def test_refusal_tells_what_is_needed_and_what_is_free() -> None:
    said = words(gpu(24, available=9.5))
    assert "flux-schnell needs 16.0 GiB of GPU memory" in said
    assert "9.5 of 24.0 GiB are free (other programs hold 14.5)" in said


def test_refusal_names_what_would_fit() -> None:
    said = words(gpu(24, available=9.5))
    assert "the FP4 service (8 GiB)" in said
    assert "a smaller model: " in said and "embedded (0.6 GiB)" in said
    assert "ending what else uses the memory" in said


def test_refusal_names_offloading_where_it_is_switched_off() -> None:
    said = words(gpu(24), offload="off")
    assert "needs 34.0 GiB" in said
    assert "FLUX_OFFLOAD=auto (16 GiB on the GPU, 34 GiB of main memory)" in said


def test_refusal_names_the_budget_where_it_is_what_is_short() -> None:
    said = words(gpu(80, budget=10), precision="bf16", offload="off")
    assert "FLUX_MODEL_MEMORY_GIB allows 10.0" in said
    assert "FLUX_MODEL_MEMORY_GIB=34 or more" in said


def test_refusal_names_no_way_that_does_not_fit() -> None:
    said = words(gpu(6))
    assert "FP4 service" not in said and "FLUX_OFFLOAD" not in said
    assert "ending what else" not in said, "nothing else is there"


@pytest.mark.parametrize("row", list(CATALOG), ids=lambda row: row.id)
def test_refusal_on_a_cpu_names_models_that_run_on_one(row) -> None:
    said = model_memory.what_fits(row, "bf16", cpu(16, 1.5), "auto", CATALOG)
    smaller = [way for way in said if way.startswith("a smaller model")]
    assert smaller and "embedded (1.2 GiB)" in smaller[0]
    assert not [other.id for other in CATALOG if other.device == "gpu" and other.id in smaller[0]]
