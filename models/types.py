"""What travels between the rooms: frozen values, no torch, each one JSON on the wire and on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

MAX_SEED = 2**53 - 1


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


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request with nothing left open: model, size, steps and seed are decided.

    Sizes in pixels. Image i of `num_images` uses `seed + i`. `true_cfg_scale` acts only
    with a `negative_prompt`.
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

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GenerationRequest:
        values = dict(data)
        values["output_format"] = OutputFormat(values["output_format"])
        values["tags"] = tuple(values["tags"])
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """One finished picture on disk. `filename` has no folder; sizes in pixels and bytes."""

    filename: str
    seed: int
    width: int
    height: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """What a job made, and how long each part took (ms; `queued` and `total` are the parent's)."""

    images: tuple[ImageFile, ...]
    engine: str
    precision: str
    device: str
    timings_ms: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return {
            "images": [dataclasses.asdict(image) for image in self.images],
            "engine": self.engine,
            "precision": self.precision,
            "device": self.device,
            "timings_ms": dict(self.timings_ms),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GenerationResult:
        return cls(
            images=tuple(ImageFile(**image) for image in data["images"]),
            engine=data["engine"],
            precision=data["precision"],
            device=data["device"],
            timings_ms=dict(data["timings_ms"]),
        )


class Cancelled(Exception):
    """Raised inside a generation whose job was cancelled; not an error."""


class OutOfMemory(Exception):
    """The device had no room for this job. The model stays loaded."""


class ImageModel(Protocol):
    """A loaded model of one family at one precision, inside a worker process.

    `generate` draws one picture and returns a Pillow RGB image with the milliseconds of each
    stage. `on_stage(stage)` is called when a stage begins, `on_step(step, steps)` after each
    step, 1-based; both may raise Cancelled, which ends the generation at once.
    """

    engine: str

    def generate(
        self,
        request: GenerationRequest,
        *,
        seed: int,
        on_stage: Callable[[Stage], None],
        on_step: Callable[[int, int], None],
    ) -> tuple[Any, dict[str, float]]: ...

    def unload(self) -> None: ...
