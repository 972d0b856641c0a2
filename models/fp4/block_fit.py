"""One block in four bits: watch its layers' inputs, fit, and measure what is left of the error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from models.fp4 import lowrank, nvfp4
from models.fp4.layers import SAME_INPUTS, LayerPlan
from models.fp4.lowrank import Fit, InputStatistics, Metric

_LARGE_WEIGHTS = 4_000_000  # a layer of more is fitted in fewer rounds: each costs minutes on a CPU
_ROUNDS_LARGE = 3
_STRENGTHS = (None, 0.25, 0.5, 0.75)  # of smoothing


@dataclass(slots=True)
class LayerError:
    """Squared sums over outputs on held-out inputs."""

    ours: float = 0.0
    plain: float = 0.0
    output: float = 0.0

    def to_json(self) -> dict[str, float]:
        """Relative errors (root mean square) of the fit and of plain NVFP4."""
        size = max(self.output, 1e-30)
        ours, plain = (self.ours / size) ** 0.5, (self.plain / size) ** 0.5
        ratio = ours / plain if plain else 0.0
        return {"error": round(ours, 6), "plain_nvfp4": round(plain, 6), "ratio": round(ratio, 4)}


class Watch:
    """Statistics of the inputs of a block's layers while it runs."""

    def __init__(self, block: nn.Module, names: Mapping[str, LayerPlan]) -> None:
        self.statistics: dict[str, InputStatistics] = {}
        self._hooks = []
        for name, plan in names.items():
            layer = block.get_submodule(name)
            if SAME_INPUTS.get(name) in names:
                continue
            statistics = InputStatistics(plan.shape[1], layer.weight.device)
            self.statistics[name] = statistics
            self._hooks.append(
                layer.register_forward_pre_hook(
                    lambda _layer, inputs, statistics=statistics: statistics.add(inputs[0])
                )
            )

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def of(self, name: str) -> InputStatistics:
        return self.statistics.get(name) or self.statistics[SAME_INPUTS[name]]


def fit_block(
    block: nn.Module, plans: Mapping[str, LayerPlan], watch: Watch, *, activations: int = 16
) -> dict[str, torch.Tensor]:
    """The block's tensors as a checkpoint holds them, named as in the block.

    `plans` and the result have names inside the block. With `activations` 4 the inputs of all but
    the weight-only layers are smoothed.
    """
    tensors: dict[str, torch.Tensor] = {}
    metrics: dict[str, Metric] = {}
    for name, plan in plans.items():
        layer = block.get_submodule(name)
        statistics, weight = watch.of(name), layer.weight.float()
        if activations < 16 and not plan.weight_only:
            smooth = best_smoothing(statistics, weight, plan.rank)
            metric = Metric(statistics.scaled(1 / smooth), name=name)
            weight = weight * smooth
            tensors[f"{name}.inverse_smoothing"] = 1 / smooth
        else:
            key = SAME_INPUTS.get(name, name)
            if key not in metrics:
                metrics.clear()  # layers with the same inputs follow each other
                metrics[key] = Metric(statistics, name=name)
            metric, smooth = metrics[key], None
        rounds = _ROUNDS_LARGE if weight.numel() > _LARGE_WEIGHTS else lowrank.ROUNDS
        fit = lowrank.fit(weight, metric, plan.rank, rounds=rounds, name=name)
        tensors |= {f"{name}.{part}": t for part, t in _stored(fit, layer.bias, smooth).items()}
    quantized = {f"{name}.weight" for name in plans} | {f"{name}.bias" for name in plans}
    for name, tensor in block.state_dict().items():
        if name not in quantized:
            tensors[name] = tensor.bfloat16()
    return tensors


def best_smoothing(statistics: InputStatistics, weight: torch.Tensor, rank: int) -> torch.Tensor:
    """The λ (K,) that leaves the least output error where inputs are rounded to NVFP4 as well.

    As in SVDQuant the strength is tried out layer by layer; none at all is among them, because
    NVFP4's scales of 16 inputs hold much of what smoothing is for.
    """
    inputs = statistics.rows
    wanted = inputs @ weight.T
    best: tuple[float, torch.Tensor] | None = None
    for strength in _STRENGTHS:
        factor = torch.ones_like(weight[0])
        if strength is not None:
            factor = lowrank.smoothing(statistics, weight, strength)
        fit = lowrank.fit(weight * factor, Metric(statistics.scaled(1 / factor)), rank, rounds=1)
        rounded = nvfp4.dequantize(nvfp4.without_nan(nvfp4.quantize(inputs / factor)))
        branch = inputs / factor @ fit.down.float().T @ fit.up.float().T
        made = rounded @ nvfp4.dequantize(fit.weight).T + branch + fit.bias_shift
        error = float((made - wanted).square().sum())
        if best is None or error < best[0]:
            best = error, factor
    assert best is not None
    return best[1]


def _stored(
    fit: Fit, bias: torch.Tensor | None, smooth: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """A fit as the tensors of `Fp4Linear`. The branch takes inputs as they are: λ goes into V."""
    down = fit.down if smooth is None else (fit.down.float() / smooth).bfloat16()
    tensors = {
        "packed": fit.weight.packed,
        "block_scale": fit.weight.block_scale,
        "global_scale": fit.weight.global_scale,
        "up": fit.up,
        "down": down,
    }
    if bias is not None:
        tensors["bias"] = (bias.float() + fit.bias_shift).bfloat16()
    return tensors


def dense_of(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The (N, K) float32 weight that a layer's stored tensors stand for."""
    weight = nvfp4.dequantize(
        nvfp4.Nvfp4Tensor(
            packed=tensors[f"{name}.packed"],
            block_scale=tensors[f"{name}.block_scale"],
            global_scale=tensors[f"{name}.global_scale"],
        )
    )
    smooth = tensors.get(f"{name}.inverse_smoothing")
    if smooth is not None:
        weight = weight * smooth
    return weight + tensors[f"{name}.up"].float() @ tensors[f"{name}.down"].float()


class Examination:
    """The error of a fitted block's outputs, layer by layer, while the 16-bit block runs."""

    def __init__(
        self, block: nn.Module, plans: Mapping[str, LayerPlan], tensors: Mapping[str, torch.Tensor]
    ) -> None:
        self.errors = {name: LayerError() for name in plans}
        self._tensors = tensors
        self._hooks = [
            block.get_submodule(name).register_forward_pre_hook(
                lambda layer, inputs, name=name: self._measure(name, layer, inputs[0])
            )
            for name in plans
        ]

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _measure(self, name: str, layer: nn.Module, inputs: torch.Tensor) -> None:
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        weight, errors = layer.weight.float(), self.errors[name]
        shift = 0.0
        if layer.bias is not None:
            shift = self._tensors[f"{name}.bias"].float() - layer.bias.float()
        difference = rows @ (dense_of(self._tensors, name) - weight).T + shift
        plain = nvfp4.dequantize(nvfp4.without_nan(nvfp4.quantize(weight))) - weight
        errors.ours += float(difference.double().square().sum())
        errors.plain += float((rows @ plain.T).double().square().sum())
        errors.output += float((rows @ weight.T).double().square().sum())
