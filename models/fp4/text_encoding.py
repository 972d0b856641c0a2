"""Calibration prompts to embeddings, and T5 to four bits on the way, one block at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from config.catalog import ModelRow
from models.fp4.block_fit import Watch, fit_block
from models.fp4.layers import LayerPlan
from models.fp4.streaming import streamed_t5

_PROMPTS_AT_ONCE = 16

Keep = Callable[[str, dict[str, torch.Tensor]], None]


def encode_prompts(
    folder: Path,
    row: ModelRow,
    prompts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    on_progress: Callable[[float], None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(P, text tokens, C) T5 and (P, C) pooled CLIP embeddings, on the CPU."""
    parts = []
    for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
        with streamed_t5(folder, device, dtype) as t5:
            parts.append(
                _encode(folder, row, t5, prompts[start : start + _PROMPTS_AT_ONCE], device, dtype)
            )
        on_progress(min(1.0, (start + _PROMPTS_AT_ONCE) / len(prompts)))
    return torch.cat([prompt for prompt, _ in parts]), torch.cat([pooled for _, pooled in parts])


def fit_t5(
    folder: Path,
    row: ModelRow,
    plans: dict[str, LayerPlan],
    prompts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    done: Sequence[str],
    keep: Keep,
) -> None:
    """Fit T5's blocks to the first prompts; `keep(block, tensors)` for every block not in `done`.

    The rest of T5 comes last, under the name "rest".
    """

    def on_block(name: str, block: nn.Module) -> Callable[[], None]:
        if name in done:
            return lambda: None
        own = {
            layer.removeprefix(f"{name}."): plan
            for layer, plan in plans.items()
            if layer.startswith(f"{name}.")
        }
        watch = Watch(block, own)

        def after() -> None:
            watch.stop()
            tensors = fit_block(block, own, watch)
            keep(name, {f"{name}.{key}": tensor for key, tensor in tensors.items()})

        return after

    with streamed_t5(folder, device, dtype, on_block) as t5:
        _encode(folder, row, t5, prompts[:_PROMPTS_AT_ONCE], device, dtype)
        rest = {
            "encoder.final_layer_norm.weight": t5.encoder.final_layer_norm.weight,
            "shared.weight": t5.encoder.embed_tokens.weight,
        }
        keep("rest", {name: tensor.bfloat16() for name, tensor in rest.items()})


def _encode(
    folder: Path,
    row: ModelRow,
    t5: nn.Module,
    prompts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(
        folder, transformer=None, vae=None, text_encoder_2=None, dtype=dtype, use_safetensors=True
    )
    pipeline.text_encoder.to(device)
    pipeline.text_encoder_2 = t5
    embeds, pooled, _ = pipeline.encode_prompt(
        list(prompts), None, device=device, max_sequence_length=row.max_sequence_length
    )
    return embeds.cpu(), pooled.cpu()
