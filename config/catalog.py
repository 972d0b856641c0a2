"""The catalog of models: `models.toml` as frozen rows, and which of them is the default here."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from config.errors import ConfigurationError
from config.settings import ROOT

SIZE_MULTIPLE_PX = 16
MAX_STEPS = 100
MAX_REFERENCES = 4  # pictures of one request to look at
MAX_SCALE = 20.0  # of guidance, where a row says nothing else

DEFAULT_WITH_GPU = "flux-schnell"
DEFAULT_WITHOUT_GPU = "embedded"

CLOUD_BACKEND = "flux-api"


# What a request may bring: a text, a picture to begin with, a mask of what to draw anew in it, pictures
# to look at.
Way = Literal["text", "image", "mask", "references"]
Size = Annotated[int, Field(gt=0, multiple_of=SIZE_MULTIPLE_PX)]
Words = Annotated[str, Field(min_length=1)]
Scale = Annotated[float, Field(ge=0)]


class CloudFacts(BaseModel):
    """What a model of BFL's cloud takes. Its row's `source` is BFL's own name, the last part of its address.

    `size` says how it is told the size of a picture: in `pixels`, as a `ratio` of its sides, as that and
    a `resolution`, or not at all, as the `input` decides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Literal["pixels", "ratio", "resolution", "input"]
    size_multiple: Annotated[int, Field(ge=SIZE_MULTIPLE_PX)] = SIZE_MULTIPLE_PX
    max_pixels: Annotated[int, Field(gt=0)]
    # The field that pictures go into: `input_image` is counted up, `images` is a list of them.
    pictures: Literal["input_image", "image_prompt", "images", "image"] | None = None
    max_pictures: Annotated[int, Field(ge=0)] = 0
    steps: tuple[int, int] | None = None  # least and most; None: the model has no such choice
    guidance: tuple[float, float] | None = None
    seed: bool = True
    output_format: bool = True


class ModelRow(BaseModel):
    """One model: facts only. Sizes in pixels, memory in GiB by precision name."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    id: Words
    title: Words
    description: Words
    family: Words
    backend: Words
    source: Words
    other_sources: tuple[Words, ...] = ()
    licence: Words
    gated: bool = False
    ways: Annotated[tuple[Way, ...], Field(min_length=1)]
    device: Literal["any", "gpu", "apple"]
    default_width: Size
    default_height: Size
    min_size: Size
    max_size: Size
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    guidance: bool
    guidance_scale: Scale
    max_guidance_scale: Scale = MAX_SCALE
    true_cfg_scale: Scale
    max_sequence_length: Annotated[int, Field(gt=0)]
    hidden_size: Annotated[int, Field(gt=0)]
    loras: bool = True
    negative_prompt: bool = True
    requires: tuple[Way, ...] = ()
    max_references: Annotated[int, Field(ge=0, le=MAX_REFERENCES)] = MAX_REFERENCES
    min_reference_px: Annotated[int, Field(ge=1)] = 1
    max_reference_ratio: Annotated[float, Field(ge=1)] = 1000.0
    edits: bool = False
    quick_cpu_decoder: bool = False
    memory_gib: Mapping[str, float]
    largest_part_gib: Mapping[str, float] = {}
    offloaded_gib: Mapping[str, float] = {}
    example_prompts: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    architecture: str = ""
    cloud: Annotated[CloudFacts | None, Field(strict=False)] = None  # None: drawn by a worker here

    @model_validator(mode="after")
    def _defaults_within_limits(self) -> ModelRow:
        for name in ("default_width", "default_height"):
            if not self.min_size <= getattr(self, name) <= self.max_size:
                raise ValueError(f"{name} is not from min_size to max_size")
        if self.guidance_scale > self.max_guidance_scale:
            raise ValueError(f"guidance_scale is more than {self.max_guidance_scale:g}")
        if self.true_cfg_scale > MAX_SCALE:
            raise ValueError(f"true_cfg_scale is more than {MAX_SCALE:g}")
        return self

    @property
    def size_multiple(self) -> int:
        """What the sides of its pictures are multiples of, px."""
        return SIZE_MULTIPLE_PX if self.cloud is None else self.cloud.size_multiple

    @property
    def folder(self) -> Path | None:
        """The folder of a model that ships with the project; None for one from the Hub."""
        path = ROOT / self.source
        return path if path.is_dir() else None


@dataclass(frozen=True, slots=True)
class DefaultModel:
    """The model a request without `model` gets, and why in one sentence."""

    id: str
    reason: str
    is_configured: bool = False  # somebody asked for it: it is never exchanged for another


# What a row of the cloud leaves out, because only a model that is loaded here has it.
_OF_THE_CLOUD: Mapping[str, Any] = {
    "family": "bfl",
    "backend": CLOUD_BACKEND,
    "device": "any",
    "num_inference_steps": 1,
    "guidance": False,
    "guidance_scale": 0.0,
    "true_cfg_scale": 1.0,
    "max_sequence_length": 512,
    "hidden_size": 1,
    "loras": False,
    "negative_prompt": False,
    "max_references": 0,
    "memory_gib": {},
}


class Catalog:
    """The rows by id, in the file's order."""

    def __init__(self, rows: Mapping[str, ModelRow]) -> None:
        self._rows = MappingProxyType(dict(rows))

    def __iter__(self) -> Iterator[ModelRow]:
        return iter(self._rows.values())

    def __contains__(self, model_id: object) -> bool:
        return model_id in self._rows

    def get(self, model_id: str) -> ModelRow | None:
        return self._rows.get(model_id)

    def __getitem__(self, model_id: str) -> ModelRow:
        return self._rows[model_id]

    def of_cloud(self, name: str) -> ModelRow | None:
        """The row of the cloud's model by its id, or by the name that BFL calls it."""
        rows = (row for row in self if row.cloud is not None)
        return next((row for row in rows if name in (row.id, row.source)), None)

    def of_backend(self, backend: str, name: str) -> ModelRow | None:
        """A backend's row by its id, or by a name of its files on the Hub, however that is written."""
        wanted = name.strip().casefold()
        for row in self:
            names = (row.id, row.source, *row.other_sources)
            if row.backend == backend and wanted in map(str.casefold, names):
                return row
        return None

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._rows)


