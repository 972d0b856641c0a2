"""LoRAs with the engine nunchaku: one merged set, handed over by the transformer's own calls.

nunchaku's layers are its own and take no extra columns from outside. Its transformer takes a LoRA in
diffusers' format, adds the ranks to its low-rank branch and can take them away again; its strength is
right for a single LoRA. So the sum of a set, weights and scales in it, is given as one LoRA of strength 1.
The text encoders have branches as they have with the other engine; nunchaku's 4-bit T5 has no layers
that could, and LoRAs for it count as unmatched.

Written from nunchaku's source; not run on hardware by this project yet. Source: nunchaku 1.2.1,
`models/transformers/transformer_flux.py` (`update_lora_params`, `set_lora_strength`, `reset_lora`),
`lora/flux/nunchaku_converter.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel

from models.lora.branch import Pair
from models.lora.in_use import Carrier
from models.lora.merge import layer_shapes
from models.lora.merged import MergedLoras, places_in

_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


class NunchakuBranch:
    """What is to be added to the layers of one of nunchaku's transformers."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self._columns: dict[str, Pair] = {}
        self._is_told = True
        with init_empty_weights():
            whole = FluxTransformer2DModel.from_config(transformer.config)
        # nunchaku's own layers are fused and packed; it takes LoRAs by the names diffusers has.
        self.places = {
            name: _Slot(name, shape, self)
            for name, shape in layer_shapes({"transformer": whole}).items()
        }

    def note(self, layer: str, columns: Pair | None) -> None:
        self._is_told = False
        self._columns.pop(layer, None)
        if columns is not None:
            self._columns[layer] = columns

    def tell(self) -> None:
        """Hand the transformer what was noted since the last time."""
        if self._is_told:
            return
        if not self._columns:
            self._transformer.reset_lora()
        else:
            tensors = {}
            for layer, (up, down) in self._columns.items():
                tensors[f"{layer}.lora_A.weight"] = down
                tensors[f"{layer}.lora_B.weight"] = up
            self._transformer.update_lora_params(tensors)
            # The scale belongs to the layers and outlives the LoRAs it was set for.
            self._transformer.set_lora_strength(1.0)
        self._is_told = True


class _Slot:
    """A `merged.Place` for one layer."""

    weight = None

    def __init__(self, name: str, shape: tuple[int, int], branch: NunchakuBranch) -> None:
        self.out_features, self.in_features = shape
        self._name, self._branch = name, branch

    def set_extra(self, up: torch.Tensor, down: torch.Tensor) -> None:
        self._branch.note(self._name, (up, down))

    def clear_extra(self) -> None:
        self._branch.note(self._name, None)


def carrier(pipeline: Any) -> Carrier:
    """Who carries LoRAs in a pipeline with nunchaku's transformer."""
    parts = {name: getattr(pipeline, name) for name in _TEXT_ENCODERS}
    # nunchaku repacks LoRAs in main memory, beside its own branch.
    devices = {name: part.device for name, part in parts.items()} | {
        "transformer": torch.device("cpu")
    }
    dtypes = {name: part.dtype for name, part in parts.items()} | {
        "transformer": pipeline.transformer.dtype
    }
    branch = NunchakuBranch(pipeline.transformer)
    places = places_in(parts) | branch.places
    return MergedLoras(places, devices, dtypes, on_change=branch.tell)
