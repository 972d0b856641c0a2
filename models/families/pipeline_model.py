"""What every family of diffusers pipelines shares: a text, and perhaps pictures, to a picture.

The pipeline's parts are called one by one, so that each can be timed, reported and left (`Cancelled`)
between two steps of the sampler. Text encoders and the rest are two pipelines over the same
components, because they may be on two devices. A family says in its subclass which components there
are, and what its pipeline wants to be told.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from config.catalog import ModelRow
from config.errors import FluxError
from models import preview
from models.cpu_decoder import make_quick
from models.families import frugal as saving
from models.families.embedding_cache import EmbeddingCache, Embeddings
from models.families.exact_batches import rows_alone
from models.families.flow_start import Start, composed
from models.lora.adapters import PeftAdapters
from models.lora.base_model import Family
from models.lora.errors import LoraIncompatible
from models.lora.in_use import Carrier, LorasInUse
from models.lora.merged import MergedLoras, places_in
from models.lora.opened import OpenedLoras
from models.precision import LoraMode
from models.types import (
    Drawing,
    GenerationRequest,
    LoraApplied,
    LoraRef,
    OutputFormat,
    PreviewOf,
    Stage,
)

OnStep = Callable[[int, int, PreviewOf], None]

# Graphs of a kind of block: with and without LoRAs, one size of pictures, then any, and as many for batches.
MAX_GRAPHS = 64


class Stopwatch:
    """Milliseconds of named stretches; waits for the GPUs before it reads the clock."""

    def __init__(self, *devices: torch.device) -> None:
        self._devices = {device for device in devices if device.type in ("cuda", "mps")}
        self._started = time.perf_counter()
        self.ms: dict[str, float] = {}

    def lap(self, name: str) -> None:
        for device in self._devices:
            torch.mps.synchronize() if device.type == "mps" else torch.cuda.synchronize(device)
        now = time.perf_counter()
        self.ms[name] = self.ms.get(name, 0.0) + (now - self._started) * 1000
        self._started = now


class PipelineModel:
    """A loaded diffusers pipeline; implements `models.types.ImageModel`.

    Computes where the weights are: the text encoders may be on another device than the rest. LoRAs are
    files in `loras_dir`; a `carrier` is for denoisers that take them in a way of their own. `text_device`
    is where text encoders compute that wait elsewhere.
    """

    TEXT_PARTS: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    IMAGE_PARTS: ClassVar[tuple[str, ...]] = ("transformer", "vae")
    DENOISER: ClassVar[str] = "transformer"
    LORA_PARTS: ClassVar[tuple[str, ...]] = ()  # components that LoRAs have layers for
    # Components that other models of the family have alike, and that nothing here changes.
    SHARED_PARTS: ClassVar[tuple[str, ...]] = ()
    # What the pipeline is told when it is read, components that are left out included.
    READ_WITH: ClassVar[Mapping[str, Any]] = {}
    # On Apple's GPU: BF16, or FP32 where that is too coarse. FP16 overflows in these networks.
    SIXTEEN_BITS_ON_MPS: ClassVar[bool] = True
    # Whether pictures drawn together on a CPU have the bits they have alone (`exact_batches`).
    EXACT_BATCHES: ClassVar[bool] = False

    # What a family says

    @classmethod
    def pipeline_class(cls, row: ModelRow) -> Any:
        """diffusers' class that loads and draws the row."""
        raise NotImplementedError

    @classmethod
    def prepare(cls, pipeline: Any) -> None:
        """What is changed in a pipeline that was read, before it is put onto its devices."""

    def _encode_text(self, text: str) -> Embeddings:
        """Tensors of one row that `_name_embeddings` gives names; the same text is asked for once."""
        raise NotImplementedError

    def _name_embeddings(self, embeddings: Sequence[Embeddings]) -> dict[str, Any]:
        """The pipeline's arguments for these texts, on the denoiser's device."""
        tensors = [torch.cat(each).to(self._device) for each in zip(*embeddings, strict=True)]
        names = ("prompt_embeds", "pooled_prompt_embeds")[: len(tensors)]
        return dict(zip(names, tensors, strict=True))

    def _noise(self, drawings: Sequence[Drawing], dtype: torch.dtype) -> torch.Tensor:
        """The latents that seeds stand for (`_generators`), on the denoiser's device."""
        raise NotImplementedError

    def _start(self, drawings: Sequence[Drawing], noise: torch.Tensor) -> Start | None:
        """Where the sampler begins when it begins with a picture; None: with the noise."""
        return None

    def _arguments(
        self, drawings: Sequence[Drawing], latents: torch.Tensor, begin: Start | None
    ) -> dict[str, Any]:
        """What the pipeline is called with beside the embeddings and the callback.

        `latents` are those to begin with, `begin` says more where they have a picture in them.
        """
        raise NotImplementedError

    def _unpack(self, latents: torch.Tensor, request: GenerationRequest) -> torch.Tensor:
        """The sampler's latents as (B, C, h, w), for previews."""
        return latents

    def _decode(self, latents: torch.Tensor, request: GenerationRequest) -> Any:
        """The Pillow picture of one row of what the pipeline returns."""
        raise NotImplementedError

    def _fit_preview(self) -> preview.PreviewMap:
        if self._preview_map is None:
            self._preview_map = preview.fit(self._image.vae)
        return self._preview_map

    def _uses_negative(self, request: GenerationRequest) -> bool:
        """Whether the pipeline wants embeddings of a negative prompt too."""
        return request.negative_prompt is not None and request.true_cfg_scale > 1

    def _negative_text(self, request: GenerationRequest) -> str:
        return request.negative_prompt or ""

    @staticmethod
    def _generators(drawings: Sequence[Drawing]) -> list[torch.Generator]:
        """The source of each drawing's noise, on the CPU: a seed means the same on every device."""
        return [torch.Generator("cpu").manual_seed(drawing.seed) for drawing in drawings]

    # What all share

    def __init__(
        self,
        pipeline: Any,
        row: ModelRow,
        *,
        engine: str,
        compute: str,
        lora_mode: LoraMode,
        loras_dir: Path | None = None,
        carrier: Carrier | None = None,
        text_device: torch.device | None = None,
    ) -> None:
        self._text = without_parts(pipeline, self.IMAGE_PARTS)
        self._image = without_parts(pipeline, self.TEXT_PARTS)
        self._image.set_progress_bar_config(disable=True)
        self._text_device: torch.device = text_device or pipeline.text_encoder.device
        self._device: torch.device = getattr(pipeline, self.DENOISER).device
        self._row = row
        if row.quick_cpu_decoder and self._device.type == "cpu":
            make_quick(self._image.vae.decoder)
        self._embeddings = EmbeddingCache(self._encode_text)
        self._preview_map: preview.PreviewMap | None = None
        self._waits_in_main_memory = False
        family = Family(row.architecture or row.family) if row.loras else Family.FLUX1
        self._opened = OpenedLoras(loras_dir, family)
        self._loras = LorasInUse(self._opened, carrier or self._carrier(lora_mode))
        self.engine = engine
        self.compute = compute
        # A GPU picks its kernels by the size of the whole batch.
        self.batches_exactly = self.EXACT_BATCHES and self._device.type == "cpu"

    def use_loras(self, loras: Sequence[LoraRef]) -> tuple[LoraApplied, ...]:
        """As `models.types.ImageModel` says. Nothing is changed where these are in use already."""
        return self._loras.use(loras)

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
        request = common_request(drawings)
        self._fit_preview()
        watch = Stopwatch(self._text_device, self._device)
        with self._computing(), self._sparing(frugal):
            # 1. Prompts to embeddings
            on_stage(Stage.ENCODING)
            embeddings = self._encode(drawings)

            # 2. Seeds to noise, pictures to latents
            noise = self._noise(drawings, _dtype_of(embeddings["prompt_embeds"]))
            begin = self._start(drawings, noise)
            latents = noise if begin is None else begin.latents
            arguments = {**embeddings, **self._arguments(drawings, latents, begin)}
            watch.lap("encode")

            # 3. Noise to latents
            on_stage(Stage.DENOISING)
            latents = self._denoise(arguments, latents, begin, drawings, on_step)
            watch.lap("denoise")

            # 4. Latents to pixels
            on_stage(Stage.DECODING)
            images = [
                composed(self._decode(latent, request), drawing)
                for latent, drawing in zip(latents.split(1), drawings, strict=True)
            ]
            watch.lap("decode")
        return images, watch.ms

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Without gradients; on a GPU weights are moved within it, and inference_mode would close them for ever."""
        is_cpu = self._device.type == self._text_device.type == "cpu"
        with torch.inference_mode() if is_cpu else torch.no_grad():
            yield

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

    def compile(self, *, autoencoder: bool, **options: Any) -> None:
        """Compile the denoiser's blocks, and with `autoencoder` what decodes, where they are.

        Each is compiled as it is first used with a kind of inputs. Faster, and off by rounding from what
        was not compiled. `options` are those of `torch.compile`. Must be called before
        `enable_offloading`.
        """
        torch._dynamo.config.recompile_limit = MAX_GRAPHS
        self._change_carrier(LoraMode.MERGED, compiled=True)
        getattr(self._image, self.DENOISER).compile_repeated_blocks(**options)
        if autoencoder:
            self._image.vae.decoder.to(memory_format=torch.channels_last)
            self._image.vae.decoder.compile(**options)

    def uncompile(self) -> None:
        """Undo `compile`."""
        for part in (getattr(self._image, self.DENOISER), self._image.vae):
            for module in part.modules():
                module._compiled_call_impl = None
        self._image.vae.decoder.to(memory_format=torch.contiguous_format)

    def warm_up(self) -> None:
        """Draw for nobody, at the model's own size: what is compiled is compiled before the first request."""
        self.generate(
            [_any_drawing(self._row)], on_stage=lambda stage: None, on_step=lambda *step: None
        )

    def unload(self) -> None:
        """Let go of the weights; the caller collects and empties the CUDA cache."""
        del self._text, self._image, self._embeddings, self._preview_map, self._loras, self._opened

    def _change_carrier(self, mode: LoraMode, *, compiled: bool = False) -> None:
        self._loras.release()
        self._loras = LorasInUse(self._opened, self._carrier(mode, compiled=compiled))

    def _carrier(self, mode: LoraMode, *, compiled: bool = False) -> Carrier:
        parts = {name: self._part(name) for name in self.LORA_PARTS}
        devices = {
            name: self._text_device if name in self.TEXT_PARTS else self._device for name in parts
        }
        if mode is LoraMode.NATIVE:
            return PeftAdapters(parts, devices, self._opened.take_native)
        dtypes = {name: part.dtype for name, part in parts.items()}
        what = self.DENOISER if compiled else None
        return MergedLoras(places_in(parts), devices, dtypes, compiled=what)

    def _part(self, name: str) -> Any:
        return getattr(self._text if name in self.TEXT_PARTS else self._image, name)

    @contextmanager
    def _sparing(self, frugal: bool) -> Iterator[None]:
        if not frugal:
            yield
            return
        with ExitStack() as stack:
            stack.enter_context(saving.tiled(self._image.vae))
            stack.enter_context(uncompiled(getattr(self._image, self.DENOISER), self._image.vae))
            if self._device.type == "cuda" and not self._waits_in_main_memory:
                denoiser, encoders, devices = self._weighty()
                # Text encoders that are not on their device wait in main memory as it is.
                resident = [encoder for encoder in encoders if encoder.device == devices[0]]
                stack.callback(saving.disable_offloading, denoiser, resident, devices)
                saving.enable_offloading(denoiser, resident, devices, prefetch=False)
                torch.cuda.empty_cache()  # what the weights have left is no use in pieces
            yield

    def _weighty(self) -> tuple[Any, tuple[Any, ...], tuple[torch.device, torch.device]]:
        """Denoiser, text encoders, and the devices of the text encoders and of the denoiser."""
        texts = (getattr(self._text, name) for name in self.TEXT_PARTS)
        encoders = tuple(part for part in texts if isinstance(part, torch.nn.Module))
        return getattr(self._image, self.DENOISER), encoders, (self._text_device, self._device)

    def _encode(self, drawings: Sequence[Drawing]) -> dict[str, Any]:
        request = drawings[0].request
        embeddings = self._encode_all([drawing.request.prompt_to_encode for drawing in drawings])
        if not self._uses_negative(request):
            return embeddings
        negative = self._encode_all([self._negative_text(drawing.request) for drawing in drawings])
        return embeddings | {f"negative_{name}": value for name, value in negative.items()}

    def _encode_all(self, texts: Sequence[str]) -> dict[str, Any]:
        encoders = self._loras.text_key
        return self._name_embeddings([self._embeddings(text, encoders) for text in texts])

    def _denoise(
        self,
        arguments: dict[str, Any],
        latents: torch.Tensor,
        begin: Start | None,
        drawings: Sequence[Drawing],
        on_step: OnStep,
    ) -> torch.Tensor:
        request = drawings[0].request
        with ExitStack() as stack:
            if len(drawings) > 1 and self.batches_exactly:
                stack.enter_context(rows_alone(getattr(self._image, self.DENOISER)))
            return self._image(
                **arguments,
                output_type="latent",
                callback_on_step_end=self._after_step(latents, begin, request, on_step),
                callback_on_step_end_tensor_inputs=["latents"],
            ).images

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

    def _picture(self, latents: torch.Tensor, request: GenerationRequest) -> Any:
        """The autoencoder's Pillow picture of (1, C, h, w) latents, scaled as it takes them."""
        vae = self._image.vae
        pixels = vae.decode(latents.to(vae.dtype), return_dict=False)[0]  # (1, 3, height, width)
        if not pixels.isfinite().all():
            raise _no_picture(request)
        # Rounded where it was decoded, to the bytes that diffusers rounds to in main memory.
        unit = self._image.image_processor.postprocess(pixels, output_type="pt")[0]  # 0 to 1
        values = unit.float().mul(255).round().to(torch.uint8)
        return Image.fromarray(values.permute(1, 2, 0).contiguous().cpu().numpy())


