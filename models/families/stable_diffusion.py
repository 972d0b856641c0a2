"""Stable Diffusion 1.5 and 2.1: a text, and perhaps a picture and a mask, to a picture, by diffusers.

The checkpoint's own scheduler draws. A picture is noised to the level where the strength's share of the
steps begins, as diffusers' image-to-image pipeline does, and with a mask the latents outside of it are
put back after each step, at that step's level, as its inpainting pipeline does. `guidance_scale` is the
scale of classifier-free guidance here, from the negative prompt, or from an empty one, to the prompt;
the scale of a negative prompt, `true_cfg_scale`, takes its place where a request names one.

Noise is of two kinds. Variance preserving schedulers (DDIM, PNDM, DPM-Solver++) hold
x = sqrt(a) x0 + sqrt(1 - a) e, those of Karras et al. (Euler) x = x0 + s e. Over sqrt(a), the first is the
second with s = sqrt((1 - a) / a): in these terms a preview is what it is for FLUX, see `models/preview.py`.
Source: Rombach et al. 2022; Ho and Salimans 2022; Karras et al. 2022; diffusers 0.42.1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

from config.catalog import ModelRow
from models.families.embedding_cache import Embeddings
from models.families.flow_start import latent_mask, pixels_of
from models.families.pipeline_model import OnStep, PipelineModel
from models.types import Drawing, GenerationRequest


class _FromLatents(StableDiffusionImg2ImgPipeline):
    """Image to image that begins with latents which have their noise already."""

    def prepare_latents(self, image: torch.Tensor, *_args: Any, **_more: Any) -> torch.Tensor:
        return image


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The first latents, the noise in them and the picture, (B, 4, h, w) all, and what a mask leaves free."""

    latents: torch.Tensor
    noise: torch.Tensor
    picture: torch.Tensor
    mask: torch.Tensor | None  # (B, 4, h, w), 1: free

    def held(self, latents: torch.Tensor, scheduler: Any, timestep: Any) -> torch.Tensor:
        """`latents` after a step, put back to the picture's outside of the mask; None: nothing follows."""
        if self.mask is None:
            return latents
        outside = self.picture
        if timestep is not None:
            times = timestep.repeat(len(latents))
            outside = scheduler.add_noise(self.picture, self.noise, times)
        return (1 - self.mask) * outside + self.mask * latents


