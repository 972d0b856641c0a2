"""What the tests of LoRAs on models share: files in a worker's folder, the loaded model, sets to alternate."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch

from models import bf16_flux_model, fp4_flux_model
from models.types import Drawing, LoadOptions, LoraRef
from tests.models.flux1_drawing import EMBEDDED, REQUEST, draw, drawing
from tests.models.lora import formats

LOADERS = {"bf16": bf16_flux_model.load, "fp4": fp4_flux_model.load}

# Weights at which the random LoRAs of `formats` change a picture clearly and do not dissolve it.
CLEAR = 0.3


def load(precision: str, folder: Path, *devices: str) -> Any:
    """The embedded model with `folder` as its LoRAs."""
    options = LoadOptions(
        devices=devices or ("cpu",), models_dir=folder, allow_download=False, loras_dir=folder
    )
    return LOADERS[precision](EMBEDDED, options)


def put(
    folder: Path,
    state: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    weight: float = CLEAR,
    name: str = "a lora",
    words: tuple[str, ...] = (),
) -> LoraRef:
    """Write a LoRA as a worker finds it."""
    path = formats.write(folder / "new", dict(state), metadata)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(folder / f"{sha256}.safetensors")
    return LoraRef(name=name, sha256=sha256, weight=weight, trigger_words=words)


def put_known(folder: Path, form: str = "kohya", seed: int = 7, **options: Any) -> LoraRef:
    return put(folder, *formats.FORMATS[form][0](formats.make_known(seed)), **options)


def request(refs: tuple[LoraRef, ...] = (), **changes: Any) -> Drawing:
    """Small and short: what is asked of it are bytes."""
    small = {"width": 64, "height": 64, "num_inference_steps": 1} | changes
    seed = small.pop("seed", 1)
    prompt = small.pop("prompt", REQUEST.prompt)
    return drawing(prompt, seed=seed, loras=refs, **small)


def picture(model: Any, refs: tuple[LoraRef, ...] = (), **changes: Any) -> numpy.ndarray:
    """Drawn with exactly these LoRAs."""
    model.use_loras(refs)
    return numpy.asarray(draw(model, request(refs, **changes))[0], dtype=float)


def reweighted(ref: LoraRef, weight: float) -> LoraRef:
    return replace(ref, weight=weight)


def flux2() -> dict[str, torch.Tensor]:
    """As FLUX.2 Klein 4B has it: q, k, v and a gated MLP in one layer."""
    name = "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj"
    return {
        f"{name}.lora_A.weight": torch.ones(2, 3072),
        f"{name}.lora_B.weight": torch.ones(9 * 3072, 2),
    }


def flux1_large() -> dict[str, torch.Tensor]:
    """For FLUX.1 itself, which is wider than the embedded model."""
    name = "transformer.single_transformer_blocks.0.proj_mlp"
    return {
        f"{name}.lora_A.weight": torch.ones(2, 3072),
        f"{name}.lora_B.weight": torch.ones(4 * 3072, 2),
    }
