"""The fit: better than plain rounding where inputs are correlated, exact in its parts, and refusing nonsense."""

from __future__ import annotations

import pytest
import torch

from models.fp4 import lowrank, nvfp4
from models.fp4.lowrank import InputStatistics, Metric


def make_inputs(count: int, columns: int, seed: int) -> torch.Tensor:
    """(count, columns) inputs like a transformer's: correlated, not centred, some channels large."""
    shape = torch.Generator().manual_seed(99)  # the same for fitted and held-out inputs
    mixing = (
        torch.randn(columns, columns, generator=shape) * torch.logspace(0, -2, columns)[:, None]
    )
    mean = torch.randn(columns, generator=shape)
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, columns, generator=source) @ mixing + mean


def statistics_of(inputs: torch.Tensor) -> InputStatistics:
    statistics = InputStatistics(inputs.shape[1])
    for part in inputs.split(100):
        statistics.add(part)
    return statistics


@pytest.fixture(scope="module")
def case() -> tuple[torch.Tensor, InputStatistics]:
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(3))
    return weight, statistics_of(make_inputs(2000, 128, 1))


def output_error(weight: torch.Tensor, made: torch.Tensor, shift: torch.Tensor | float) -> float:
    inputs = make_inputs(500, 128, 2)
    wanted = inputs @ weight.T
    return float((inputs @ made.T + shift - wanted).norm() / wanted.norm())


def test_statistics_are_mean_and_covariance_of_all_batches() -> None:
    inputs = make_inputs(350, 32, 5).double()
    statistics = statistics_of(inputs)
    assert statistics.count == 350
    torch.testing.assert_close(statistics.mean, inputs.mean(dim=0))
    torch.testing.assert_close(statistics.covariance, inputs.T.cov(correction=0))
    assert torch.equal(statistics.largest, inputs.abs().amax(dim=0))


def test_scaled_statistics_are_those_of_scaled_inputs() -> None:
    inputs = make_inputs(200, 32, 5).double()
    factor = torch.linspace(-2, 3, 32).double()
    scaled, direct = statistics_of(inputs).scaled(factor), statistics_of(inputs * factor)
    torch.testing.assert_close(scaled.covariance, direct.covariance)
    torch.testing.assert_close(scaled.mean, direct.mean)
    torch.testing.assert_close(scaled.largest, direct.largest)


def test_metric_error_is_the_output_error_with_the_bias_corrected() -> None:
    inputs = make_inputs(400, 32, 6).double()
    metric = Metric(statistics_of(inputs), damping=1e-12)
    difference = torch.randn(8, 32, dtype=torch.float64)
    centred = (inputs - inputs.mean(dim=0)) @ difference.T
    assert metric.error(difference) == pytest.approx(float(centred.square().sum() / 400), rel=1e-6)


def test_fit_beats_plain_rounding_on_inputs_it_did_not_see(case) -> None:
    weight, statistics = case
    fit = lowrank.fit(weight, Metric(statistics), 8)
    plain = output_error(weight, nvfp4.dequantize(nvfp4.quantize(weight)), 0.0)
    assert output_error(weight, fit.dense(), fit.bias_shift) < 0.4 * plain


def test_fit_by_turns_beats_one_turn(case) -> None:
    weight, statistics = case
    metric = Metric(statistics)
    errors = [
        metric.error(weight.double() - lowrank.fit(weight, metric, 8, rounds=n).dense().double())
        for n in (1, 12)
    ]
    assert errors[1] < errors[0]


def test_fit_finds_large_directions_of_the_weight_itself(case) -> None:
    """From no branch at all, turns end where a branch for the error alone would."""
    _, statistics = case
    generator = torch.Generator().manual_seed(5)
    large = torch.randn(96, 4, generator=generator) @ torch.randn(4, 128, generator=generator)
    weight = torch.randn(96, 128, generator=generator) + 3 * large
    metric = Metric(statistics)
    up, down = lowrank.best_low_rank(weight.double(), metric, 6)
    branch = up.float() @ down.float()
    svd_first = nvfp4.dequantize(nvfp4.quantize(weight - branch)) + branch
    error = metric.error((weight - lowrank.fit(weight, metric, 6).dense()).double())
    assert error < 0.5 * metric.error((weight - svd_first).double())


