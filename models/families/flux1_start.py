"""Where FLUX.1's sampler begins when it begins with a picture, and what a mask lets it change.

The picture's latents z are noised to the level sigma of the strength, `sigma * noise + (1 - sigma) * z`,
and the sampler goes on from there. The levels are those of diffusers' `FluxImg2ImgPipeline` wherever
strength times steps is whole. Between, diffusers rounds the strength up to the next step: with four
steps it knows four strengths, and 0.9 would not look at the picture at all. Here the first level is the
strength itself and the others divide the way from there evenly; the scheduler's shift comes after.

With a mask the latents outside of it are put back after each step, at that step's level of noise, as in
`FluxInpaintPipeline`; at the end the picture's own pixels are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
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


def start(pipeline: Any, drawings: Sequence[Drawing], noise: torch.Tensor) -> Start:
    """Where to begin for drawings that have images. Pictures are encoded one at a time."""
    request = drawings[0].request
    scheduler = pipeline.scheduler
    sigmas = sigmas_of(request, scheduler.config.num_train_timesteps)
    first = _first_level(scheduler, sigmas, noise.shape[1])
    level = first.to(noise.device, noise.dtype)
    # One picture may be the start of several drawings.
    encoded = {id(d.image): d.image for d in drawings}
    latents_of = {key: _encode(pipeline, image, noise) for key, image in encoded.items()}
    picture = torch.cat([latents_of[id(drawing.image)] for drawing in drawings])
    mask = None
    if request.mask is not None:
        mask = torch.cat([_latent_mask(pipeline, drawing.mask, noise) for drawing in drawings])
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


def _first_level(scheduler: Any, sigmas: list[float], tokens: int) -> torch.Tensor:
    """The first level after the scheduler's shift, which may depend on the size."""
    config = scheduler.config
    mu = calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    return scheduler.sigmas[0]


def _encode(pipeline: Any, image: Image.Image, like: torch.Tensor) -> torch.Tensor:
    """Packed latents, (1, seq, 64), of an RGB picture."""
    vae = pipeline.vae
    pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None]  # (1, 3, height, width)
    pixels = pixels.to(vae.device, torch.float32) / 127.5 - 1
    # The mode, not a sample: a picture has one start.
    latents = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()  # (1, 16, height/8, width/8)
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    return _pack(pipeline, latents.to(like.device, like.dtype))


def _latent_mask(pipeline: Any, mask: Image.Image, like: torch.Tensor) -> torch.Tensor:
    """How free each latent is, (1, seq, 64): as free as the freest of the pixels it is for."""
    values = torch.from_numpy(numpy.array(mask))[None, None].float() / 255  # (1, 1, height, width)
    small = functional.max_pool2d(values, pipeline.vae_scale_factor)
    channels = pipeline.vae.config.latent_channels
    return _pack(pipeline, small.repeat(1, channels, 1, 1).to(like.device, like.dtype))


def _pack(pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
    return pipeline._pack_latents(latents, *latents.shape)