def without_parts(pipeline: Any, names: Sequence[str]) -> Any:
    """A pipeline of the same kind over the same components, but for these."""
    parts = dict(pipeline.components) | dict.fromkeys(names)
    accepted = inspect.signature(type(pipeline).__init__).parameters
    facts = {name: pipeline.config[name] for name in accepted if name in pipeline.config}
    return type(pipeline)(**facts | parts)


@contextmanager
def uncompiled(*modules: torch.nn.Module) -> Iterator[None]:
    """Within it what was compiled of `modules` runs as it was written: hooks on it are no part of a graph."""
    parts = [part for module in modules for part in module.modules()]
    before = {part: part._compiled_call_impl for part in parts if part._compiled_call_impl}
    for part in before:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, call in before.items():
            part._compiled_call_impl = call


def place(
    pipeline: Any,
    devices: Sequence[str],
    text_parts: Sequence[str] = (),
) -> Any:
    """Put the text encoders on the first of `devices`, all else on the last.

    Where no parts are named, text encoders are the components called so.
    """
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            part.to(device_of(name, devices, text_parts))
    return pipeline


def device_of(name: str, devices: Sequence[str], text_parts: Sequence[str] = ()) -> str:
    """Where a component goes: text encoders to the first of `devices`, all else to the last."""
    is_text = name in text_parts or name.startswith("text_encoder")
    return devices[0] if is_text else devices[-1]


