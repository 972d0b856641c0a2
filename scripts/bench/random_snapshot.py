"""FLUX.1 [schnell] on disk with random weights of its true size, where the services look for it.

    python -m scripts.bench.random_snapshot DIR [--tiny]

Writes `DIR/bf16`, a models folder with the 16-bit model in the Hub's layout, and `DIR/fp4`, one with the
four-bit copy alone: 34 GB and 10 GB. Point FLUX_MODELS_DIR at them. Right for speed and memory; what such a
model draws is noise. The tokenizers are the embedded model's. With `--tiny` everything is small.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from config.catalog import load_catalog
from config.settings import ROOT
from models.fp4 import memory
from models.fp4.checkpoint import (
    CONFIG,
    Component,
    Manifest,
    entry_of,
    replace_layers,
    write_tensors,
)
from models.fp4.layers import RANK, TEXT_ENCODER_RANK, plan_layers
from models.fp4.linear import fp4_layers
from scripts.bench import random_flux

ROW = load_catalog()["flux-schnell"]
EMBEDDED = ROOT / "models" / "embedded"
TOKENIZERS = ("tokenizer", "tokenizer_2")
VAE = {**memory.VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159}
TINY: dict[str, dict[str, Any]] = {
    "transformer": {
        "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 128, "num_attention_heads": 2,
        "joint_attention_dim": 64, "pooled_projection_dim": 64,
    },
    "vae": {"block_out_channels": (32, 32, 32, 32)},
    "t5": {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 1, "num_heads": 2},
    "clip": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
             "projection_dim": 64},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    write(options.folder, tiny=options.tiny)


def write(folder: Path, *, tiny: bool = False) -> None:
    """Both models folders. Raises OSError where there is no room."""
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    change = TINY if tiny else {}
    repository = folder / "bf16" / f"models--{ROW.source.replace('/', '--')}"
    snapshot, copy = repository / "snapshots" / "random", folder / "fp4" / "fp4" / ROW.id
    for each in (snapshot, copy, repository / "refs"):
        each.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text("random")

    _write_small_parts(snapshot, device, change)
    for part in snapshot.iterdir():
        (copy / part.name).symlink_to(part.resolve())
    t5 = random_flux.t5(device, **change.get("t5", {}))
    t5.save_pretrained(snapshot / "text_encoder_2")
    plans, kept = plan_layers(t5, min(TEXT_ENCODER_RANK, t5.config.d_kv // 2), weight_only=True)
    components = {"text_encoder_2": _four_bits(copy / "text_encoder_2", t5, plans, kept)}
    del t5
    transformer = random_flux.transformer(device, **change.get("transformer", {}))
    transformer.save_pretrained(snapshot / "transformer")
    plans, kept = plan_layers(transformer, RANK)
    components["transformer"] = _four_bits(copy / "transformer", transformer, plans, kept)
    Manifest(
        model=ROW.id, rank=RANK, activations=16, source={"name": "random", "files": {}}, components=components
    ).write(copy)  # fmt: skip


def _write_small_parts(snapshot: Path, device: torch.device, change: dict[str, Any]) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    for name in TOKENIZERS:
        shutil.copytree(EMBEDDED / name, snapshot / name, dirs_exist_ok=True)
    shutil.copyfile(EMBEDDED / "model_index.json", snapshot / "model_index.json")
    FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(snapshot / "scheduler")
    random_flux.clip(device, **change.get("clip", {})).save_pretrained(snapshot / "text_encoder")
    autoencoder = random_flux.autoencoder(device, **VAE | change.get("vae", {}))
    autoencoder.save_pretrained(snapshot / "vae")


def _four_bits(folder: Path, model: Any, plans: dict[str, Any], kept: dict[str, str]) -> Component:
    """A component of the FP4 folder with random codes in the place of the planned layers' weights."""
    folder.mkdir(exist_ok=True)
    config = (
        model.to_json_string()
        if hasattr(model, "to_json_string")
        else model.config.to_json_string()
    )
    (folder / CONFIG).write_text(config)
    device = next(model.parameters()).device
    replace_layers(model, plans, "random", smooth=False)
    for layer in fp4_layers(model).values():
        layer.to_empty(device=device)
        random_flux.fill_fp4(layer)
    tensors = {
        name: tensor for name, tensor in model.state_dict().items() if name != "encoder.embed_tokens.weight"
    }  # fmt: skip
    entry = write_tensors(folder / "all.safetensors", tensors)
    return Component(
        files={"all.safetensors": entry},
        config=entry_of(folder / CONFIG),
        layers=plans,
        kept_16bit=json.loads(json.dumps(kept)),
    )


if __name__ == "__main__":
    main()
