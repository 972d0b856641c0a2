"""LoKr and LoHa as PEFT applies them itself: no low rank, nothing lost.

PEFT can where every module of the file is one whole layer of diffusers' model. It cannot where a module
is a fused layer (the product does not split into products of the same kind), where LoKr and LoHa are
mixed, and where no single factor explains how LoKr cut its layers; `native` then answers None, and
`convert` makes it low rank. Alphas are multiplied into the first factor, so that PEFT's scale is 1.
PEFT wraps layer around layer when kinds of adapters meet; together with LoRAs, low rank is simpler.
Sources: diffusers 0.42.1 `utils/peft_utils.py` (`_create_lokr_config`), `loaders/peft.py`; peft
`tuners/{lokr,loha}/layer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.peft_utils import _create_lokr_config
from peft import LoHaConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from torch import nn

from models.lora import keys
from models.lora.base_model import Family
from models.lora.finite import check_finite
from models.lora.header import read_header
from models.lora.inspect import inspect, require
from models.lora.targets import targets


@dataclass(frozen=True, slots=True)
class Native:
    """An adapter of the transformer: PEFT's configuration, and tensors by layer and part."""

    config: Any
    state: Mapping[str, torch.Tensor]

    def load(self, transformer: nn.Module, adapter_name: str) -> None:
        """Put it into a transformer under a name; PEFT's own calls take it out again."""
        inject_adapter_in_model(self.config, transformer, adapter_name, state_dict=dict(self.state))
        set_peft_model_state_dict(transformer, dict(self.state), adapter_name)


def native(path: Path | str) -> Native | None:
    """The file as PEFT's own adapter; None where it cannot be one, as for any LoRA.

    Raises what `convert` raises for a file that is broken or for another model.
    """
    header = read_header(path)
    info = inspect(path, header)
    require(info, Family.FLUX1)
    if info.format not in ("lokr", "loha") or info.unknown_keys:
        return None
    check_finite(path, header)
    kind = keys.LOKR if info.format == "lokr" else keys.LOHA
    state: dict[str, torch.Tensor] = {}
    with safe_open(path, "pt") as file:
        for module, names in keys.group(header.tensors)[0].items():
            tensors = {part: file.get_tensor(name) for part, name in names.items()}
            alpha = tensors.pop(keys.ALPHA, None)
            layer = _whole_layer(module, tensors) if set(tensors) <= set(kind) else None
            if layer is None:
                return None
            _bake(tensors, alpha)
            state |= {f"{layer}.{part}": tensor for part, tensor in tensors.items()}
    config = _lokr(state) if kind is keys.LOKR else _loha(state)
    return None if config is None else Native(config, state)


def _whole_layer(module: str, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The one layer of the transformer a module is, rows in order; None if it is not."""
    try:
        rows, columns = _shape(tensors)
        up = torch.arange(rows, dtype=torch.float32)[:, None]
        found = targets(module, keys.place(module), up, torch.ones(1, columns))
    except (KeyError, ValueError, RuntimeError, AssertionError):
        return None
    if len(found) != 1:
        return None
    layer, (found_up, _) = next(iter(found.items()))
    same = torch.equal(found_up, up) and layer.startswith("transformer.")
    return layer.removeprefix("transformer.") if same else None


def _shape(tensors: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    if "hada_w1_a" in tensors:
        return tensors["hada_w1_a"].shape[0], tensors["hada_w1_b"].shape[1]
    rows, columns = 1, 1
    for name in ("lokr_w1", "lokr_w2"):
        rows *= tensors.get(name, tensors.get(f"{name}_a")).shape[0]
        columns *= tensors.get(name, tensors.get(f"{name}_b")).shape[1]
    return rows, columns


def _bake(tensors: dict[str, torch.Tensor], alpha: torch.Tensor | None) -> None:
    inner = next(
        (tensors[p] for p in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b") if p in tensors), None
    )
    if alpha is None or inner is None:  # LoKr of two whole factors is not scaled
        return
    first = next(p for p in ("hada_w1_a", "lokr_w1", "lokr_w1_a") if p in tensors)
    tensors[first] = tensors[first].float() * (float(alpha) / inner.shape[0])


def _lokr(state: dict[str, torch.Tensor]) -> Any:
    try:
        return _create_lokr_config(state, None)
    except ValueError:
        return None


def _loha(state: Mapping[str, torch.Tensor]) -> LoHaConfig:
    ranks = {
        key.removesuffix(".hada_w1_b"): tensor.shape[0]
        for key, tensor in state.items()
        if key.endswith(".hada_w1_b")
    }
    patterns = {f"^{layer}$": rank for layer, rank in ranks.items()}
    return LoHaConfig(
        r=1, alpha=1, rank_pattern=patterns, alpha_pattern=patterns, target_modules=sorted(ranks)
    )
