"""LoRAs as native adapters: PEFT's layers around the model's own, each LoRA by itself, with its weight.

An adapter is named by its file's content and kept in the model while it fits; which ones act, in what
order and how strongly is set for each request. Where no adapter is left the layer is the model's own
again. Ranks are those of the files, so what a layer adds up follows from the request's LoRAs alone and
not from those that were there before.

LoKr and LoHa that PEFT can apply itself (`native.py`) are adapters of another kind, and PEFT would put
one kind's layers around the other's. So PEFT's layers come in sets, of which one is in the model at a
time: one set for everything that is low rank, and one for each such file, which acts alone. Together
with others it is low rank too.
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

from models.lora.convert import Factors
from models.lora.in_use import Chosen, log_loss
from models.lora.kept import Kept
from models.lora.merge import Shape, layer_shapes
from models.lora.native import Native
from models.types import LoraRef

MAX_BYTES = 2 * 2**30  # of adapters of each kind that are kept, on the device

_CONFIG = LoraConfig(init_lora_weights=False, inference_mode=True)
_WHOLE = "whole"  # the name of an adapter that is no low rank

Layers = dict[str, Any]  # PEFT's layers by the name of the model's layer inside, component first


@dataclass(frozen=True, slots=True)
class _Adapter:
    scales: Mapping[str, float]  # by layer
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
        self._layers: Layers = {}  # of all adapters that are low rank
        self._adapters: OrderedDict[str, _Adapter] = OrderedDict()  # longest unused first
        self._wholes: Kept[Layers] = Kept(max_bytes)  # of each that is not, by content
        self._mounted: Layers = self._layers  # the set that is in the model
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

    def release(self) -> None:
        self._mount({})
        self._layers, self._chosen = {}, ()
        self._adapters.clear()
        self._wholes.clear()

    def _take(self, chosen: Sequence[Chosen]) -> None:
        native = self._native_of(chosen[0].ref) if len(chosen) == 1 else None
        if native is None:
            self._mount(self._layers)
            self._load(chosen)
            self._activate(chosen)
        else:
            self._use_whole(native, chosen[0].ref)

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
        """Make the adapters that are not there, after those that nobody asks for have made room."""
        new = {one.ref.sha256: one for one in chosen if one.ref.sha256 not in self._adapters}
        used = {one.ref.sha256 for one in (*chosen, *self._chosen)}
        log_loss(list(new.values()))
        self._make_room(used, sum(self._bytes_of(one) for one in new.values()))
        for one in new.values():
            try:
                self._add(one)
            except torch.OutOfMemoryError:
                self._make_room(used, self._max_bytes)  # all that can go, goes
                self._add(one)

    def _add(self, one: Chosen) -> None:
        """Make an adapter, or leave nothing of it."""
        name = one.ref.sha256
        scales = {layer: f.scale for layer, f in one.lora.layers.items() if layer in self.shapes}
        self._adapters[name] = _Adapter(scales, self._bytes_of(one))
        try:
            for layer in scales:
                self._add_to(layer, name, one.lora.layers[layer])
        except BaseException:
            self._delete(name)
            raise

    @torch.no_grad()
    def _add_to(self, path: str, name: str, factors: Factors) -> None:
        rank = factors.down.shape[0]
        with torch.device("meta"):  # nothing is initialised, the weights are there
            layer = self._layers.get(path)
            if layer is None:
                layer = self._wrap(path, name, rank)
            else:
                layer.update_layer(name, rank, lora_alpha=rank, config=_CONFIG)
        for part, weight in ((layer.lora_A, factors.down), (layer.lora_B, factors.up)):
            part[name].weight = nn.Parameter(self._placed(path, weight), requires_grad=False)

    def _wrap(self, path: str, name: str, rank: int) -> peft_lora.Linear:
        layer = peft_lora.Linear(self._get(path), name, config=_CONFIG, r=rank, lora_alpha=rank)
        layer.set_adapter([], inference_mode=True)
        layer.eval()
        self._set(path, layer)
        self._layers[path] = layer
        return layer

    def _activate(self, chosen: Sequence[Chosen]) -> None:
        names = [one.ref.sha256 for one in chosen]
        for one in chosen:
            name, adapter = one.ref.sha256, self._adapters[one.ref.sha256]
            self._adapters.move_to_end(name)
            for path, scale in adapter.scales.items():
                self._layers[path].scaling[name] = one.ref.weight * scale
        for layer in self._layers.values():
            acting = [name for name in names if name in layer.lora_A]
            if layer.active_adapters != acting:
                layer.set_adapter(acting, inference_mode=True)
        self._make_room(set(names), 0)

    def _make_room(self, used: set[str], wanted_bytes: int) -> None:
        for name in list(self._adapters):
            if self.size_bytes + wanted_bytes <= self._max_bytes:
                return
            if name not in used:
                self._delete(name)

    def _delete(self, name: str) -> None:
        for path in self._adapters.pop(name).scales:
            layer = self._layers.get(path)
            if layer is None:
                continue
            if name in layer.active_adapters:  # PEFT would choose another in its place
                layer.set_adapter([n for n in layer.active_adapters if n != name], True)
            layer.delete_adapter(name)
            if not layer.lora_A:
                del self._layers[path]
                self._set(path, layer.get_base_layer())

    def _bytes_of(self, one: Chosen) -> int:
        return sum(
            (factors.down.numel() + factors.up.numel()) * self._weight(path).element_size()
            for path, factors in one.lora.layers.items()
            if path in self.shapes
        )

    def _placed(self, path: str, weight: torch.Tensor) -> torch.Tensor:
        device = self._devices[path.partition(".")[0]]
        # A copy also where nothing changes: layers fused in the file share a tensor there.
        return weight.to(device, self._weight(path).dtype, copy=True).contiguous()

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

    def _get(self, path: str) -> nn.Module:
        component, _, rest = path.partition(".")
        return self._components[component].get_submodule(rest)

    def _set(self, path: str, module: nn.Module) -> None:
        component, _, rest = path.partition(".")
        parent, _, child = rest.rpartition(".")
        setattr(self._components[component].get_submodule(parent), child, module)

    def _weight(self, path: str) -> torch.Tensor:
        layer = self._get(path)
        return (layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer).weight


def _tuner_layers(transformer: nn.Module) -> Layers:
    return {
        f"transformer.{path}": part
        for path, part in list(transformer.named_modules())
        if isinstance(part, BaseTunerLayer)
    }