class StableDiffusionModel(PipelineModel):
    """A loaded Stable Diffusion pipeline."""

    IMAGE_PARTS: ClassVar = ("unet", "vae")
    DENOISER: ClassVar = "unet"
    SIXTEEN_BITS_ON_MPS: ClassVar = False
    # Whether a picture may be shown is decided for all families in one place.
    READ_WITH: ClassVar = {
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }
    FROM_LATENTS: ClassVar[Any] = _FromLatents

    @classmethod
    def pipeline_class(cls, row: ModelRow) -> Any:
        return StableDiffusionPipeline

    @classmethod
    def prepare(cls, pipeline: Any) -> None:
        # Some autoencoders, SDXL's among them, are not made for 16 bits and say so.
        if pipeline.vae.config.force_upcast:
            torch.nn.Module.to(pipeline.vae, torch.float32)

    def _encode_text(self, text: str) -> Embeddings:
        tokens, _ = self._text.encode_prompt(text, self._text_device, 1, False)
        return (tokens,)  # (1, 77, C)

    def _uses_negative(self, request: GenerationRequest) -> bool:
        return _scale(request) > 1

    def _noise(self, drawings: Sequence[Drawing], dtype: torch.dtype) -> torch.Tensor:
        request, pixels = drawings[0].request, self._image.vae_scale_factor
        shape = (
            self._image.vae.config.latent_channels,
            request.height // pixels,
            request.width // pixels,
        )
        sources = self._generators(drawings)
        # In FP32, whatever the weights are: see `_in_full_precision`.
        noise = torch.stack([torch.randn(shape, generator=source) for source in sources])
        return noise.to(self._device)  # (B, 4, height/8, width/8)

    def _start(self, drawings: Sequence[Drawing], noise: torch.Tensor) -> Start | None:
        request, scheduler = drawings[0].request, self._image.scheduler
        scheduler.set_timesteps(request.num_inference_steps, device=self._device)
        if request.image is None:
            return None
        pictures = {id(drawing.image): drawing.image for drawing in drawings}
        latents_of = {key: self._encode_picture(image) for key, image in pictures.items()}
        picture = torch.cat([latents_of[id(drawing.image)] for drawing in drawings])
        picture = picture.to(noise.device, noise.dtype)
        mask = None
        if request.mask is not None:
            size = self._image.vae_scale_factor, noise.shape[1]
            masks = [latent_mask(drawing.mask, *size) for drawing in drawings]
            mask = torch.cat(masks).to(noise.device, noise.dtype)
        kept = _steps_kept(request) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(kept)
        first = scheduler.timesteps[kept : kept + 1]
        latents = scheduler.add_noise(picture, noise, first.repeat(len(drawings)))
        if self._is_new(request):
            latents = noise * scheduler.init_noise_sigma
        return Start(latents=latents, noise=noise, picture=picture, mask=mask)

    def _arguments(
        self, drawings: Sequence[Drawing], latents: torch.Tensor, begin: Any
    ) -> dict[str, Any]:
        request = drawings[0].request
        arguments = {
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": _scale(request),
            "generator": self._past_noise(drawings, latents),
        }
        if begin is None or self._is_new(request):
            size = {"width": request.width, "height": request.height}
            noise = latents if begin is None else begin.noise  # the pipeline scales it
            return arguments | size | {"latents": noise}
        # diffusers cuts steps times strength to a whole number.
        steps = request.num_inference_steps
        strength = min(1.0, (request.steps_to_run + 0.5) / steps)
        return arguments | {"image": latents, "strength": strength}

    def _past_noise(
        self, drawings: Sequence[Drawing], latents: torch.Tensor
    ) -> list[torch.Generator]:
        """Sources of more noise, for schedulers that add some in every step; the first was drawn."""
        sources = self._generators(drawings)
        for source in sources:
            torch.randn(latents.shape[1:], generator=source)
        return sources

    def _denoise(
        self,
        arguments: dict[str, Any],
        latents: torch.Tensor,
        begin: Any,
        drawings: Sequence[Drawing],
        on_step: OnStep,
    ) -> torch.Tensor:
        pipeline = self._image
        if "image" in arguments:
            pipeline = self.FROM_LATENTS(**pipeline.components, **self._facts())
            pipeline.set_progress_bar_config(disable=True)
        with _in_full_precision(pipeline.scheduler, pipeline.unet.dtype):
            return pipeline(
                **arguments,
                output_type="latent",
                callback_on_step_end=self._after_step(latents, begin, drawings[0].request, on_step),
                callback_on_step_end_tensor_inputs=["latents"],
            ).images

    def _facts(self) -> dict[str, Any]:
        """What the pipeline's class is told beside its components."""
        return {"requires_safety_checker": False}

    def _after_step(
        self, latents: torch.Tensor, begin: Any, request: GenerationRequest, on_step: OnStep
    ) -> Callable[..., dict[str, Any]]:
        scheduler, preview_map = self._image.scheduler, self._fit_preview()
        before: torch.Tensor = latents
        if begin is None:
            before = latents * scheduler.init_noise_sigma

        def callback(
            pipeline: Any, step: int, timestep: Any, kwargs: dict[str, Any]
        ) -> dict[str, Any]:
            nonlocal before
            times = scheduler.timesteps[-pipeline.num_timesteps :]
            following = times[step + 1] if step + 1 < len(times) else None
            if begin is not None:
                kwargs["latents"] = begin.held(kwargs["latents"], scheduler, following)
            after = kwargs["latents"]
            levels = _level(scheduler, timestep), _level(scheduler, following)
            previews = preview_map.after_step(
                before / levels[0].scale,
                after / levels[1].scale,
                *_falling(levels[0].sigma, levels[1].sigma),
                (request.width, request.height),
            )
            before = after
            # PNDM has a step more than it was asked for, Heun nearly twice as many.
            done = math.ceil((step + 1) * request.steps_to_run / len(times))
            on_step(done, request.steps_to_run, previews)
            return kwargs

        return callback

    def _is_new(self, request: GenerationRequest) -> bool:
        """Whether the masked part is drawn from noise alone; without a mask the picture always shines through."""
        return request.mask is not None and _steps_kept(request) == 0

    def _encode_picture(self, image: Any) -> torch.Tensor:
        """(1, 4, height/8, width/8) latents of an RGB picture."""
        vae = self._image.vae
        pixels = pixels_of(image).to(vae.device, vae.dtype)
        # The mode, not a sample: a picture has one start.
        return vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor

    def _decode(self, latents: torch.Tensor, request: GenerationRequest) -> Any:
        vae = self._image.vae
        return self._picture(latents.to(vae.dtype) / vae.config.scaling_factor, request)


@contextmanager
def _in_full_precision(scheduler: Any, dtype: torch.dtype) -> Iterator[None]:
    """Within it the sampler adds up its steps in FP32, for a network that computes in `dtype`.

    In 16 bits what a step adds is rounded each time; diffusers' older schedulers leave it at that.
    """
    if dtype is torch.float32:
        yield
        return
    scale, step = scheduler.scale_model_input, scheduler.step

    @functools.wraps(scale)
    def scale_model_input(*args: Any, **more: Any) -> torch.Tensor:
        return scale(*args, **more).to(dtype)

    @functools.wraps(step)
    def full_step(model_output: torch.Tensor, *args: Any, **more: Any) -> Any:
        return step(model_output.float(), *args, **more)

    scheduler.scale_model_input, scheduler.step = scale_model_input, full_step
    try:
        yield
    finally:
        del scheduler.scale_model_input, scheduler.step


@dataclass(frozen=True, slots=True)
class _Level:
    """Latents are `scale` times (picture + sigma · noise)."""

    scale: float
    sigma: torch.Tensor


def _level(scheduler: Any, timestep: Any) -> _Level:
    """The level of noise of latents that a timestep is about to take; None: of those that are done."""
    if timestep is None:
        return _Level(1.0, torch.zeros(()))
    index = int(timestep)
    kept = scheduler.alphas_cumprod[index].double()
    sigma = ((1 - kept) / kept).sqrt()
    is_karras = float(scheduler.init_noise_sigma) != 1.0
    return _Level(1.0 if is_karras else float(kept.sqrt()), sigma)


def _falling(sigma: torch.Tensor, sigma_next: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The levels before and after a step; where one is as noisy as the other, what is there is shown."""
    return (sigma, sigma_next) if sigma_next < sigma else (torch.ones(()), torch.zeros(()))


def _scale(request: GenerationRequest) -> float:
    if request.negative_prompt is not None and request.true_cfg_scale > 1:
        return request.true_cfg_scale
    return request.guidance_scale


def _steps_kept(request: GenerationRequest) -> int:
    return request.num_inference_steps - request.steps_to_run


MODEL = StableDiffusionModel
