"""LoRA files on a pipeline for a while: W + up · down, and the former weights afterwards."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import FluxPipeline

from models.lora.convert import convert
from models.lora.merge import layer_shapes, merge

PARTS = ("transformer", "text_encoder", "text_encoder_2")


@contextmanager
def applied(pipeline: FluxPipeline, weights: Mapping[Path, float]) -> Iterator[None]:
    """Apply LoRA files, each with its weight."""
    parts = {name: pipeline.components[name] for name in PARTS}
    merged = merge(
        [(convert(path), weight) for path, weight in weights.items()], layer_shapes(parts)
    )
    former = {}
    try:
        with torch.no_grad():
            for name, added in merged.layers.items():
                component, _, layer = name.partition(".")
                weight = parts[component].get_submodule(layer).weight
                former[name] = (weight, weight.detach().clone())
                weight += (added.up @ added.down).to(weight.dtype)
        yield
    finally:
        with torch.no_grad():
            for weight, before in former.values():
                weight.copy_(before)
