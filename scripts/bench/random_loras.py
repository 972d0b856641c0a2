"""LoRAs for the embedded model with random factors on every linear layer of its blocks: right for time and memory."""

from __future__ import annotations

from pathlib import Path

from config.settings import ROOT


def random_loras(folder: Path, count: int, *, rank: int) -> list[Path]:
    """Files as diffusers names their layers; number N has the same bytes every time."""
    import torch
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import save_file

    transformer = FluxTransformer2DModel.from_pretrained(
        ROOT / "models" / "embedded" / "transformer"
    )
    layers = {
        name: layer
        for name, layer in transformer.named_modules()
        if "blocks" in name and isinstance(layer, torch.nn.Linear)
    }
    made = []
    for seed in range(count):
        generator, state = torch.Generator().manual_seed(seed), {}
        for name, layer in layers.items():
            down = torch.randn(rank, layer.in_features, generator=generator) / 100
            up = torch.randn(layer.out_features, rank, generator=generator) / 100
            state[f"transformer.{name}.lora_A.weight"] = down
            state[f"transformer.{name}.lora_B.weight"] = up
        made.append(folder / f"random-{seed}.safetensors")
        save_file(state, made[-1])
    return made
