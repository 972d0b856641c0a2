"""Stable Diffusion XL: as `stable_diffusion.py`, with a second text encoder and the picture's size as a condition.

Where there is no negative prompt, guidance goes away from embeddings of zeros, as the checkpoint says.
Source: Podell et al. 2023, "SDXL"; diffusers 0.42.1 `pipeline_stable_diffusion_xl.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from config.catalog import ModelRow
from models.families.embedding_cache import Embeddings
from models.families.stable_diffusion import StableDiffusionModel
from models.types import GenerationRequest


class _FromLatents(StableDiffusionXLImg2ImgPipeline):
    """Image to image that begins with latents which have their noise already."""

    def prepare_latents(self, image: torch.Tensor, *_args: Any, **_more: Any) -> torch.Tensor:
        return image


class StableDiffusionXLModel(StableDiffusionModel):
    """A loaded Stable Diffusion XL pipeline."""

    TEXT_PARTS: ClassVar = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    LORA_PARTS: ClassVar = ("unet", "text_encoder", "text_encoder_2")
    READ_WITH: ClassVar = {
        "feature_extractor": None,
        "image_encoder": None,
        "add_watermarker": False,
    }
    FROM_LATENTS: ClassVar[Any] = _FromLatents

    @classmethod
    def pipeline_class(cls, row: ModelRow) -> Any:
        return StableDiffusionXLPipeline

    def _encode_text(self, text: str | None) -> Embeddings:
        """None: embeddings of zeros."""
        tokens, _, pooled, _ = self._text.encode_prompt(
            text or "", device=self._text_device, do_classifier_free_guidance=False
        )  # (1, 77, C), (1, C)
        if text is None:
            return torch.zeros_like(tokens), torch.zeros_like(pooled)
        return tokens, pooled

    def _negative_text(self, request: GenerationRequest) -> str | None:
        if self._image.config.force_zeros_for_empty_prompt:
            return request.negative_prompt
        return request.negative_prompt or ""

    def _facts(self) -> dict[str, Any]:
        return {
            "force_zeros_for_empty_prompt": self._image.config.force_zeros_for_empty_prompt,
            "add_watermarker": False,
        }


MODEL = StableDiffusionXLModel
