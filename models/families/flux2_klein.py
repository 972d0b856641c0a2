"""FLUX.2 Klein: a text, and perhaps pictures to look at, to a picture, by diffusers' `Flux2KleinPipeline`.

Its text encoder is a language model, of which the pipeline takes what comes out of three layers: those
after the last of them, its norm and its head have no part in a picture and are left out. The latents of
the sampler are those of the autoencoder in patches of 2 x 2, normalised by its batch norm.
Source: Black Forest Labs, FLUX.2 Klein; diffusers 0.42.1 `pipeline_flux2_klein.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from config.catalog import ModelRow
from models import preview
from models.families import flow_start
from models.families.embedding_cache import Embeddings
from models.families.flow_start import Start
from models.families.pipeline_model import PipelineModel
from models.types import Drawing, GenerationRequest

_CALL = inspect.signature(Flux2KleinPipeline.__call__).parameters
# The layers of the text encoder that make the embeddings: number k is the output of the k-th.
TEXT_LAYERS: tuple[int, ...] = _CALL["text_encoder_out_layers"].default


class Flux2KleinModel(PipelineModel):
    """A loaded FLUX.2 Klein pipeline."""

    LORA_PARTS: ClassVar = ("transformer",)
    SHARED_PARTS: ClassVar = ("text_encoder", "vae")
    EXACT_BATCHES: ClassVar = True

    @classmethod
    def pipeline_class(cls, row: ModelRow) -> Any:
        return Flux2KleinPipeline

    @classmethod
    def prepare(cls, pipeline: Any) -> None:
        leave_out_unused_layers(pipeline.text_encoder)

    def _encode_text(self, text: str) -> Embeddings:
        embeddings, _ = self._text.encode_prompt(
            prompt=text,
            device=self._text_device,
            max_sequence_length=self._row.max_sequence_length,
        )  # (1, seq, 3 C), (1, seq, 4)
        return (embeddings,)

    def _uses_negative(self, request: GenerationRequest) -> bool:
        return self._scale(request) > 1 and not self._image.config.is_distilled

    def _negative_text(self, request: GenerationRequest) -> str:
        return (request.negative_prompt or "") if request.true_cfg_scale > 1 else ""

    def _scale(self, request: GenerationRequest) -> float:
        """Of classifier-free guidance: away from the negative prompt, or else from an empty one."""
        if request.negative_prompt is not None and request.true_cfg_scale > 1:
            return request.true_cfg_scale
        return request.guidance_scale

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
        return latents.to(dtype)  # (B, height/16 * width/16, 128) packed latents

    def _start(self, drawings: Sequence[Drawing], noise: torch.Tensor) -> Start | None:
        request = drawings[0].request
        if request.image is None:
            return None
        pipeline = self._image
        return flow_start.start(
            drawings,
            noise,
            scheduler=pipeline.scheduler,
            mu=compute_empirical_mu(noise.shape[1], request.num_inference_steps),
            encode=self._encode_picture,
            pack=pipeline._pack_latents,
            pack_mask=lambda mask: pipeline._pack_latents(pipeline._patchify_latents(mask)),
            latent_px=pipeline.vae_scale_factor,
            channels=pipeline.vae.config.latent_channels,
        )

    def _arguments(
        self, drawings: Sequence[Drawing], latents: torch.Tensor, begin: Start | None
    ) -> dict[str, Any]:
        request = drawings[0].request
        return {
            "latents": self._in_place(latents, request),
            "sigmas": None if begin is None else begin.sigmas,
            "image": list(drawings[0].references) or None,
            "width": request.width,
            "height": request.height,
            # The shift of the noise levels follows from all steps, also where only a share is run.
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": self._scale(request),
        }

    def _encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, 128, height/16, width/16) latents of (1, 3, height, width) pixels from -1 to 1."""
        vae = self._image.vae
        return self._image._encode_vae_image(pixels.to(vae.device, vae.dtype), None)

    def _in_place(self, latents: torch.Tensor, request: GenerationRequest) -> torch.Tensor:
        """(B, 128, height/16, width/16) of packed latents."""
        side = self._image.vae_scale_factor * 2
        height, width = request.height // side, request.width // side
        return latents.movedim(1, 2).reshape(len(latents), -1, height, width)

    def _unpack(self, latents: torch.Tensor, request: GenerationRequest) -> torch.Tensor:
        vae = self._image.vae
        latents = self._in_place(latents, request)
        norm = vae.bn
        mean = norm.running_mean.view(1, -1, 1, 1).to(latents.device, latents.dtype)
        deviation = (norm.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()
        latents = latents * deviation.to(latents.device, latents.dtype) + mean
        return self._image._unpatchify_latents(latents)  # (B, 32, height/8, width/8)

    def _decode(self, latents: torch.Tensor, request: GenerationRequest) -> Any:
        return self._picture(latents, request)  # the pipeline has unpacked them

    def _fit_preview(self) -> preview.PreviewMap:
        if self._preview_map is None:
            vae = self._image.vae
            self._preview_map = preview.fit(
                vae, lambda pixels: vae.encode(pixels).latent_dist.mode()
            )
        return self._preview_map


def leave_out_unused_layers(text_encoder: Any) -> None:
    """Let go of what comes after the last layer whose output is used; nothing else changes by a bit."""
    model = text_encoder.model
    model.layers = model.layers[: max(TEXT_LAYERS)]
    # The last output would be normalised, and from it each token's next word be told.
    model.norm = torch.nn.Identity()
    text_encoder.lm_head = torch.nn.Identity()
    text_encoder.config.num_hidden_layers = len(model.layers)


MODEL = Flux2KleinModel