def load_catalog(path: Path = ROOT / "config" / "models.toml") -> Catalog:
    """Read the catalog. Raises ConfigurationError naming the row and the key at fault."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    return Catalog({model_id: _row(path, model_id, table) for model_id, table in tables.items()})


def choose_default(
    catalog: Catalog, wanted: str, gpu_names: tuple[str, ...], why_no_gpu: str
) -> DefaultModel:
    """The default model: the configured one, else by whether there is a GPU.

    Raises ConfigurationError for a configured id that the catalog does not have.
    """
    if wanted != "auto":
        of_cloud = catalog.of_cloud(wanted)
        if of_cloud is not None and wanted not in catalog:
            wanted = of_cloud.id
        if wanted not in catalog:
            raise ConfigurationError(
                f"FLUX_MODEL = {wanted!r}: no such model; the catalog has {', '.join(catalog.ids)}"
            )
        return DefaultModel(
            wanted, "set by configuration (FLUX_MODEL or --model)", is_configured=True
        )
    model_id = DEFAULT_WITH_GPU if gpu_names else DEFAULT_WITHOUT_GPU
    if model_id not in catalog:
        raise ConfigurationError(
            f"config/models.toml has no row {model_id}, which is the default here; put it back, or set FLUX_MODEL to "
            f"one of {', '.join(catalog.ids) or 'its rows'}"
        )
    if gpu_names:
        return DefaultModel(model_id, f"a GPU is used: {', '.join(gpu_names)}")
    return DefaultModel(
        model_id,
        f"no GPU is used ({why_no_gpu}), so the small model that ships with the project draws",
    )


def with_defaults(
    catalog: Catalog,
    backend: str,
    *,
    num_inference_steps: int,
    guidance_scale: float | None,
    max_size: int,
) -> Catalog:
    """The catalog with other defaults and a lower limit for one backend; 0 and None leave the model's.

    Raises ConfigurationError for a limit under what a model can draw.
    """

    def changed(row: ModelRow) -> ModelRow:
        if row.backend != backend:
            return row
        values: dict[str, Any] = {}
        if num_inference_steps:
            values["num_inference_steps"] = num_inference_steps
        if guidance_scale is not None and row.guidance:
            values["guidance_scale"] = guidance_scale
        if max_size:
            limit = min(row.max_size, max_size // SIZE_MULTIPLE_PX * SIZE_MULTIPLE_PX)
            if limit < row.min_size:
                raise ConfigurationError(
                    f"FLUX_LOCAL_MAX_IMAGE_SIZE (or SD_FLUX_MAX_IMAGE_SIZE) = {max_size}: {row.id} draws "
                    f"from {row.min_size} px on; set {row.min_size} or more"
                )
            values["max_size"] = limit
            for name in ("default_width", "default_height"):
                values[name] = min(getattr(row, name), limit)
        return row.model_copy(update=values)

    return Catalog({row.id: changed(row) for row in catalog})


def choose_backend_defaults(
    catalog: Catalog, wanted: Mapping[str, tuple[str, str]]
) -> dict[str, str]:
    """The models of requests that name a backend alone, as configured: (setting, value) by backend.

    Raises ConfigurationError for a value that is no model of the backend.
    """
    chosen = {}
    for backend, (setting, value) in wanted.items():
        if value.strip().lower() in ("", "auto"):
            continue
        row = catalog.of_backend(backend, value)
        if row is None:
            there = [f"{row.id} ({row.source})" for row in catalog if row.backend == backend]
            raise ConfigurationError(
                f"{setting} = {value!r}: the backend {backend} has no such model; it has {', '.join(there)}. "
                "Another checkpoint is a row more in config/models.toml"
            )
        chosen[backend] = row.id
    return chosen


def _row(path: Path, model_id: str, table: Any) -> ModelRow:
    """A checked row. The file's keys are the fields of ModelRow, without `id`."""
    if not isinstance(table, dict):
        raise ConfigurationError(
            f"{path}: {model_id} is no table; a model is written as [{model_id}]"
        )
    values = {**(_OF_THE_CLOUD if "cloud" in table else {}), **table, "id": model_id}
    for name in ("ways", "requires", "example_prompts", "command", "other_sources"):
        if isinstance(table.get(name), list):
            values[name] = tuple(table[name])
    try:
        return ModelRow(**values)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}{_not(item)}"
            for item in error.errors()
        )
        raise ConfigurationError(f"{path}: [{model_id}] {wrong}") from error


def _not(fault: Any) -> str:
    """The value at fault; where one is missing, or the row as a whole is wrong, there is none to show."""
    is_of_the_row = fault["type"] == "missing" or not fault["loc"]
    return "" if is_of_the_row else f", not {fault['input']!r:.60}"
