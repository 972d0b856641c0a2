"""Tiny models with random weights of the classes that real ones have, as diffusers folders.

`tiny_model(row_id, folder)` writes the folder of a row of the catalog and gives the row for it, which runs
on any device. Each is some hundred KB and draws in a fraction of a second; its pictures mean nothing.
Another family's builder is a function `(row, folder) -> None` in `BUILDERS`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from config.catalog import ModelRow, load_catalog
from config.settings import ROOT
from tests import tiny_models_sd

EMBEDDED = ROOT / "models" / "embedded"
WIDTH = 64  # of the transformers: 2 heads of 32
TEXT_WIDTH = 32
# What is the same for all tiny models of any family.
_TINY: dict[str, Any] = {
    "device": "any",
    "min_size": 64,
    "max_size": 1024,
    "default_width": 96,
    "default_height": 64,
    "num_inference_steps": 2,
    "max_sequence_length": 32,
    "memory_gib": {"bf16": 0.1, "fp4": 0.1},
    "largest_part_gib": {},
    "offloaded_gib": {},
}
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


def tiny_model(row_id: str, folder: Path) -> ModelRow:
    """Write the row's tiny model into `folder`; the row to load it by. Raises KeyError for no builder."""
    row = load_catalog()[row_id]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        changes = BUILDERS[row.family](row, folder)
    precisions = {name: 0.1 for name in row.memory_gib}
    return row.model_copy(
        update=_TINY | {"source": str(folder), "memory_gib": precisions} | changes
    )


def write_catalog(file: Path, rows: Iterable[ModelRow]) -> None:
    """The catalog that ships, as `config/models.toml`, with these rows in the place of their own."""
    tables = []
    for row in ({row.id: row for row in load_catalog()} | {row.id: row for row in rows}).values():
        values = row.model_dump(exclude={"id"}, exclude_defaults=True)
        lines = [f"{name} = {_toml(value)}" for name, value in values.items()]
        tables.append("\n".join([f"[{json.dumps(row.id)}]", *lines]))
    file.write_text("\n\n".join(tables) + "\n", encoding="utf-8")


def _toml(value: Any) -> str:
    """JSON's way of writing a value is TOML's too, but for tables."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key} = {_toml(item)}' for key, item in value.items())}}}"
    return json.dumps(value)


def _flux1(row: ModelRow, folder: Path, *, in_channels: int = 64) -> dict[str, Any]:
    """FLUX.1 with the embedded model's tokenizers."""
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(EMBEDDED / name, folder / name, dirs_exist_ok=True)
    tokenizer, tokenizer_2 = (
        AutoTokenizer.from_pretrained(EMBEDDED / name) for name in ("tokenizer", "tokenizer_2")
    )
    clip = CLIPTextConfig(
        hidden_size=TEXT_WIDTH, intermediate_size=TEXT_WIDTH, projection_dim=TEXT_WIDTH, num_hidden_layers=1,
        num_attention_heads=2, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    t5 = T5Config(
        d_model=TEXT_WIDTH, d_kv=16, d_ff=TEXT_WIDTH, num_layers=1, num_heads=2, vocab_size=len(tokenizer_2),
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    transformer = FluxTransformer2DModel(
        in_channels=in_channels, out_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=32,
        num_attention_heads=2, joint_attention_dim=TEXT_WIDTH, pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=row.guidance, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    vae = AutoencoderKL(
        **_autoencoder(16), scaling_factor=0.4, shift_factor=0.1,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    FluxPipeline(
        scheduler=_scheduler(),
        vae=_bf16(vae),
        text_encoder=_bf16(CLIPTextModel(clip)),
        tokenizer=tokenizer,
        text_encoder_2=_bf16(T5EncoderModel(t5)),
        tokenizer_2=tokenizer_2,
        transformer=_bf16(transformer),
    ).save_pretrained(folder)
    return {"hidden_size": WIDTH}


def _flux1_fill(row: ModelRow, folder: Path) -> dict[str, Any]:
    # Latents, those of the picture, and 64 pixels of the mask for each of 2 x 2 latents.
    return _flux1(row, folder, in_channels=64 + 64 + 256)


def _flux2(row: ModelRow, folder: Path) -> dict[str, Any]:
    tokenizer = qwen_tokenizer()
    qwen = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=TEXT_WIDTH, head_dim=16,
        num_hidden_layers=30, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    transformer = Flux2Transformer2DModel(
        in_channels=128, num_layers=1, num_single_layers=2, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=3 * TEXT_WIDTH, timestep_guidance_channels=32, axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(**_autoencoder(32))
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    Flux2KleinPipeline(
        scheduler=_scheduler(),
        vae=_bf16(vae),
        text_encoder=_bf16(Qwen3ForCausalLM(qwen)),
        tokenizer=tokenizer,
        transformer=_bf16(transformer),
        is_distilled=not row.guidance,
    ).save_pretrained(folder)
    return {"hidden_size": WIDTH}


def qwen_tokenizer() -> Any:
    """Qwen's, of single bytes."""
    vocabulary = {letter: number for number, letter in enumerate(bytes_to_unicode().values())}
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary |= {word: len(vocabulary) + number for number, word in enumerate(specials)}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=[], pad_token=specials[0], eos_token=specials[2], unk_token=None,
        additional_special_tokens=specials,
    )  # fmt: skip
    tokenizer.chat_template = _CHAT
    return tokenizer


def _autoencoder(channels: int) -> dict[str, Any]:
    return {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": channels,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 64,
        "mid_block_add_attention": False,
    }


def _bf16(module: torch.nn.Module) -> Any:
    return torch.nn.Module.to(module, torch.bfloat16)  # diffusers' own `to` warns


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


BUILDERS: dict[str, Callable[[ModelRow, Path], dict[str, Any]]] = {
    "flux1": _flux1,
    "flux1-fill": _flux1_fill,
    "flux1-kontext": _flux1,
    "flux2": _flux2,
    **tiny_models_sd.BUILDERS,
}
