"""FLUX.1 Kontext: a picture and what is to become of it, to a picture, by diffusers' `FluxKontextPipeline`.

The picture's latents stand behind those that are drawn, in every step. As diffusers does it, the picture
is brought to the nearest of the sizes the model was trained with; what is drawn has the request's size.
Without a picture it draws from the text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxKontextPipeline
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from PIL import Image

from config.catalog import ModelRow
from models.families.flow_start import Start
from models.families.flux1 import Flux1Model
from models.types import Drawing


class KontextModel(Flux1Model):
    """A loaded FLUX.1 Kontext pipeline."""

    @classmethod
    def pipeline_class(cls, row: ModelRow) -> Any:
        return FluxKontextPipeline

    def _noise(self, drawings: Sequence[Drawing], dtype: torch.dtype) -> torch.Tensor:
        pipeline, request = self._image, drawings[0].request
        latents, *_ = pipeline.prepare_latents(
            None,
            len(drawings),
            pipeline.transformer.config.in_channels // 4,
            request.height,
            request.width,
            torch.float32,  # a seed is the same noise in all types: PyTorch draws each in its own way
            self._device,
            self._generators(drawings),
        )
        return latents.to(dtype)  # (B, height/16 * width/16, 64) packed latents

    def _arguments(
        self, drawings: Sequence[Drawing], latents: torch.Tensor, begin: Start | None
    ) -> dict[str, Any]:
        request = drawings[0].request
        # Drawings that agree have the same references: it is encoded once.
        edited = [self._latents_of(picture) for picture in drawings[0].references]
        return super()._arguments(drawings, latents, begin) | {
            "image": torch.cat(edited) if edited else None,
            # Left to itself it would change the size to one of its own area.
            "max_area": request.width * request.height,
        }

    def _latents_of(self, picture: Image.Image) -> torch.Tensor:
        """(1, 16, h/8, w/8) latents of a picture in the size the model knows that is most like it."""
        shape = picture.width / picture.height
        _, width, height = min(
            (abs(shape - width / height), width, height)
            for width, height in PREFERRED_KONTEXT_RESOLUTIONS
        )
        processor = self._image.image_processor
        pixels = processor.preprocess(processor.resize(picture, height, width), height, width)
        return self._encode_picture(pixels)


MODEL = KontextModel
