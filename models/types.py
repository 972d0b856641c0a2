"""What travels between the rooms: frozen values, no torch, each one JSON on the wire and on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

MAX_SEED = 2**53 - 1
MAX_IMAGES = 8  # of one request
# Pictures drawn together where that changes no bit. More gain little and make the first of them wait
# longer for the last.
EXACT_BATCH_SIZE = 4


class OutputFormat(StrEnum):
    PNG = "png"  # lossless, carries the request in two text chunks
    JPEG = "jpeg"  # carries the request as EXIF user comment
    WEBP = "webp"  # the same

    @property
    def media_type(self) -> str:
        return f"image/{self.value}"

    @property
    def suffix(self) -> str:
        return ".jpg" if self is OutputFormat.JPEG else f".{self.value}"


class Stage(StrEnum):
    LOADING = "loading"  # weights are read into memory
    ENCODING = "encoding"  # prompt to embeddings
    DENOISING = "denoising"  # the sampler's steps
    DECODING = "decoding"  # latents to pixels
    SAVING = "saving"  # pixels to a file
    CLOUD = "cloud"  # somebody else's machines draw


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRef:
    """A LoRA of a request: which file, how strongly, and the words that call it.

    `sha256` is of the file's bytes and decides; `name` is what people called it. `weight` is
    diffusers' adapter weight.
    """

    name: str
    sha256: str
    weight: float
    trigger_words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraApplied:
    """How much of a LoRA found its layer, counted in tensors of its file."""

    name: str
    sha256: str
    weight: float
    matched_keys: int
    unmatched_keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request with nothing left open: model, size, steps, seed and LoRAs are decided.

    Sizes in pixels. Image i of `num_images` uses `seed + i`. `true_cfg_scale` acts only
    with a `negative_prompt`. `image`, `mask` and `reference_images` are the SHA-256 of input pictures'
    files; `strength`, 0 to 1, says how much of the image is drawn anew, and is None where there is no
    image. References are looked at, and the prompt says what becomes of them.
    """

    prompt: str
    negative_prompt: str | None
    model: str
    backend: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float
    seed: int
    num_images: int
    output_format: OutputFormat
    output_quality: int
    tags: tuple[str, ...]
    loras: tuple[LoraRef, ...] = ()
    image: str | None = None
    mask: str | None = None
    strength: float | None = None
    reference_images: tuple[str, ...] = ()
    precision: str | None = None  # that it must be drawn in; None: any

    @property
    def inputs(self) -> tuple[str, ...]:
        """The input pictures, by content."""
        if self.image is None and not self.reference_images:
            return ()  # a mask is never alone
        pictures = (self.image, self.mask, *self.reference_images)
        return tuple(sha256 for sha256 in pictures if sha256 is not None)

    @property
    def steps_to_run(self) -> int:
        """Steps of the sampler for one picture: the share that `strength` leaves, at least one."""
        if self.strength is None:
            return self.num_inference_steps
        # As diffusers counts them: a begun step is a whole one. 7.000000000000001 of 100 are 7.
        kept = self.num_inference_steps - self.num_inference_steps * self.strength
        return max(1, self.num_inference_steps - int(kept + 1e-9))

    @property
    def prompt_to_encode(self) -> str:
        """The prompt after the trigger words that it lacks, in the order of the LoRAs.

        A LoRA of weight 0 changes nothing, so its words are not asked for.
        """
        there = self.prompt.casefold()
        words = dict.fromkeys(
            word
            for lora in self.loras
            if lora.weight
            for word in lora.trigger_words
            if word.casefold() not in there
        )
        return ", ".join([*words, self.prompt])

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Requests with equal keys can be drawn together."""
        has_cfg = self.negative_prompt is not None and self.true_cfg_scale > 1
        return (
            self.model,
            self.width,
            self.height,
            self.num_inference_steps,
            self.guidance_scale,
            self.true_cfg_scale if has_cfg else None,
            tuple((lora.sha256, lora.weight) for lora in self.loras),
            self.strength,
            self.mask is not None,
            self.reference_images,
        )

    def to_json(self) -> dict[str, Any]:
        # Not `asdict`, which copies every value deeply: all of these are frozen.
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {"loras": [dataclasses.asdict(lora) for lora in self.loras]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GenerationRequest:
        values = dict(data)
        values["output_format"] = OutputFormat(values["output_format"])
        values["tags"] = tuple(values["tags"])
        values["loras"] = tuple(
            LoraRef(**lora | {"trigger_words": tuple(lora["trigger_words"])})
            for lora in values.get("loras", ())
        )
        values["reference_images"] = tuple(values.get("reference_images") or ())
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """One finished picture on disk. `filename` has no folder; sizes in pixels and bytes."""

    filename: str
    seed: int
    width: int
    height: int
    size_bytes: int
    nsfw_flagged: bool | None = None  # it is stored blurred then; None: nobody looked


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedImage:
    """A picture that did not come while others of its job did. `index` is its place in the request."""

    index: int
    seed: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """What a job made, and how long each part took (ms; `queued` and `total` are the parent's)."""

    images: tuple[ImageFile, ...]
    engine: str
    precision: str
    device: str
    timings_ms: Mapping[str, float]
    loras: tuple[LoraApplied, ...] = ()
    cost_usd: float = 0.0  # what somebody else charges for it
    failed: tuple[FailedImage, ...] = ()  # of a cloud, which draws each picture by itself

    def to_json(self) -> dict[str, Any]:
        return {
            "images": [dataclasses.asdict(image) for image in self.images],
            "engine": self.engine,
            "precision": self.precision,
            "device": self.device,
            "timings_ms": dict(self.timings_ms),
            "loras": [dataclasses.asdict(lora) for lora in self.loras],
            "cost_usd": self.cost_usd,
            "failed": [dataclasses.asdict(image) for image in self.failed],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GenerationResult:
        return cls(
            images=tuple(ImageFile(**image) for image in data["images"]),
            engine=data["engine"],
            precision=data["precision"],
            device=data["device"],
            timings_ms=dict(data["timings_ms"]),
            loras=tuple(LoraApplied(**lora) for lora in data.get("loras", ())),
            cost_usd=data.get("cost_usd", 0.0),
            failed=tuple(FailedImage(**image) for image in data.get("failed", ())),
        )


class Cancelled(Exception):
    """Raised inside a generation whose job was cancelled; not an error."""


class OutOfMemory(Exception):
    """The device had no room for this job. The model stays loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a loader is to load a model.

    `devices` are torch's names ("cuda:0", "cpu"); with several, the model's components are spread
    over them. `on_progress(what, fraction)` is told how far a long preparation is, 0 to 1. A
    request's LoRAs are files `<sha256>.safetensors` in `loras_dir`; None: there are none. What is
    fetched leaves `reserve_bytes` of the disk free. `offload` says whether weights wait in main memory
    until they are used; None: the loader decides.
    """

    devices: tuple[str, ...]
    models_dir: Path
    allow_download: bool
    reserve_bytes: int = 0
    offload: bool | None = None
    loras_dir: Path | None = None
    engine: str = "auto"  # one of the profile's engines, or "auto": the best that runs here
    fp8_weights: str = "memory"  # "memory" or "speed": see ModelSettings
    compile: str = "off"  # "on", "off" or "auto": see ModelSettings
    mflux_quantize: int = 0  # bits of mflux's weights; 0: not quantised
    parts: Any = None  # a `models.parts.Parts`: what the models of this process share
    on_progress: Callable[[str, float], None] = lambda what, fraction: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One picture to draw: the request it belongs to, and its own seed.

    `image` and `mask` are there where the request has them: Pillow pictures of `width` x `height` px,
    RGB and L. Where the mask is 255 the image is drawn anew, where it is 0 it stays as it is.
    `references` are RGB of any size.
    """

    request: GenerationRequest
    seed: int
    image: Any = None
    mask: Any = None
    references: tuple[Any, ...] = ()


# Called with the index of a drawing: a JPEG of it as it is after a step, longest side at most
# PREVIEW_PX. May be called from another thread, once for each drawing, after the step; it waits
# for the device.
PREVIEW_PX = 256
PreviewOf = Callable[[int], bytes]


class ImageModel(Protocol):
    """A loaded model of one family at one precision, inside a worker process.

    `generate` draws pictures that agree in `GenerationRequest.batch_key`, together, and returns
    Pillow RGB images in their order with the milliseconds of each stage. `on_stage(stage)` is
    called when a stage begins, `on_step(step, steps, preview)` after each of the request's
    `steps_to_run`, 1-based, without a preview where there is none; both may raise Cancelled, which ends
    the generation at once. A stage that is told again only looks whether it was cancelled. With
    `frugal` it takes more time and less memory: tiles in the VAE, and on a GPU weights that wait in
    main memory.
    """

    engine: str  # one of the profile's engines
    compute: str  # how it multiplies on this device, in words for /info
    batches_exactly: bool  # whether pictures drawn together have the bytes they have alone

    def use_loras(self, loras: Sequence[LoraRef]) -> tuple[LoraApplied, ...]:
        """Draw with exactly these from now on, whatever was used before; returns how they matched.

        Those of weight 0 leave no trace. Raises `models.lora.errors.LoraError`, saying why, for one
        that does not fit the model or matches no layer; what was used before is then used on.
        """

    def generate(
        self,
        drawings: Sequence[Drawing],
        *,
        on_stage: Callable[[Stage], None],
        on_step: Callable[[int, int, PreviewOf | None], None],
        frugal: bool = False,
    ) -> tuple[list[Any], dict[str, float]]: ...

    def unload(self) -> None: ...
