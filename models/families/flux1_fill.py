"""FLUX.1 Fill: what a mask lets free in a picture, drawn anew, by diffusers' `FluxFillPipeline`.

The model sees the picture without what is free, and the mask, in channels beside its latents, in every
step. It takes a mask that is grey anywhere for white or black there; at the end the picture's own pixels
are put back outside of the mask as it was sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import FluxFillPipeline

from config.catalog import ModelRow
from models.families.flow_start import Start
from models.families.flux1 import Flux1Model
from models.types import Drawing, GenerationRequest


class FillPipeline(FluxFillPipeline):
    """diffusers', with the mode of a picture's latents and not a sample: a picture has one start."""

    def prepare_mask_latents(
        self, mask: torch.Tensor, masked_image: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = masked_image.to(self.vae.dtype).split(1)
        latents = torch.cat([self.vae.encode(each).latent_dist.mode() for each in pixels])
        return super().prepare_mask_latents(mask, latents, *args, **kwargs)


class FillModel(Flux1Model):
    """A loaded FLUX.1 Fill pipeline."""

    @classmethod
    def pipeline_class(cls, row: ModelRow) -> Any:
        return FillPipeline

    def _uses_negative(self, request: GenerationRequest) -> bool:
        return False  # the pipeline has no such way

    def _noise(self, drawings: Sequence[Drawing], dtype: torch.dtype) -> torch.Tensor:
        request = drawings[0].request
        side = self._image.vae_scale_factor * 2
        shape = (
            1,
            self._image.vae.config.latent_channels,
            request.height // side * 2,
            request.width // side * 2,
        )
        noise = [torch.randn(shape, generator=each) for each in self._generators(drawings)]
        return self._pack(torch.cat(noise).to(self._device, dtype))

    def _start(self, drawings: Sequence[Drawing], noise: torch.Tensor) -> Start | None:
        begin = super()._start(drawings, noise)
        assert begin is not None  # the model draws only with a picture
        # What lies outside of the mask is in the model's sight: it needs no putting back.
        return replace(begin, mask=None)

    def _arguments(
        self, drawings: Sequence[Drawing], latents: torch.Tensor, begin: Start | None
    ) -> dict[str, Any]:
        arguments = super()._arguments(drawings, latents, begin)
        del arguments["true_cfg_scale"]
        return arguments | {
            "image": [drawing.image for drawing in drawings],
            "mask_image": [drawing.mask for drawing in drawings],
        }


MODEL = FillModel
