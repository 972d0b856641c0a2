"""Previews: what a picture will be, after each step, for next to nothing.

A FLUX latent keeps its place in the picture, and its 16 channels hold colour almost linearly: one
17 x 3 matrix, fitted once by least squares on the model's own autoencoder, takes a latent to the
mean colour of its 8 x 8 pixels. It is fitted on a colour chart drawn here, so it needs no file and
fits any autoencoder.

Latents between two steps are picture and noise. What is shown is the clean picture the model
predicts there. Flow matching goes straight from noise to picture, x = (1 - sigma) x0 + sigma noise
with velocity v = noise - x0 (Esser et al. 2024), so x0 = x - sigma v, with v from the latents
before and after the step.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from PIL import Image
from torch.nn import functional

from models.types import PREVIEW_PX, PreviewOf

JPEG_QUALITY = 75  # 256 x 256 px in 3 to 8 KB
CHART_PX = 256  # 32 x 32 latents of every colour for 17 unknowns
RECTANGLES = 24  # edges across the chart; with many more or fewer, pictures come out less alike


@dataclass(frozen=True, slots=True, eq=False)
class PreviewMap:
    """Linear map from latents to colours of 0 to 255."""

    weight: torch.Tensor  # (3, C), C channels of a latent
    bias: torch.Tensor  # (3, 1, 1)

    def after_step(
        self,
        before: torch.Tensor,
        after: torch.Tensor,
        sigma: torch.Tensor,
        sigma_next: torch.Tensor,
        size: tuple[int, int],
    ) -> PreviewOf:
        """Previews of the pictures whose latents went from `before` to `after`, (B, C, h, w) both.

        `sigma` is the noise level of `before`, `sigma_next` of `after`, scalars on any device;
        `size` the width and height of the pictures, px. The arithmetic is queued on the latents'
        device without waiting for it; the callable returned waits, in the thread that calls it.
        """
        share = sigma_next / (sigma - sigma_next)  # x0 = after - sigma_next * v
        clean = after.float() + (after.float() - before.float()) * share
        colours = torch.einsum("oc,bchw->bohw", self.weight, clean) + self.bias
        pixels = colours.clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)  # (B, h, w, 3)
        done = None
        if pixels.device.type == "cuda":
            pinned = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
            pixels = pinned.copy_(pixels, non_blocking=True)
            done = torch.cuda.Event(blocking=True)
            done.record(torch.cuda.current_stream(after.device))

        def preview(index: int) -> bytes:
            if done is not None:
                done.synchronize()
            return _jpeg(pixels[index].numpy(), size)

        return preview


@torch.no_grad()
def fit(vae: Any, encode: Callable[[torch.Tensor], torch.Tensor] | None = None) -> PreviewMap:
    """The map that fits an autoencoder, on the device the autoencoder is on.

    Maps what `encode` makes of pixels; left out, an `AutoencoderKL`'s latents as the sampler works on
    them, after `shift_factor` and `scaling_factor`.
    """
    chart = _chart()  # (1, 3, H, W), -1 to 1
    pixels = chart.to(vae.device, vae.dtype)
    if encode is None:
        encoded = vae.encode(pixels).latent_dist.mode().double().cpu()
        latents = (encoded - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
    else:
        latents = encode(pixels).double().cpu()
    colours = functional.adaptive_avg_pool2d(chart.double() / 2 + 0.5, latents.shape[-2:]) * 255
    channels = latents.shape[1]
    inputs = latents.movedim(1, -1).reshape(-1, channels)  # (h * w, C)
    inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
    matrix = torch.linalg.lstsq(inputs, colours.movedim(1, -1).reshape(-1, 3)).solution
    matrix = matrix.to(vae.device, torch.float32)  # (C + 1, 3)
    return PreviewMap(weight=matrix[:channels].T.contiguous(), bias=matrix[channels].view(3, 1, 1))


def _chart() -> torch.Tensor:
    """(1, 3, CHART_PX, CHART_PX), -1 to 1: colours that run into each other, with edges across."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand((1, 3, 9, 9), generator=generator) * 2 - 1
    chart = functional.interpolate(
        corners, size=(CHART_PX, CHART_PX), mode="bilinear", align_corners=True
    )
    for _ in range(RECTANGLES):
        left, top = torch.randint(0, CHART_PX - 16, (2,), generator=generator).tolist()
        width, height = torch.randint(16, CHART_PX // 4, (2,), generator=generator).tolist()
        colour = torch.rand((1, 3, 1, 1), generator=generator) * 2 - 1
        chart[..., top : top + height, left : left + width] = colour
    return chart


def _jpeg(pixels: numpy.ndarray, size: tuple[int, int]) -> bytes:
    """A JPEG of (h, w, 3) bytes in the shape of a picture of `size`, at most PREVIEW_PX a side."""
    shrink = min(1.0, PREVIEW_PX / max(size))
    wanted = (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink)))
    image = Image.fromarray(pixels).resize(wanted, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
