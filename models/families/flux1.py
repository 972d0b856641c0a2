"""FLUX.1: a text, and perhaps a picture and a mask, to a picture: embeddings, noise, denoising, pixels.

The steps are diffusers' `FluxPipeline`; here they are called one by one, so that each can be
timed, reported and left (`Cancelled`) between two steps of the sampler. Text encoders and the rest
are two pipelines over the same components, because they may be on two devices.
Source: Black Forest Labs, FLUX.1; Esser et al. 2024, "Scaling Rectified Flow Transformers".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline

from config.catalog import ModelRow
from config.errors import FluxError
from models import preview
from models.families import frugal as saving
from models.families.embedding_cache import EmbeddingCache, Embeddings
from models.families.exact_batches import rows_alone
from models.families.flux1_start import Start, composed, start
from models.lora.adapters import PeftAdapters
from models.lora.errors import LoraIncompatible
from models.lora.in_use import Carrier, LorasInUse
from models.lora.merged import MergedLoras, places_in
from models.lora.opened import OpenedLoras
from models.precision import LoraMode
from models.types import Drawing, GenerationRequest, LoraApplied, LoraRef, PreviewOf, Stage

OnStep = Callable[[int, int, PreviewOf], None]

TEXT_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
IMAGE_PARTS = ("transformer", "vae")
LORA_PARTS = ("transformer", "text_encoder", "text_encoder_2")


class Stopwatch:
    """Milliseconds of named stretches; waits for the GPUs before it reads the clock."""

    def __init__(self, *devices: torch.device) -> None:
        self._devices = {device for device in devices if device.type == "cuda"}
        self._started = time.perf_counter()
        self.ms: dict[str, float] = {}

    def lap(self, name: str) -> None:
        for device in self._devices:
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        self.ms[name] = self.ms.get(name, 0.0) + (now - self._started) * 1000
        self._started = now


def place(pipeline: FluxPipeline, devices: Sequence[str]) -> FluxPipeline:
    """Put the text encoders on the first of `devices`, transformer and autoencoder on the last."""
    pipeline.text_encoder.to(devices[0])
    pipeline.text_encoder_2.to(devices[0])
    pipeline.transformer.to(devices[-1])
    pipeline.vae.to(devices[-1])
    return pipeline


class Flux1Model:
    """A loaded FLUX.1 pipeline; implements `models.types.ImageModel`.

    Computes where the weights are: the text encoders may be on another device than the rest. LoRAs are
    files in `loras_dir`; a `carrier` is for transformers that take them in a way of their own.
    """

    def __init__(
        self,
        pipeline: FluxPipeline,
        row: ModelRow,
        *,
        engine: str,
        compute: str,
        lora_mode: LoraMode,
        loras_dir: Path | None = None,
        carrier: Carrier | None = None,
    ) -> None:
        parts = dict(pipeline.components)
        self._text = FluxPipeline(**parts | dict.fromkeys(IMAGE_PARTS))
        self._image = FluxPipeline(**parts | dict.fromkeys(TEXT_PARTS))
        self._image.set_progress_bar_config(disable=True)
        self._text_device: torch.device = pipeline.text_encoder.device
        self._device: torch.device = pipeline.transformer.device
        self._row = row
        self._embeddings = EmbeddingCache(self._encode_text)
        self._preview_map: preview.PreviewMap | None = None
        self._waits_in_main_memory = False
        self._opened = OpenedLoras(loras_dir)
        self._loras = LorasInUse(self._opened, carrier or self._carrier(lora_mode))
        self.engine = engine
        self.compute = compute
        # A GPU picks its kernels by the size of the whole batch.
        self.batches_exactly = self._device.type == "cpu"

    def use_loras(self, loras: Sequence[LoraRef]) -> tuple[LoraApplied, ...]:
        """As `models.types.ImageModel` says. Nothing is changed where these are in use already."""
        return self._loras.use(loras)

    @torch.no_grad()  # not inference_mode: weights moved within it could never be written to again
    def generate(
        self,
        drawings: Sequence[Drawing],
        *,
        on_stage: Callable[[Stage], None],
        on_step: OnStep,
        frugal: bool = False,
    ) -> tuple[list[Any], dict[str, float]]:
        """Draw pictures together: Pillow RGB images of `width` x `height` px, and ms by stage.

        The drawings agree in `batch_key`; raises ValueError where they do not. Their texts are
        encoded and their latents decoded one at a time, whose bits then do not depend on the
        company. With `frugal` the autoencoder works in tiles, which moves colours a little (see
        `frugal.tiled`), and on a GPU weights wait in main memory, which changes nothing but time.
        """
        request = _common_request(drawings)
        self._fit_preview()
        watch = Stopwatch(self._text_device, self._device)
        with self._sparing(frugal):
            # 1. Prompts to embeddings
            on_stage(Stage.ENCODING)
            embeddings = self._encode(drawings)

            # 2. Seeds to noise, pictures to latents
            noise = self._noise(drawings, embeddings["prompt_embeds"].dtype)
            begin = start(self._image, drawings, noise) if request.image is not None else None
            watch.lap("encode")

            # 3. Noise to latents
            on_stage(Stage.DENOISING)
            latents = self._denoise(noise, begin, embeddings, request, on_step)
            watch.lap("denoise")

            # 4. Latents to pixels
            on_stage(Stage.DECODING)
            images = [
                composed(self._decode(latent, request), drawing)
                for latent, drawing in zip(latents.split(1), drawings, strict=True)
            ]
            watch.lap("decode")
        return images, watch.ms

    def enable_offloading(self, device: torch.device) -> None:
        """From now on compute on `device` with weights that wait in main memory.

        For cards the weights do not fit on: load onto the CPU in the dtype the card computes in,
        then call this. Takes main memory for all weights, pinned.
        """
        self._image.vae.to(device)
        self._text_device = self._device = device
        self.batches_exactly = False
        # Offloading knows the layers and weights there are when it begins; a branch is neither.
        self._change_carrier(LoraMode.MERGED)
        saving.enable_offloading(*self._weighty(), prefetch=True)
        self._waits_in_main_memory = True

    def compile(self, *, lora_rank: int, **options: Any) -> None:
        """Compile the transformer's blocks, once for whatever LoRAs they will draw with.

        Each layer gets a branch of `lora_rank`, into which a request's LoRAs are written; their ranks
        added up must not be more, or the blocks are compiled again for twice as many. `options` are
        those of `torch.compile`. Must be called before `enable_offloading`.
        """
        self._change_carrier(LoraMode.MERGED, fixed_rank=lora_rank)
        self._image.transformer.compile_repeated_blocks(**options)

    def unload(self) -> None:
        """Let go of the weights; the caller collects and empties the CUDA cache."""
        del self._text, self._image, self._embeddings, self._preview_map, self._loras, self._opened

    def _change_carrier(self, mode: LoraMode, *, fixed_rank: int | None = None) -> None:
        self._loras.release()
        self._loras = LorasInUse(self._opened, self._carrier(mode, fixed_rank=fixed_rank))

    def _carrier(self, mode: LoraMode, *, fixed_rank: int | None = None) -> Carrier:
        parts = {name: self._part(name) for name in LORA_PARTS}
        devices = {name: self._text_device for name in parts} | {"transformer": self._device}
        if mode is LoraMode.NATIVE:
            return PeftAdapters(parts, devices, self._opened.take_native)
        dtypes = {name: part.dtype for name, part in parts.items()}
        return MergedLoras(places_in(parts, devices, fixed_rank=fixed_rank), devices, dtypes)

    def _part(self, name: str) -> Any:
        return getattr(self._text if name in TEXT_PARTS else self._image, name)

    @contextmanager
    def _sparing(self, frugal: bool) -> Iterator[None]:
        if not frugal:
            yield
            return
        with ExitStack() as stack:
            stack.enter_context(saving.tiled(self._image.vae))
            if self._device.type == "cuda" and not self._waits_in_main_memory:
                transformer, encoders, devices = self._weighty()
                # Text encoders that are not on their device wait in main memory as it is.
                resident = [encoder for encoder in encoders if encoder.device == devices[0]]
                stack.callback(saving.disable_offloading, transformer, resident, devices)
                saving.enable_offloading(transformer, resident, devices, prefetch=False)
                torch.cuda.empty_cache()  # what the weights have left is no use in pieces
            yield

    def _weighty(self) -> tuple[Any, tuple[Any, Any], tuple[torch.device, torch.device]]:
        encoders = (self._text.text_encoder, self._text.text_encoder_2)
        return self._image.transformer, encoders, (self._text_device, self._device)

    def _encode(self, drawings: Sequence[Drawing]) -> dict[str, torch.Tensor]:
        request = drawings[0].request
        embeddings = self._encode_all([drawing.request.prompt_to_encode for drawing in drawings])
        if request.negative_prompt is None or request.true_cfg_scale <= 1:
            return embeddings
        negative = self._encode_all([str(drawing.request.negative_prompt) for drawing in drawings])
        return embeddings | {f"negative_{name}": value for name, value in negative.items()}

    def _encode_all(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        encoders = self._loras.text_key
        tokens, pooled = zip(*(self._embeddings(text, encoders) for text in texts), strict=True)
        return {
            "prompt_embeds": torch.cat(tokens).to(self._device),  # (B, seq, C)
            "pooled_prompt_embeds": torch.cat(pooled).to(self._device),  # (B, C)
        }

    def _encode_text(self, text: str) -> Embeddings:
        tokens, pooled, _ = self._text.encode_prompt(
            prompt=text,
            prompt_2=None,
            device=self._text_device,
            max_sequence_length=self._row.max_sequence_length,
        )  # (1, seq, C), (1, C), (seq, 3)
        return tokens, pooled

    def _noise(self, drawings: Sequence[Drawing], dtype: torch.dtype) -> torch.Tensor:
        request = drawings[0].request
        latents, _ = self._image.prepare_latents(
            len(drawings),
            self._image.transformer.config.in_channels // 4,
            request.height,
            request.width,
            dtype,
            self._device,
            # Drawn on the CPU: a seed means the same noise on every device.
            [torch.Generator("cpu").manual_seed(drawing.seed) for drawing in drawings],
        )
        return latents  # (B, height/16 * width/16, 64) packed latents

    def _denoise(
        self,
        noise: torch.Tensor,
        begin: Start | None,
        embeddings: dict[str, torch.Tensor],
        request: GenerationRequest,
        on_step: OnStep,
    ) -> torch.Tensor:
        pipeline = self._image
        latents = noise if begin is None else begin.latents
        with ExitStack() as stack:
            if len(noise) > 1 and self.batches_exactly:
                stack.enter_context(rows_alone(pipeline.transformer))
            return pipeline(
                **embeddings,
                latents=latents,
                sigmas=None if begin is None else begin.sigmas,
                width=request.width,
                height=request.height,
                num_inference_steps=request.steps_to_run,
                guidance_scale=request.guidance_scale,
                true_cfg_scale=request.true_cfg_scale,
                output_type="latent",
                callback_on_step_end=self._after_step(latents, begin, request, on_step),
                callback_on_step_end_tensor_inputs=["latents"],
            ).images  # (B, height/16 * width/16, 64) packed latents

    def _after_step(
        self,
        latents: torch.Tensor,
        begin: Start | None,
        request: GenerationRequest,
        on_step: OnStep,
    ) -> Callable[..., dict[str, Any]]:
        before = self._unpack(latents, request)
        preview_map = self._fit_preview()

        def callback(
            pipeline: Any, step: int, _timestep: Any, kwargs: dict[str, Any]
        ) -> dict[str, Any]:
            nonlocal before
            sigma, sigma_next = pipeline.scheduler.sigmas[step : step + 2]
            if begin is not None:
                kwargs["latents"] = begin.held(kwargs["latents"], sigma_next)
            after = self._unpack(kwargs["latents"], request)
            size = (request.width, request.height)
            previews = preview_map.after_step(before, after, sigma, sigma_next, size)
            before = after
            on_step(step + 1, request.steps_to_run, previews)
            return kwargs

        return callback

    def _fit_preview(self) -> preview.PreviewMap:
        if self._preview_map is None:
            self._preview_map = preview.fit(self._image.vae)
        return self._preview_map

    def _unpack(self, latents: torch.Tensor, request: GenerationRequest) -> torch.Tensor:
        pipeline = self._image
        return pipeline._unpack_latents(
            latents, request.height, request.width, pipeline.vae_scale_factor
        )  # (B, 16, height/8, width/8)

    def _decode(self, latents: torch.Tensor, request: GenerationRequest) -> Any:
        vae = self._image.vae
        latents = self._unpack(latents, request)
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        pixels = vae.decode(latents.to(vae.dtype), return_dict=False)[0]  # (1, 3, height, width)
        if not pixels.isfinite().all():
            raise _no_picture(request)
        return self._image.image_processor.postprocess(pixels, output_type="pil")[0]


def _no_picture(request: GenerationRequest) -> FluxError:
    """Numbers ran over on the way; shown, the picture would be black."""
    acting = [f"{ref.name} (weight {ref.weight:g})" for ref in request.loras if ref.weight]
    if acting:
        return LoraIncompatible(
            f"no picture came out, as the LoRAs are too strong: {', '.join(acting)}; give them smaller "
            "weights"
        )
    return FluxError(f"no picture came out of {request.model}: its numbers ran over")


def _common_request(drawings: Sequence[Drawing]) -> GenerationRequest:
    if len({drawing.request.batch_key for drawing in drawings}) != 1:
        raise ValueError("drawn together are only drawings, at least one, of one batch_key")
    return drawings[0].request