def common_request(drawings: Sequence[Drawing]) -> GenerationRequest:
    """The first of requests that agree. Raises ValueError for those that do not."""
    if len({drawing.request.batch_key for drawing in drawings}) != 1:
        raise ValueError("drawn together are only drawings, at least one, of one batch_key")
    return drawings[0].request


def _any_drawing(row: ModelRow) -> Drawing:
    """One step at the row's own size, with what it cannot do without."""
    size = (row.default_width, row.default_height)
    request = GenerationRequest(
        prompt="", negative_prompt=None, model=row.id, backend=row.backend, width=size[0], height=size[1],
        num_inference_steps=1, guidance_scale=row.guidance_scale, true_cfg_scale=row.true_cfg_scale,
        seed=0, num_images=1, output_format=OutputFormat.PNG, output_quality=95, tags=(),
        image="any" if "image" in row.requires else None,
        mask="any" if "mask" in row.requires else None,
        strength=1.0 if "image" in row.requires else None,
    )  # fmt: skip
    return Drawing(
        request=request,
        seed=0,
        image=Image.new("RGB", size) if request.image else None,
        mask=Image.new("L", size, 255) if request.mask else None,
    )


def _dtype_of(embeddings: Any) -> torch.dtype:
    """Of a tensor, or of a list of tensors of several lengths."""
    return embeddings.dtype if isinstance(embeddings, torch.Tensor) else embeddings[0].dtype


def _no_picture(request: GenerationRequest) -> FluxError:
    """Numbers ran over on the way; shown, the picture would be black."""
    acting = [f"{ref.name} (weight {ref.weight:g})" for ref in request.loras if ref.weight]
    if acting:
        return LoraIncompatible(
            f"no picture came out, as the LoRAs are too strong: {', '.join(acting)}; give them smaller "
            "weights"
        )
    return FluxError(f"no picture came out of {request.model}: its numbers ran over")
