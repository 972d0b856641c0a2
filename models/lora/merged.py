"""LoRAs merged: the sum of a set, ranks side by side, in the branch of every layer it changes.

What is merged is kept by contents and weights, on the device: to change to a set that was used before
is to exchange references. Layers with room for a branch are four-bit ones and `branch.BranchedLinear`.

In a compiled model a layer with another width of branch, or without one, is another graph. There all layers
get branches of one width, the next power of two, filled up with zeros; those that a set does not change get
nothing but zeros. So there is one graph without LoRAs and one with, and after the second width none is new.
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
LEAST_WIDTH = 16  # of the branches in a compiled model
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


def places_in(components: Mapping[str, nn.Module]) -> dict[str, Place]:
    """The layers that can have a LoRA, by name, component first; those of torch's are given a branch."""
    places: dict[str, Place] = {}
    for name, component in components.items():
        make_room(component)
        for path, part in component.named_modules():
            if hasattr(part, "set_extra"):
                places[f"{name}.{path.removeprefix(_WRAPPER)}"] = part
    return places


class MergedLoras:
    """Carries LoRAs in `places`.

    `devices` and `dtypes` are what each component computes on and in; a place with a weight computes
    in the weight's dtype. `on_change` is called when a set is in place, for those who have to be told.
    `compiled` names a component that is compiled.
    """

    def __init__(
        self,
        places: Mapping[str, Place],
        devices: Mapping[str, torch.device],
        dtypes: Mapping[str, torch.dtype],
        *,
        on_change: Callable[[], None] = lambda: None,
        compiled: str | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._places, self._devices, self._dtypes = places, devices, dtypes
        self._on_change = on_change
        self._compiled = None if compiled is None else f"{compiled}."
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
            layers = self._of_one_width(layers)
            self._sets.put(key, layers, _bytes_of(layers))
        return layers

    def _of_one_width(self, layers: Layers) -> Layers:
        """The same sums, as a compiled component wants them."""
        if not layers or self._compiled is None:
            return layers
        width = max([LEAST_WIDTH, *(up.shape[1] for up, _ in layers.values())])
        width = 1 << (width - 1).bit_length()
        zeros: dict[tuple[Shape, torch.dtype], Pair] = {}
        even = dict(layers)
        for name, place in self._places.items():
            if not name.startswith(self._compiled):
                continue
            shape, dtype = (place.out_features, place.in_features), self._dtype(name)
            if (shape, dtype) not in zeros:
                like = {"dtype": dtype, "device": self._devices[name.partition(".")[0]]}
                zeros[shape, dtype] = (
                    torch.zeros(shape[0], width, **like),
                    torch.zeros(width, shape[1], **like),
                )
            up, down = (tensor.view_as(tensor) for tensor in zeros[shape, dtype])
            if name in layers:
                own_up, own_down = layers[name]
                up = torch.cat([own_up, up[:, own_up.shape[1] :]], dim=1)
                down = torch.cat([own_down, down[own_down.shape[0] :]])
            even[name] = up, down
        return even

    def _moved(self, layer: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._devices[layer.partition(".")[0]], self._dtype(layer))

    def _dtype(self, layer: str) -> torch.dtype:
        weight = self._places[layer].weight
        return self._dtypes[layer.partition(".")[0]] if weight is None else weight.dtype

    def _put(self, layers: Layers) -> None:
        for name in self._layers.keys() - layers.keys():
            self._places[name].clear_extra()
        # Before the first is set: what fails half-way is then taken away by name.
        self._layers = dict(self._layers) | dict(layers)
        for name, (up, down) in layers.items():
            self._places[name].set_extra(up, down)
        self._layers = layers
        self._on_change()


def _bytes_of(layers: Layers) -> int:
    """What is shared counts once."""
    storages = (tensor.untyped_storage() for pair in layers.values() for tensor in pair)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
