"""FLUX.1: a text, and perhaps a picture and a mask, to a picture, by diffusers' `FluxPipeline`.

Source: Black Forest Labs, FLUX.1; Esser et al. 2024, "Scaling Rectified Flow Transformers".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from config.catalog import ModelRow
from models.families import flow_start
from models.families.embedding_cache import Embeddings
from models.families.flow_start import Start
from models.families.pipeline_model import PipelineModel
from models.types import Drawing, GenerationRequest


class Flux1Model(PipelineModel):
    """A loaded FLUX.1 pipeline."""

    TEXT_PARTS: ClassVar = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    LORA_PARTS: ClassVar = ("transformer", "text_encoder", "text_encoder_2")
    SHARED_PARTS: ClassVar = ("text_encoder", "text_encoder_2", "vae")
    EXACT_BATCHES: ClassVar = True

    @classmethod
    def pipeline_class(cls, row: ModelRow) -> Any:
        return FluxPipeline

    def _encode_text(self, text: str) -> Embeddings:
        tokens, pooled, _ = self._text.encode_prompt(
            prompt=text,
            prompt_2=None,
            device=self._text_device,
            max_sequence_length=self._row.max_sequence_length,
        )  # (1, seq, C), (1, C), (seq, 3)
        return tokens, pooled

    def _noise(self, drawings: Sequence[Drawing], dtype: torch.dtype) -> torch.Tensor:
        request = drawings[0].request
        latents, _ = self._image.prepare_latents(
            len(drawings),
            self._image.transformer.config.in_channels // 4,
            request.height,
            request.width,
            torch.float32,  # a seed is the same noise in all types: PyTorch draws each in its own way
            self._device,
            self._generators(drawings),
        )
        return latents.to(dtype)  # (B, height/16 * width/16, 64) packed latents

    def _start(self, drawings: Sequence[Drawing], noise: torch.Tensor) -> Start | None:
        if drawings[0].request.image is None:
            return None
        return flow_start.start(
            drawings,
            noise,
            scheduler=self._image.scheduler,
            mu=_shift(self._image.scheduler.config, noise.shape[1]),
            encode=self._encode_picture,
            pack=self._pack,
            pack_mask=self._pack,
            latent_px=self._image.vae_scale_factor,
            channels=self._image.vae.config.latent_channels,
        )

    def _arguments(
        self, drawings: Sequence[Drawing], latents: torch.Tensor, begin: Start | None
    ) -> dict[str, Any]:
        request = drawings[0].request
        return {
            "latents": latents,
            "sigmas": None if begin is None else begin.sigmas,
            "width": request.width,
            "height": request.height,
            "num_inference_steps": request.steps_to_run,
            "guidance_scale": request.guidance_scale,
            "true_cfg_scale": request.true_cfg_scale,
        }

    def _encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, 16, height/8, width/8) latents of (1, 3, height, width) pixels from -1 to 1."""
        vae = self._image.vae
        # The mode, not a sample: a picture has one start.
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor

    def _pack(self, latents: torch.Tensor) -> torch.Tensor:
        return self._image._pack_latents(latents, *latents.shape)  # (B, seq, 64)

    def _unpack(self, latents: torch.Tensor, request: GenerationRequest) -> torch.Tensor:
        pipeline = self._image
        return pipeline._unpack_latents(
            latents, request.height, request.width, pipeline.vae_scale_factor
        )  # (B, 16, height/8, width/8)

    def _decode(self, latents: torch.Tensor, request: GenerationRequest) -> Any:
        config = self._image.vae.config
        latents = self._unpack(latents, request)
        return self._picture(latents / config.scaling_factor + config.shift_factor, request)


def _shift(config: Any, tokens: int) -> float:
    """How far the noise levels of a picture of so many tokens are shifted."""
    return calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )


MODEL = Flux1Model
