"""FLUX.1 text to image: embeddings, latents, denoising, pixels.

The steps are diffusers' `FluxPipeline`; here they are called one by one, so that each can be
timed, reported and left (`Cancelled`) between two steps of the sampler.
Source: Black Forest Labs, FLUX.1; Esser et al. 2024, "Scaling Rectified Flow Transformers".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxPipeline

from config.catalog import ModelRow
from models.types import GenerationRequest, Stage


class Stopwatch:
    """Milliseconds of named stretches; waits for the GPU before it reads the clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = time.perf_counter()
        self.ms: dict[str, float] = {}

    def lap(self, name: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.ms[name] = self.ms.get(name, 0.0) + (now - self._started) * 1000
        self._started = now


class Flux1Model:
    """A loaded FLUX.1 pipeline; implements `models.types.ImageModel`."""

    def __init__(self, pipeline: FluxPipeline, row: ModelRow, *, engine: str) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline
        self._row = row
        self.engine = engine

    @torch.inference_mode()
    def generate(
        self,
        request: GenerationRequest,
        *,
        seed: int,
        on_stage: Callable[[Stage], None],
        on_step: Callable[[int, int], None],
    ) -> tuple[Any, dict[str, float]]:
        """Draw one picture: a Pillow RGB image of `width` x `height` px, and ms by stage."""
        pipeline = self._pipeline
        watch = Stopwatch(pipeline._execution_device)

        # 1. Prompt to embeddings
        on_stage(Stage.ENCODING)
        embeddings = self._encode(request)
        watch.lap("encode")

        # 2. Noise to latents
        on_stage(Stage.DENOISING)
        latents = pipeline(
            **embeddings,
            width=request.width,
            height=request.height,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            true_cfg_scale=request.true_cfg_scale,
            # The noise is drawn on the CPU: a seed means the same noise on every device.
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="latent",
            callback_on_step_end=_after_step(request.num_inference_steps, on_step),
            callback_on_step_end_tensor_inputs=[],
        ).images  # (1, height/16 * width/16, 64) packed latents
        watch.lap("denoise")

        # 3. Latents to pixels
        on_stage(Stage.DECODING)
        image = self._decode(latents, request)
        watch.lap("decode")
        return image, watch.ms

    def unload(self) -> None:
        """Let go of the weights; the caller collects and empties the CUDA cache."""
        del self._pipeline

    def _encode(self, request: GenerationRequest) -> dict[str, torch.Tensor]:
        prompt_embeds, pooled, _ = self._encode_text(request.prompt)
        embeddings = {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled}
        if request.negative_prompt is not None and request.true_cfg_scale > 1:
            prompt_embeds, pooled, _ = self._encode_text(request.negative_prompt)
            embeddings |= {
                "negative_prompt_embeds": prompt_embeds,
                "negative_pooled_prompt_embeds": pooled,
            }
        return embeddings

    def _encode_text(self, text: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._pipeline.encode_prompt(
            prompt=text,
            prompt_2=None,
            max_sequence_length=self._row.max_sequence_length,
        )  # (1, seq, C), (1, C), (seq, 3)

    def _decode(self, latents: torch.Tensor, request: GenerationRequest) -> Any:
        pipeline = self._pipeline
        vae = pipeline.vae
        latents = pipeline._unpack_latents(
            latents, request.height, request.width, pipeline.vae_scale_factor
        )  # (1, 16, height/8, width/8)
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        pixels = vae.decode(latents.to(vae.dtype), return_dict=False)[0]  # (1, 3, height, width)
        return pipeline.image_processor.postprocess(pixels, output_type="pil")[0]


def _after_step(steps: int, on_step: Callable[[int, int], None]) -> Callable[..., dict[str, Any]]:
    def callback(
        _pipeline: Any, step: int, _timestep: Any, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        on_step(step + 1, steps)
        return kwargs

    return callback
