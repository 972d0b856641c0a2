"""The measures of the quality table, and what it does without bitsandbytes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from models.fp4 import lowrank, nvfp4
from models.fp4.layers import LayerPlan
from scripts.bench import fp4_quality, picture_distance


def picture(seed: int, noise: float = 0.0) -> Image.Image:
    smooth = numpy.linspace(40, 200, 64)[None, :, None] * numpy.ones((64, 1, 3))
    rng = numpy.random.default_rng(seed)
    values = smooth + rng.normal(0, 20, smooth.shape)
    values += numpy.random.default_rng(99).normal(0, noise, smooth.shape) if noise else 0
    return Image.fromarray(values.clip(0, 255).astype(numpy.uint8))


def test_psnr_of_a_picture_that_is_off_by_one_is_48_db() -> None:
    one = Image.new("RGB", (8, 8), (100, 100, 100))
    other = Image.new("RGB", (8, 8), (101, 101, 101))
    assert picture_distance.psnr(one, other) == pytest.approx(48.13, abs=0.01)
    assert picture_distance.psnr(one, one) == float("inf")


def test_ssim_is_one_for_equals_and_falls_with_noise() -> None:
    same, little, much = (
        picture_distance.ssim(picture(1), picture(1, noise)) for noise in (0.0, 4.0, 40.0)
    )
    assert same == pytest.approx(1.0)
    assert 1.0 > little > 0.9 > much > 0.0


def test_without_bitsandbytes_its_rows_are_missing_and_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    titles = [title for title, _ in fp4_quality.roundings(tmp_path)]
    assert titles == ["plain NVFP4"]
    assert "MISSING from this table" in capsys.readouterr().err


def test_equal_bytes_keeps_the_worst_layers_within_the_limit() -> None:
    plans = {
        name: LayerPlan(shape=(32, 32), rank=0, bias=False, weight_only=False) for name in "abcd"
    }
    full = 4 * 32 * 32 * 2
    small = fp4_quality.four_bit_bytes(full, plans, set())
    assert small == 4 * 32 * 32 * 4.5 / 8
    limit = small + 2 * 32 * 32 * 23 // 16
    kept = fp4_quality.worst_layers(full, plans, {"a": 1, "b": 4, "c": 2, "d": 3}, limit)
    assert kept == {"b", "d"}
    assert fp4_quality.four_bit_bytes(full, plans, kept) == limit


def test_even_rank_is_the_largest_within_the_limit() -> None:
    plans = {
        name: LayerPlan(shape=(32, 64), rank=3, bias=False, weight_only=False) for name in "abcd"
    }
    full = 4 * 32 * 64 * 2
    limit = fp4_quality.four_bit_bytes(full, plans, set()) + fp4_quality.branch_bytes(plans)
    assert fp4_quality.even_rank(full, plans, limit) == 3
    assert fp4_quality.even_rank(full, plans, limit - 1) == 2


def test_svdquants_recipe_beats_plain_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 64, generator=generator)
    inputs[:, 5] *= 30
    statistics = lowrank.InputStatistics(64)
    statistics.add(inputs)
    metric = lowrank.Metric(statistics)
    weight = torch.randn(48, 64, generator=generator)
    plan = LayerPlan(shape=(48, 64), rank=8, bias=False, weight_only=False)
    made = fp4_quality.svdquant(weight, plan, statistics, metric)
    plain = nvfp4.dequantize(nvfp4.quantize(weight))
    errors = [metric.error((weight - other).double()) for other in (made, plain)]
    assert errors[0] < 0.5 * errors[1]
