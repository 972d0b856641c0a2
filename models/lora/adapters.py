"""LoRAs as native adapters: PEFT's layers around the model's own, each LoRA by itself, with its weight.

An adapter's weights are kept on the device, by its file's content, while they fit. PEFT's layers are
made for a set of them, in the order of a request, and only those of the present set are in the model;
how strongly each acts is set for every request. So without LoRAs the model is the one that was loaded,
adapters that wait cost a drawing nothing, and what a layer adds up follows from the request alone.

LoKr and LoHa that PEFT can apply itself (`native.py`) are adapters of another kind, and PEFT would put
one kind's layers around the other's. Such a file is a set of its own; together with others it is low
rank too.
Source: peft 0.21.2 `tuners/lora/layer.py`, `tuners/tuners_utils.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners import lora as peft_lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from models.lora.in_use import Chosen, log_loss
from models.lora.kept import Kept
from models.lora.merge import Shape, layer_shapes
from models.lora.native import Native
from models.types import LoraRef

MAX_BYTES = 2 * 2**30  # of adapters of each kind that are kept, on the device
MAX_SETS = 64  # of PEFT's layers that are kept; their weights are the adapters'

_CONFIG = LoraConfig(init_lora_weights=False, inference_mode=True)
_WHOLE = "whole"  # the name of an adapter that is no low rank

Layers = dict[str, Any]  # PEFT's layers by the name of the model's layer inside, component first


class _Given(nn.Linear):
    """A linear layer whose weight is put in at once; drawing one before takes most of making it."""

    def reset_parameters(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Weights:
    """What an adapter adds to one layer: scale · up · down."""

    down: nn.Linear
    up: nn.Linear
    scale: float


@dataclass(frozen=True, slots=True)
class _Adapter:
    layers: Mapping[str, _Weights]
    size_bytes: int


class PeftAdapters:
    """Carries LoRAs as adapters of `components`, each of which computes on its device."""

    def __init__(
        self,
        components: Mapping[str, nn.Module],
        devices: Mapping[str, torch.device],
        native_of: Callable[[LoraRef], Native | None],
        *,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.shapes: Mapping[str, Shape] = layer_shapes(components)
        self._components, self._devices = components, devices
        self._native_of = native_of
        self._max_bytes = max_bytes
        self._adapters: OrderedDict[str, _Adapter] = OrderedDict()  # longest unused first
        self._sets: OrderedDict[tuple[str, ...], Layers] = (
            OrderedDict()
        )  # by contents in their order
        self._wholes: Kept[Layers] = Kept(max_bytes)  # of each that is not, by content
        self._mounted: Layers = {}  # the set that is in the model
        self._chosen: Sequence[Chosen] = ()

    @property
    def size_bytes(self) -> int:
        return sum(adapter.size_bytes for adapter in self._adapters.values())

    def carry(self, chosen: Sequence[Chosen]) -> None:
        try:
            self._take(chosen)
        except BaseException:
            self._take(self._chosen)
            raise
        self._chosen = tuple(chosen)
        self._make_room({one.ref.sha256 for one in chosen}, 0)

    def release(self) -> None:
        self._mount({})
        self._chosen = ()
        self._adapters.clear()
        self._sets.clear()
        self._wholes.clear()

    def _take(self, chosen: Sequence[Chosen]) -> None:
        native = self._native_of(chosen[0].ref) if len(chosen) == 1 else None
        if native is not None:
            return self._use_whole(native, chosen[0].ref)
        self._load(chosen)
        self._mount(self._set_of(chosen))
        for one in chosen:
            name = one.ref.sha256
            for path, weights in self._adapters[name].layers.items():
                self._mounted[path].scaling[name] = one.ref.weight * weights.scale

    def _mount(self, layers: Layers) -> None:
        """Put a set of PEFT's layers into the model, around its own, in place of the set before."""
        if self._mounted is layers:
            return
        for path, layer in self._mounted.items():
            self._set(path, layer.get_base_layer())
        self._mounted = layers
        for path, layer in layers.items():
            self._set(path, layer)

    # Low rank

    def _load(self, chosen: Sequence[Chosen]) -> None:
        """Put the weights on the device that are not there, after those nobody asks for have made room."""
        new = [one for one in chosen if one.ref.sha256 not in self._adapters]
        used = {one.ref.sha256 for one in (*chosen, *self._chosen)}
        log_loss(new)
        self._make_room(used, sum(self._bytes_of(one) for one in new))
        for one in new:
            try:
                self._adapters[one.ref.sha256] = self._adapter(one)
            except torch.OutOfMemoryError:
                self._make_room(used, self._max_bytes)  # all that can go, goes
                self._adapters[one.ref.sha256] = self._adapter(one)
        for one in chosen:
            self._adapters.move_to_end(one.ref.sha256)

    def _adapter(self, one: Chosen) -> _Adapter:
        layers = {
            path: _Weights(
                self._linear(path, factors.down), self._linear(path, factors.up), factors.scale
            )
            for path, factors in one.lora.layers.items()
            if path in self.shapes
        }
        return _Adapter(layers, self._bytes_of(one))

    def _linear(self, path: str, weight: torch.Tensor) -> nn.Linear:
        layer = _Given(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(self._placed(path, weight), requires_grad=False)
        return layer.eval()

    def _set_of(self, chosen: Sequence[Chosen]) -> Layers:
        """PEFT's layers for these adapters; they share the adapters' weights."""
        key = tuple(one.ref.sha256 for one in chosen)
        layers = self._sets.pop(key, None)
        if layers is None:
            layers = {}
            for name in key:
                for path, weights in self._adapters[name].layers.items():
                    self._add(layers, path, name, weights)
            for layer in layers.values():
                layer.set_adapter([name for name in key if name in layer.lora_A], True)
                layer.eval()
        self._sets[key] = layers
        while len(self._sets) > MAX_SETS:
            self._sets.popitem(last=False)
        return layers

    def _add(self, layers: Layers, path: str, name: str, weights: _Weights) -> None:
        rank = weights.down.out_features
        if path not in layers:
            with torch.device("meta"):  # PEFT makes weights of its own, which are not used
                own = self._own(path)
                layers[path] = peft_lora.Linear(own, name, _CONFIG, r=rank, lora_alpha=rank)
        layer = layers[path]
        if name not in layer.r:
            # What `update_layer` does, less making weights: 0.5 ms for each of some 500 layers.
            layer.r[name] = layer.lora_alpha[name] = rank
            layer.use_rslora[name] = layer.use_dora[name] = layer.lora_bias[name] = False
            layer.lora_dropout[name] = nn.Identity()
        layer.lora_A[name], layer.lora_B[name] = weights.down, weights.up

    def _make_room(self, used: set[str], wanted_bytes: int) -> None:
        for name in list(self._adapters):
            if self.size_bytes + wanted_bytes <= self._max_bytes:
                return
            if name not in used:
                del self._adapters[name]
                for key in [key for key in self._sets if name in key]:
                    del self._sets[key]

    def _bytes_of(self, one: Chosen) -> int:
        return sum(
            (factors.down.numel() + factors.up.numel()) * self._own(path).weight.element_size()
            for path, factors in one.lora.layers.items()
            if path in self.shapes
        )

    def _placed(self, path: str, weight: torch.Tensor) -> torch.Tensor:
        device = self._devices[path.partition(".")[0]]
        # A copy also where nothing changes: layers fused in the file share a tensor there.
        return weight.to(device, self._own(path).weight.dtype, copy=True).contiguous()

    # Another kind

    def _use_whole(self, native: Native, ref: LoraRef) -> None:
        layers = self._wholes.get(ref.sha256)
        if layers is None:
            self._mount({})
            layers = self._inject(native)
            self._mounted = layers
            size_bytes = sum(tensor.nbytes for tensor in native.state.values())
            self._wholes.put(ref.sha256, layers, size_bytes)
        self._mount(layers)
        for layer in layers.values():
            layer.set_scale(_WHOLE, ref.weight)

    def _inject(self, native: Native) -> Layers:
        transformer = self._components["transformer"]
        try:
            native.load(transformer, _WHOLE)
            found = _tuner_layers(transformer)
        except BaseException:
            for path, layer in _tuner_layers(transformer).items():
                self._set(path, layer.get_base_layer())
            raise
        finally:
            if hasattr(transformer, "peft_config"):
                del transformer.peft_config
        for layer in found.values():
            layer.eval()
        return found

    # The model's modules by name, component first

    def _own(self, path: str) -> Any:
        """The model's layer, whether PEFT's is around it or not."""
        component, _, rest = path.partition(".")
        layer = self._components[component].get_submodule(rest)
        return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer

    def _set(self, path: str, module: nn.Module) -> None:
        component, _, rest = path.partition(".")
        parent, _, child = rest.rpartition(".")
        setattr(self._components[component].get_submodule(parent), child, module)


def _tuner_layers(transformer: nn.Module) -> Layers:
    return {
        f"transformer.{path}": part
        for path, part in list(transformer.named_modules())
        if isinstance(part, BaseTunerLayer)
    }
