"""Z-Image: a text, and perhaps a picture and a mask, to a picture, by diffusers' `ZImagePipeline`.

Each text has as many embeddings as it has tokens. diffusers writes classifier-free guidance as
v + g (v - v_negative) here, so that what others call a scale of s is g = s - 1.
Source: Tongyi-MAI, Z-Image; diffusers 0.42.1 `pipeline_z_image.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import ZImagePipeline
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift

from config.catalog import ModelRow
from models.families import flow_start
from models.families.embedding_cache import Embeddings
from models.families.flow_start import Start
from models.families.pipeline_model import PipelineModel
from models.types import Drawing, GenerationRequest


class ZImageModel(PipelineModel):
    """A loaded Z-Image pipeline."""

    LORA_PARTS: ClassVar = ("transformer",)

    @classmethod
    def pipeline_class(cls, row: ModelRow) -> Any:
        return ZImagePipeline

    def _encode_text(self, text: str) -> Embeddings:
        embeddings, _ = self._text.encode_prompt(
            [text],
            device=self._text_device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._row.max_sequence_length,
        )
        return (embeddings[0],)  # (seq, C)

    def _name_embeddings(self, embeddings: Sequence[Embeddings]) -> dict[str, Any]:
        return {"prompt_embeds": [tokens.to(self._device) for (tokens,) in embeddings]}

    def _noise(self, drawings: Sequence[Drawing], dtype: torch.dtype) -> torch.Tensor:
        request = drawings[0].request
        return self._image.prepare_latents(
            len(drawings),
            self._image.transformer.in_channels,
            request.height,
            request.width,
            torch.float32,  # whatever the weights are
            self._device,
            self._generators(drawings),
        )  # (B, 16, height/8, width/8)

    def _start(self, drawings: Sequence[Drawing], noise: torch.Tensor) -> Start | None:
        if drawings[0].request.image is None:
            return None
        config = self._image.scheduler.config
        mu = calculate_shift(
            noise.shape[2] // 2 * (noise.shape[3] // 2),
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        return flow_start.start(
            drawings,
            noise,
            scheduler=self._image.scheduler,
            mu=mu,
            encode=self._encode_picture,
            pack=lambda latents: latents,
            pack_mask=lambda mask: mask,
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
            "guidance_scale": request.true_cfg_scale - 1 if self._uses_negative(request) else 0.0,
        }

    def _encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, 16, height/8, width/8) latents of (1, 3, height, width) pixels from -1 to 1."""
        vae = self._image.vae
        # The mode, not a sample: a picture has one start.
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor

    def _decode(self, latents: torch.Tensor, request: GenerationRequest) -> Any:
        config = self._image.vae.config
        latents = latents.to(self._image.vae.dtype)
        return self._picture(latents / config.scaling_factor + config.shift_factor, request)


MODEL = ZImageModel
