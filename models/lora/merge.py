"""Several LoRAs as one: exact, for any ranks, alphas and weights.

    ΔW = Σ wᵢ·sᵢ·BᵢAᵢ = [w₁s₁B₁  w₂s₂B₂ …] · [A₁; A₂; …]        sᵢ = αᵢ/rᵢ

The ranks stand side by side, so nothing is lost and nothing mixes; adding the Aᵢ and the Bᵢ instead
would make products between LoRAs that nobody asked for. A LoRA of weight 0 adds no columns: what comes
out is what comes out without it. Pure functions: nothing is changed, nothing is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from models.lora.convert import Lora
from models.lora.errors import LoraIncompatible
from models.lora.json_cursor import shown

Shape = tuple[int, int]  # (out, in) of a layer's weight


@dataclass(frozen=True, slots=True)
class Match:
    """How much of one LoRA found its layer, counted in tensors of its file."""

    matched_keys: int
    unmatched_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Added:
    """What is added to one layer's weight: up · down, float32; R is the sum of the ranks."""

    up: torch.Tensor  # (out, R), weights and scales in it
    down: torch.Tensor  # (R, in)


@dataclass(frozen=True, slots=True)
class Merged:
    """Layers that change, by name, and one Match for each LoRA in the order given."""

    layers: Mapping[str, Added]
    matches: tuple[Match, ...]


def merge(loras: Sequence[tuple[Lora, float]], shapes: Mapping[str, Shape]) -> Merged:
    """The sum of LoRAs with their weights, for a model whose layers have these shapes.

    Raises LoraIncompatible, saying why, for a LoRA that matches no layer or whose factors have not
    the layer's shape, and ValueError for a weight that is no number.
    """
    matches = tuple(match(lora, shapes) for lora, _ in loras)
    ups: dict[str, list[torch.Tensor]] = {}
    downs: dict[str, list[torch.Tensor]] = {}
    for lora, weight in loras:
        if not math.isfinite(weight):
            raise ValueError(f"a LoRA's weight is a number, not {weight}")
        for name, factors in lora.layers.items():
            factor = weight * factors.scale
            if factor and name in shapes:
                ups.setdefault(name, []).append(factors.up.float() * factor)
                downs.setdefault(name, []).append(factors.down.float())
    layers = {name: Added(torch.cat(ups[name], 1), torch.cat(downs[name], 0)) for name in ups}
    for name, added in layers.items():
        if not added.up.isfinite().all():
            raise LoraIncompatible(f"the LoRAs are too strong at {name}: numbers over 3e38")
    return Merged(layers, matches)


def match(lora: Lora, shapes: Mapping[str, Shape]) -> Match:
    """Which tensors of a LoRA a model has layers for. Raises LoraIncompatible as `merge` does."""
    found, missed = set(), dict.fromkeys(lora.unknown_keys)
    for name, factors in lora.layers.items():
        if name in shapes:
            _check_shape(lora, name, factors.up.shape[0], factors.down.shape[1], shapes[name])
            found.update(factors.keys)
        else:
            missed.update(dict.fromkeys(factors.keys))
    unmatched = tuple(key for key in missed if key not in found)
    if not found:
        some = ", ".join(shown(key) for key in unmatched[:3])
        raise LoraIncompatible(
            f"the LoRA ({lora.info.format}, for {lora.info.base.name}) matches no layer of this model; "
            f"none of its {len(unmatched)} keys is known here, for example {some}"
        )
    return Match(len(found), unmatched)


def layer_shapes(components: Mapping[str, nn.Module]) -> dict[str, Shape]:
    """Shapes of all linear layers, named component first.

    Linear is whatever has `in_features`: torch's layers and quantised ones. A layer inside an
    adapter (PEFT's `base_layer`) counts by the name it had.
    """
    shapes = {}
    for component, module in components.items():
        for name, part in module.named_modules():
            if hasattr(part, "in_features") and ".lora_" not in name:
                name = f"{component}.{name}".removesuffix(".base_layer")
                shapes[name] = (part.out_features, part.in_features)
    return shapes


def _check_shape(lora: Lora, name: str, rows: int, columns: int, shape: Shape) -> None:
    if (rows, columns) != shape:
        raise LoraIncompatible(
            f"the LoRA (for {lora.info.base.name}) changes {name} as a layer of {rows} outputs and "
            f"{columns} inputs; this model's has {shape[0]} and {shape[1]}"
        )
