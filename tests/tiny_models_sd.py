"""Tiny models of the classes that Stable Diffusion and Z-Image have: builders for `tests/tiny_models.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen3Config,
    Qwen3Model,
)

from config.catalog import ModelRow
from config.settings import ROOT

TEXT_WIDTH = 32
_TOKENIZER = ROOT / "models" / "embedded" / "tokenizer"
_LEVELS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def stable_diffusion(row: ModelRow, folder: Path) -> dict[str, Any]:
    """1.5 is drawn by PNDM, 2.1 by DDIM with velocities, as their checkpoints say."""
    is_first = row.id == "stable-diffusion-v1-5"
    scheduler = (
        PNDMScheduler(**_LEVELS, skip_prk_steps=True, set_alpha_to_one=False)
        if is_first
        else DDIMScheduler(
            **_LEVELS, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
        )
    )
    tokenizer = AutoTokenizer.from_pretrained(_TOKENIZER)
    StableDiffusionPipeline(
        scheduler=scheduler,
        vae=_bf16(_autoencoder(4, scaling_factor=0.18215)),
        text_encoder=_bf16(CLIPTextModel(_clip(tokenizer))),
        tokenizer=tokenizer,
        unet=_bf16(_unet(TEXT_WIDTH)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return {}


def stable_diffusion_xl(row: ModelRow, folder: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(_TOKENIZER)
    StableDiffusionXLPipeline(
        scheduler=EulerDiscreteScheduler(**_LEVELS, timestep_spacing="leading"),
        vae=_bf16(_autoencoder(4, scaling_factor=0.13025, force_upcast=True)),
        text_encoder=_bf16(CLIPTextModel(_clip(tokenizer))),
        tokenizer=tokenizer,
        text_encoder_2=_bf16(CLIPTextModelWithProjection(_clip(tokenizer))),
        tokenizer_2=tokenizer,
        unet=_bf16(
            _unet(
                2 * TEXT_WIDTH,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
            )
        ),
        force_zeros_for_empty_prompt=True,
    ).save_pretrained(folder)
    return {}


def z_image(row: ModelRow, folder: Path) -> dict[str, Any]:
    from tests.tiny_models import qwen_tokenizer

    tokenizer = qwen_tokenizer()
    qwen = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=TEXT_WIDTH, head_dim=16,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    transformer = ZImageTransformer2DModel(
        dim=64, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=TEXT_WIDTH,
        axes_dims=[8, 12, 12], axes_lens=[128, 64, 64],
    )  # fmt: skip
    with torch.no_grad():
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            token.normal_()
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_bf16(_autoencoder(16, scaling_factor=0.3611, shift_factor=0.1159)),
        text_encoder=_bf16(Qwen3Model(qwen)),
        tokenizer=tokenizer,
        transformer=_bf16(transformer),
    ).save_pretrained(folder)
    return {"hidden_size": 64}


def _clip(tokenizer: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=TEXT_WIDTH, intermediate_size=TEXT_WIDTH, projection_dim=TEXT_WIDTH, num_hidden_layers=2,
        num_attention_heads=2, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def _unet(text_width: int, **more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 16, 32), norm_num_groups=8, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4, cross_attention_dim=text_width, **more,
    )  # fmt: skip


def _autoencoder(channels: int, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        **{"force_upcast": False} | more,
    )


def _bf16(module: torch.nn.Module) -> Any:
    return torch.nn.Module.to(module, torch.bfloat16)  # diffusers' own `to` warns


BUILDERS: dict[str, Callable[[ModelRow, Path], dict[str, Any]]] = {
    "stable-diffusion": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "z-image": z_image,
}
