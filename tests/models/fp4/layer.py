"""Layers to test with."""

from __future__ import annotations

import torch

from models.fp4 import lowrank
from models.fp4.linear import Fp4Linear


def make_layer(
    columns: int = 128,
    rows: int = 96,
    rank: int = 8,
    *,
    smooth: bool = False,
    bias: bool = True,
    weight_only: bool = False,
) -> tuple[Fp4Linear, torch.Tensor]:
    """A fitted layer and the (N, K) weight it was fitted to."""
    generator = torch.Generator().manual_seed(columns + rows + rank)
    weight = torch.randn(rows, columns, generator=generator) / columns**0.5
    inputs = make_inputs(400, columns)
    statistics = lowrank.InputStatistics(columns)
    statistics.add(inputs)
    layer = Fp4Linear(
        columns, rows, rank, smooth=smooth, bias=bias, weight_only=weight_only, device="meta"
    )
    state = {}
    target = weight
    if smooth:
        factor = lowrank.smoothing(statistics, weight)
        statistics, target = statistics.scaled(1 / factor), weight * factor
        state["inverse_smoothing"] = 1 / factor
    fit = lowrank.fit(target, lowrank.Metric(statistics), rank, rounds=2)
    state |= {
        "packed": fit.weight.packed,
        "block_scale": fit.weight.block_scale,
        "global_scale": fit.weight.global_scale,
        "up": fit.up,
        "down": (fit.down.float() / factor).bfloat16() if smooth else fit.down,
    }
    if bias:
        state["bias"] = torch.randn(rows, generator=generator).bfloat16()
    layer.load_state_dict(state, assign=True)
    return layer, weight


def make_inputs(count: int, columns: int, seed: int = 1) -> torch.Tensor:
    """(count, K) inputs with two channels much larger than the others."""
    inputs = torch.randn(count, columns, generator=torch.Generator().manual_seed(seed))
    inputs[:, 3] *= 20
    inputs[:, columns // 2] *= 50
    return inputs


def product64(layer: Fp4Linear, inputs: torch.Tensor) -> torch.Tensor:
    """What the layer stands for, multiplied in float64."""
    product = inputs.double() @ layer.dense().double().T
    return product if layer.bias is None else product + layer.bias.double()


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())