def test_a_higher_rank_leaves_less(case) -> None:
    weight, statistics = case
    metric = Metric(statistics)
    errors = [
        metric.error(weight.double() - lowrank.fit(weight, metric, r, rounds=4).dense().double())
        for r in (0, 4, 16)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_fit_is_the_same_every_time(case) -> None:
    weight, statistics = case
    one, other = (lowrank.fit(weight, Metric(statistics), 4, rounds=2) for _ in range(2))
    assert torch.equal(one.dense(), other.dense())


def test_feedback_rounds_better_than_plain_where_inputs_are_correlated(case) -> None:
    weight, statistics = case
    metric = Metric(statistics)
    wanted = weight.double()
    fed = wanted - nvfp4.dequantize(lowrank.round_with_feedback(wanted, metric)).double()
    plain = wanted - nvfp4.dequantize(nvfp4.quantize(weight)).double()
    assert metric.error(fed) < 0.5 * metric.error(plain)


@pytest.mark.parametrize("shape", [(24, 64), (64, 24), (48, 48)])
def test_best_low_rank_is_the_svd_under_any_root_of_the_covariance(shape) -> None:
    left = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    metric = Metric(statistics_of(make_inputs(500, shape[1], 7)))
    up, down = lowrank.best_low_rank(left, metric, 5)
    values, vectors = torch.linalg.eigh(metric.root @ metric.root.T)
    root = vectors * values.sqrt() @ vectors.T  # C^½, not Cholesky's
    u, s, vh = torch.linalg.svd(left @ root, full_matrices=False)
    best = float(((u[:, :5] * s[:5]) @ vh[:5] - left @ root).square().sum())
    got = metric.error(left - up.double() @ down.double())
    assert got == pytest.approx(best, rel=1e-3), "BF16 is all that is lost"


def test_a_weight_of_zeros_stays_zeros(case) -> None:
    _, statistics = case
    fit = lowrank.fit(torch.zeros(96, 128), Metric(statistics), 4)
    assert torch.equal(fit.dense(), torch.zeros(96, 128))
    assert torch.equal(fit.bias_shift, torch.zeros(96))


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    inputs = make_inputs(300, 128, 1)
    inputs[:, 5:40] = 0
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(3))
    fit = lowrank.fit(weight, Metric(statistics_of(inputs)), 4, rounds=2)
    assert fit.dense().isfinite().all()


@pytest.mark.parametrize("rank", [-1, 97])
def test_fit_refuses_a_rank_the_shape_does_not_have(case, rank: int) -> None:
    weight, statistics = case
    with pytest.raises(ValueError, match=rf"to_q: rank {rank} is not from 0 to 96"):
        lowrank.fit(weight, Metric(statistics), rank, name="to_q")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fit_refuses_values_that_are_no_numbers(case, value: float) -> None:
    weight, statistics = case
    broken = weight.clone()
    broken[3, 7] = value
    with pytest.raises(ValueError, match="to_q: .*damaged"):
        lowrank.fit(broken, Metric(statistics), 4, name="to_q")


@pytest.mark.parametrize(("spread", "mean"), [(1.0, 1e4), (1e-2, 100.0), (1e-3, 1e4), (0.0, 3.0)])
def test_inputs_that_hardly_move_are_fitted_in_float32_too(
    monkeypatch: pytest.MonkeyPatch, spread: float, mean: float
) -> None:
    """As on a GPU. The squares of such inputs have no digits left for how they move."""
    monkeypatch.setattr(lowrank, "_EXACT_INPUTS", 0)
    inputs = make_inputs(2000, 128, 1) * spread + mean * (1 + torch.arange(128) % 3)
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(3))
    metric = Metric(statistics_of(inputs))
    assert metric.root.dtype == torch.float32
    fit = lowrank.fit(weight, metric, 8)
    wanted = inputs.double() @ weight.double().T
    got = inputs.double() @ fit.dense().double().T + fit.bias_shift
    plain = inputs.double() @ nvfp4.dequantize(nvfp4.quantize(weight)).double().T
    assert float((got - wanted).norm()) < 0.1 * float((plain - wanted).norm())


def test_inputs_that_are_no_numbers_are_refused_by_the_layers_name() -> None:
    inputs = make_inputs(300, 64, 1)
    inputs[17, 5] = float("nan")
    with pytest.raises(ValueError, match="attn.to_q: its inputs become infinite or NaN"):
        Metric(statistics_of(inputs), name="attn.to_q")


def test_smoothing_evens_out_a_channel_of_large_inputs() -> None:
    inputs = make_inputs(300, 64, 1)
    inputs[:, 7] *= 100
    statistics, weight = statistics_of(inputs), torch.randn(32, 64)
    factor = lowrank.smoothing(statistics, weight)
    largest = statistics.largest.float()
    spread = [float(t.max() / t.median()) for t in (largest, largest / factor)]
    assert spread[1] < spread[0] / 5
    assert factor.isfinite().all() and (factor > 0).all()


def test_smoothing_leaves_channels_alone_that_were_never_seen() -> None:
    inputs = make_inputs(300, 64, 1)
    inputs[:, 7] = 0
    factor = lowrank.smoothing(statistics_of(inputs), torch.randn(32, 64))
    assert factor.isfinite().all() and 1e-3 <= float(factor[7]) <= 1e3
