"""Where a flow-matching sampler begins when it begins with a picture, and what a mask lets it change.

The picture's latents z are noised to the level sigma of the strength, `sigma * noise + (1 - sigma) * z`,
and the sampler goes on from there. The levels are those of diffusers' `FluxImg2ImgPipeline` wherever
strength times steps is whole. Between, diffusers rounds the strength up to the next step: with four
steps it knows four strengths, and 0.9 would not look at the picture at all. Here the first level is the
strength itself and the others divide the way from there evenly; the scheduler's shift comes after.

With a mask the latents outside of it are put back after each step, at that step's level of noise, as in
`FluxInpaintPipeline`; at the end the picture's own pixels are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from PIL import Image
from torch.nn import functional

from models.types import Drawing, GenerationRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The first latents, the unshifted noise levels from there on, and how a mask holds latents."""

    latents: torch.Tensor  # (B, seq, 64) packed
    sigmas: list[float]
    noise: torch.Tensor  # (B, seq, 64) packed
    picture: torch.Tensor  # (B, seq, 64) packed, without noise
    mask: torch.Tensor | None  # (B, seq, 64) packed, 1: free

    def held(self, latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """`latents` after a step, put back to the picture's outside of the mask; `sigma` is their level."""
        if self.mask is None:
            return latents
        level = sigma.to(latents.device, latents.dtype)
        outside = level * self.noise + (1.0 - level) * self.picture
        return (1 - self.mask) * outside + self.mask * latents


def sigmas_of(request: GenerationRequest, train_steps: int) -> list[float]:
    """The levels of noise of each step, 1 to 0, before the scheduler's shift."""
    assert request.strength is not None
    # Below the scheduler's smallest level there is nothing to do.
    first = max(float(request.strength), 1 / train_steps)
    number = request.steps_to_run
    return numpy.linspace(first, first / number, number).tolist()


def start(
    drawings: Sequence[Drawing],
    noise: torch.Tensor,
    *,
    scheduler: Any,
    mu: float | None,
    encode: Callable[[torch.Tensor], torch.Tensor],
    pack: Callable[[torch.Tensor], torch.Tensor],
    pack_mask: Callable[[torch.Tensor], torch.Tensor],
    latent_px: int,
    channels: int,
) -> Start:
    """Where to begin for drawings that have images. Pictures are encoded one at a time.

    `mu` is the scheduler's shift for this size. `encode` takes (1, 3, height, width) pixels from -1 to 1
    to latents, `pack` those to a row as `noise` has them, and `pack_mask` what there is for each of
    (1, channels, height/latent_px, width/latent_px) latents.
    """
    request = drawings[0].request
    sigmas = sigmas_of(request, scheduler.config.num_train_timesteps)
    scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    level = scheduler.sigmas[0].to(noise.device, noise.dtype)  # the shift may depend on the size
    # One picture may be the start of several drawings.
    pictures = {id(drawing.image): drawing.image for drawing in drawings}
    latents_of = {
        key: pack(encode(pixels_of(image)).to(noise.device, noise.dtype))
        for key, image in pictures.items()
    }
    picture = torch.cat([latents_of[id(drawing.image)] for drawing in drawings])
    mask = None
    if request.mask is not None:
        masks = [latent_mask(drawing.mask, latent_px, channels) for drawing in drawings]
        mask = torch.cat([pack_mask(each.to(noise.device, noise.dtype)) for each in masks])
    return Start(
        latents=level * noise + (1.0 - level) * picture,
        sigmas=sigmas,
        noise=noise,
        picture=picture,
        mask=mask,
    )


def composed(drawn: Image.Image, drawing: Drawing) -> Image.Image:
    """The picture with its own pixels outside of the mask, blended where the mask is grey."""
    if drawing.mask is None:
        return drawn
    return Image.composite(drawn, drawing.image, drawing.mask)


def pixels_of(image: Image.Image) -> torch.Tensor:
    """(1, 3, height, width), -1 to 1, of an RGB picture."""
    pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None]
    return pixels.float() / 127.5 - 1


def latent_mask(mask: Image.Image, latent_px: int, channels: int) -> torch.Tensor:
    """How free each latent is, (1, channels, h, w): as free as the freest of the pixels it is for."""
    values = torch.from_numpy(numpy.array(mask))[None, None].float() / 255  # (1, 1, height, width)
    return functional.max_pool2d(values, latent_px).repeat(1, channels, 1, 1)
