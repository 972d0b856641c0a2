"""The layers a LoRA is put on, and its factors as they come off again."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig

NAME = "trained"

# What `layers` may say beside a regular expression of one's own.
LAYER_GROUPS = {
    "attention": r"(single_)?transformer_blocks\.\d+\.attn\..+",
    "image": r"transformer_blocks\.\d+\.(attn\.to_.+|ff\..+|norm1\.linear)(?<!to_add_out)"
    r"|single_transformer_blocks\.\d+\..+|proj_out",
    "blocks": r"(single_)?transformer_blocks\..+",
    "all": r".+",
}


class LayersError(ValueError):
    """No layer of the model is meant, or the expression is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A trained LoRA: float32 factors by layer of diffusers' transformer, and one scale for all."""

    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]  # down (r, in), up (out, r)
    outputs: Mapping[str, int]  # rows of every linear layer of the model, adapted or not
    rank: int
    alpha: float


def find_layers(transformer: FluxTransformer2DModel, layers: str) -> list[str]:
    """Return the names of the linear layers that a group or a regular expression means."""
    try:
        pattern = re.compile(LAYER_GROUPS.get(layers, layers))
    except re.error as error:
        raise LayersError(
            f"--layers {layers} is neither one of {', '.join(LAYER_GROUPS)} nor a regular "
            f"expression: {error}"
        ) from error
    names = linear_layers(transformer)
    found = [name for name in names if pattern.fullmatch(name)]
    if not found:
        raise LayersError(
            f"--layers {layers} means no layer of this model; its layers are named as in "
            f"{', '.join(list(names)[:3])}"
        )
    return found


def linear_layers(transformer: FluxTransformer2DModel) -> dict[str, int]:
    """Return the linear layers by name, with the number of their outputs."""
    return {
        name: module.out_features
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def add(
    transformer: FluxTransformer2DModel, layers: list[str], *, rank: int, alpha: float
) -> dict[str, torch.nn.Parameter]:
    """Put an untrained LoRA on `layers`, in float32, and return its parameters by name.

    The factors come from torch's generator: seed it before.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        init_lora_weights="gaussian",
        target_modules="|".join(f"(?:{re.escape(name)})" for name in layers),
    )
    transformer.add_adapter(config, adapter_name=NAME)
    parameters = {
        name: parameter
        for name, parameter in transformer.named_parameters()
        if parameter.requires_grad
    }
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
    return parameters


def collect(weights: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return (down, up) by layer from parameters under PEFT's names."""
    ending = f".lora_A.{NAME}.weight"
    found = {}
    for name, down in weights.items():
        if name.endswith(ending):
            layer = name.removesuffix(ending)
            found[layer] = (down, weights[f"{layer}.lora_B.{NAME}.weight"])
    return found
