"""LoRAs merged: the sum of a set, ranks side by side, in the branch of every layer it changes.

What is merged is kept by contents and weights, on the device: to change to a set that was used before
is to exchange references. Layers with room for a branch are four-bit ones and `branch.BranchedLinear`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from models.lora.branch import Pair, make_room
from models.lora.in_use import Chosen, log_loss
from models.lora.kept import Kept
from models.lora.merge import Shape, merge

MAX_BYTES = 2**30  # of merged sets, on the device
# transformers 4 has CLIP's encoder in a text_model, transformers 5 has it bare; LoRAs are named by the latter.
_WRAPPER = "text_model."

Layers = Mapping[str, Pair]  # by layer, component first


class Place(Protocol):
    """A layer with room for extra columns. `weight` is None where it says nothing about the dtype."""

    in_features: int
    out_features: int
    weight: torch.Tensor | None

    def set_extra(self, up: torch.Tensor, down: torch.Tensor) -> None: ...

    def clear_extra(self) -> None: ...


def places_in(
    components: Mapping[str, nn.Module],
    devices: Mapping[str, torch.device],
    *,
    fixed_rank: int | None = None,
) -> dict[str, Place]:
    """The layers that can have a LoRA, by name, component first; those of torch's are given a branch.

    With `fixed_rank` the transformer's branches have that rank from the start (see `branch.py`).
    """
    places: dict[str, Place] = {}
    for name, component in components.items():
        fixed = fixed_rank if name == "transformer" else None
        make_room(component, devices[name], fixed_rank=fixed)
        for path, part in component.named_modules():
            if hasattr(part, "set_extra"):
                places[f"{name}.{path.removeprefix(_WRAPPER)}"] = part
    return places


class MergedLoras:
    """Carries LoRAs in `places`.

    `devices` and `dtypes` are what each component computes on and in; a place with a weight computes
    in the weight's dtype. `on_change` is called when a set is in place, for those who have to be told.
    """

    def __init__(
        self,
        places: Mapping[str, Place],
        devices: Mapping[str, torch.device],
        dtypes: Mapping[str, torch.dtype],
        *,
        on_change: Callable[[], None] = lambda: None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._places, self._devices, self._dtypes = places, devices, dtypes
        self._on_change = on_change
        self._sets: Kept[Layers] = Kept(max_bytes)
        self._layers: Layers = {}
        self.shapes: Mapping[str, Shape] = {
            name: (place.out_features, place.in_features) for name, place in places.items()
        }

    def carry(self, chosen: Sequence[Chosen]) -> None:
        layers = self._merged(chosen)
        before = self._layers
        try:
            self._put(layers)
        except BaseException:
            self._put({})
            self._put(before)
            raise

    def release(self) -> None:
        self._put({})
        self._sets.clear()

    def _merged(self, chosen: Sequence[Chosen]) -> Layers:
        key = tuple(one.key for one in chosen)
        layers = self._sets.get(key)
        if layers is None:
            log_loss(chosen)
            merged = merge([(one.lora, one.ref.weight) for one in chosen], self.shapes)
            layers = {
                name: (self._moved(name, added.up), self._moved(name, added.down))
                for name, added in merged.layers.items()
            }
            self._sets.put(key, layers, sum(u.nbytes + d.nbytes for u, d in layers.values()))
        return layers

    def _moved(self, layer: str, tensor: torch.Tensor) -> torch.Tensor:
        component, weight = layer.partition(".")[0], self._places[layer].weight
        dtype = self._dtypes[component] if weight is None else weight.dtype
        return tensor.to(self._devices[component], dtype)

    def _put(self, layers: Layers) -> None:
        for name in self._layers.keys() - layers.keys():
            self._places[name].clear_extra()
        # Before the first is set: what fails half-way is then taken away by name.
        self._layers = dict(self._layers) | dict(layers)
        for name, (up, down) in layers.items():
            self._places[name].set_extra(up, down)
        self._layers = layers
        self._on_change()
