"""The comparison of fits: its measure, and that its recipes are what they are called."""

from __future__ import annotations

import pytest
import torch

from models.fp4 import lowrank, nvfp4
from models.fp4.layers import LayerPlan
from models.fp4.lowrank import InputStatistics, Metric
from scripts.bench import fp4_fits
from tests.models.fp4.layer import make_inputs

PLAN = LayerPlan(shape=(48, 64), rank=6, bias=False, weight_only=False)


def statistics_of(inputs: torch.Tensor) -> InputStatistics:
    statistics = InputStatistics(inputs.shape[1])
    for part in inputs.split(64):
        statistics.add(part)
    return statistics


def make_weight() -> torch.Tensor:
    """With some large directions, as trained ones have."""
    generator = torch.Generator().manual_seed(5)
    large = torch.randn(48, 4, generator=generator) @ torch.randn(4, 64, generator=generator)
    return torch.randn(PLAN.shape, generator=generator) + large


def test_relative_error_is_that_of_the_outputs() -> None:
    inputs, weight = make_inputs(300, 64, seed=1) + 2, make_weight()
    made, shift = nvfp4.dequantize(nvfp4.quantize(weight)), torch.randn(48).double() * 0.01
    wanted = inputs.double() @ weight.double().T
    got = inputs.double() @ made.double().T + shift
    error = fp4_fits.relative_error(weight, made, shift, statistics_of(inputs))
    assert error == pytest.approx(float((got - wanted).norm() / wanted.norm()), rel=1e-6)


def test_every_branch_has_the_rank_and_its_recipe_beats_plain_rounding() -> None:
    fitted, weight = statistics_of(make_inputs(2000, 64, seed=1)), make_weight()
    held_out, metric = statistics_of(make_inputs(500, 64, seed=2)), Metric(fitted)
    errors = {}
    for title, recipe in fp4_fits.RECIPES.items():
        made, shift = recipe(weight, PLAN, fitted, metric)
        errors[title] = fp4_fits.relative_error(weight, made, shift, held_out)
    plain, *others, ours = errors.values()
    assert max(others) < plain
    assert ours == min(errors.values())


def test_truncated_is_the_nearest_matrix_of_its_rank() -> None:
    weight = make_weight()
    near = fp4_fits.truncated(weight, 6)
    assert int(torch.linalg.matrix_rank(near.double(), rtol=1e-5)) == 6
    values = torch.linalg.svdvals(weight.double())
    assert float((weight - near).norm()) == pytest.approx(float(values[6:].norm()), rel=1e-3)


def test_by_turns_is_no_worse_than_one_turn() -> None:
    fitted, weight = statistics_of(make_inputs(2000, 64, seed=1)), make_weight()
    metric = Metric(fitted)
    errors = [
        metric.error((weight - recipe(weight, PLAN, fitted, metric)[0]).double())
        for recipe in (fp4_fits.by_covariance, fp4_fits.by_turns)
    ]
    assert errors[1] <= errors[0] and lowrank.ROUNDS > 1
