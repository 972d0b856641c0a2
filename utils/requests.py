"""From what a client asked to a request with nothing left open, or an error that names the field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from config.catalog import (
    DEFAULT_WITHOUT_GPU,
    SIZE_MULTIPLE_PX,
    Catalog,
    DefaultModel,
    ModelRow,
    Way,
)
from config.errors import FieldError, InvalidRequest, UnsupportedHardware
from models.precision import PrecisionProfile
from models.types import MAX_SEED, GenerationRequest, OutputFormat
from utils.clock import Chance
from utils.gpu_manager import Placement, WorkerSlot
from utils.input_pictures import InputPicture
from utils.lora_choice import LoraChoice
from utils.lora_manager import LoraManager

DRAWN_SEED = -1
# How much of an image is drawn anew where the request does not say: diffusers' default, and with a
# mask all of what is white.
DEFAULT_STRENGTH = 0.6
DEFAULT_MASK_STRENGTH = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A client's request; None where it left the choice to us. Types and ranges are checked already.

    `image` and `mask` are as they came: a picture's bytes, or text that stands for it.
    """

    prompt: str
    negative_prompt: str | None = None
    model: str | None = None
    backend: str | None = None
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    seed: int | None = None
    num_images: int = 1
    output_format: OutputFormat = OutputFormat.PNG
    output_quality: int = 95
    tags: tuple[str, ...] = ()
    loras: tuple[LoraChoice, ...] | None = None  # None: the service's defaults
    image: str | bytes | None = None
    mask: str | bytes | None = None
    strength: float | None = None


class RequestResolver:
    """Fills in the model's defaults and checks the model's limits and this machine's."""

    def __init__(
        self,
        catalog: Catalog,
        default: DefaultModel,
        profile: PrecisionProfile,
        placement: Placement,
        chance: Chance,
        loras: LoraManager,
    ) -> None:
        self.catalog = catalog
        self._profile = profile
        self._placement = placement
        self._chance = chance
        self._loras = loras
        self.default = self._that_runs_here(default)

    def resolve(
        self,
        wanted: Wanted,
        *,
        image: InputPicture | None = None,
        mask: InputPicture | None = None,
    ) -> GenerationRequest:
        """Raises InvalidRequest naming every field at fault, UnsupportedHardware, or why a LoRA is not used.

        Of LoRAs it knows what `LoraManager.prepare` has seen last. `image` and `mask` are the pictures
        that `wanted` stands for, kept already.
        """
        row = self.checked(wanted)
        width, height = _size(wanted, row, image)
        steps = wanted.num_inference_steps
        seed = wanted.seed
        return GenerationRequest(
            prompt=wanted.prompt,
            negative_prompt=wanted.negative_prompt or None,
            model=row.id,
            backend=row.backend,
            width=width,
            height=height,
            num_inference_steps=row.num_inference_steps if steps is None else steps,
            guidance_scale=_either(wanted.guidance_scale, row.guidance_scale),
            true_cfg_scale=_either(wanted.true_cfg_scale, row.true_cfg_scale),
            seed=self._chance.seed() if seed is None or seed == DRAWN_SEED else seed,
            num_images=wanted.num_images,
            output_format=wanted.output_format,
            output_quality=wanted.output_quality,
            tags=wanted.tags,
            loras=self._loras.refs(wanted.loras, row),
            image=image.sha256 if image is not None else None,
            mask=mask.sha256 if mask is not None else None,
            strength=_strength(wanted) if image is not None else None,
        )

    def checked(self, wanted: Wanted) -> ModelRow:
        """The model of a request that is sound but for its LoRAs; raises what `resolve` raises."""
        wrong = self.faults(
            model=wanted.model,
            backend=wanted.backend,
            width=wanted.width,
            height=wanted.height,
            seed=wanted.seed,
            num_images=wanted.num_images,
            ways=[name for name in ("image", "mask") if getattr(wanted, name) is not None],
        )
        if wrong:
            raise InvalidRequest(
                "; ".join(f"{error.field}: {error.message}" for error in wrong), fields=wrong
            )
        row = self.catalog[wanted.model if wanted.model is not None else self.default.id]
        self.require_runs_here(row)
        return row

    def why_not_here(self, row: ModelRow) -> str | None:
        """Why this service on this machine cannot run the model; None when one of its workers can."""
        if row.memory_gib.get(self._profile.name) is None:
            return f"{row.id} has no {self._profile.title} weights; this service is {self._profile.title}"
        reasons = [self.why_not_on(slot, row) for slot in self._placement.slots]
        return None if None in reasons else "; ".join(dict.fromkeys(filter(None, reasons)))

    def why_not_on(self, slot: WorkerSlot, row: ModelRow) -> str | None:
        """Why the worker of a slot cannot run the model; None when it can."""
        needed = row.memory_gib.get(self._profile.name)
        if needed is None:
            return f"{row.id} has no {self._profile.title} weights"
        if len(slot.gpus) < 2:
            needed = row.offloaded_gib.get(self._profile.name, needed)
        if not slot.gpus:
            if row.device == "any":
                return None
            return (
                f"{row.id} needs a GPU with {needed:g} GiB, and this service runs on the CPU "
                f"({self._placement.why_no_gpu})"
            )
        there = sum(gpu.memory_total_mib for gpu in slot.gpus) / 1024
        names = " + ".join(gpu.name for gpu in slot.gpus)
        if there < needed:
            return (
                f"{row.id} needs {needed:g} GiB of GPU memory in {self._profile.title}: "
                f"{names} {'has' if len(slot.gpus) == 1 else 'have'} {there:.1f} GiB"
            )
        last = slot.gpus[-1]
        part = row.largest_part_gib.get(self._profile.name, 0.0) if len(slot.gpus) > 1 else 0.0
        if last.memory_total_mib / 1024 < part:
            return (
                f"{row.id}'s transformer needs {part:g} GiB on the last GPU of -g in {self._profile.title}: "
                f"{last.name} has {last.memory_total_mib / 1024:.1f} GiB"
            )
        return None

    def models_on(self, slot: WorkerSlot) -> list[str]:
        """The models that the worker of a slot can run."""
        return [row.id for row in self.catalog if self.why_not_on(slot, row) is None]

    def require_runs_here(self, row: ModelRow) -> None:
        reason = self.why_not_here(row)
        if reason is not None:
            runnable = [other.id for other in self.catalog if self.why_not_here(other) is None]
            instead = f"; models that run here: {', '.join(runnable)}" if runnable else ""
            raise UnsupportedHardware(reason + instead, fields=[FieldError("model", reason)])

    def model(self, model_id: str) -> ModelRow:
        row = self.catalog.get(model_id)
        if row is None:
            raise InvalidRequest.of("model", self._no_model(model_id))
        return row

    def _that_runs_here(self, default: DefaultModel) -> DefaultModel:
        """A default that nobody chose and that this machine cannot run gives way to the small model."""
        reason = self.why_not_here(self.catalog[default.id])
        small = self.catalog.get(DEFAULT_WITHOUT_GPU)
        if default.is_configured or reason is None or small is None or self.why_not_here(small):
            return default
        return DefaultModel(
            small.id, f"{reason}, so the small model that ships with the project draws"
        )

    def faults(
        self,
        *,
        model: str | None = None,
        backend: str | None = None,
        width: int | None = None,
        height: int | None = None,
        seed: int | None = None,
        num_images: int = 1,
        ways: Sequence[Way] = (),
    ) -> list[FieldError]:
        """What the catalog and the model have against these values; None is a choice left to us.

        `ways` are what the request brings beside its text.
        """
        wrong = []
        row = self.catalog.get(self.default.id if model is None else model)
        if row is None:
            wrong.append(FieldError("model", self._no_model(model or "")))
        backends = sorted({other.backend for other in self.catalog})
        if backend is not None and backend not in backends:
            there = f"there is no backend {backend[:64]!r} here; there is: {', '.join(backends)}"
            wrong.append(FieldError("backend", there))
        elif backend is not None and row is not None and backend != row.backend:
            belongs = f"model {row.id} belongs to backend {row.backend}, not {backend}"
            wrong.append(FieldError("backend", belongs))
        for name, value in (("width", width), ("height", height)):
            if value is not None and row is not None and not _is_side(row, value):
                message = (
                    f"{value} is not a multiple of {SIZE_MULTIPLE_PX} from {row.min_size} to {row.max_size}, "
                    f"which model {row.id} draws"
                )
                wrong.append(FieldError(name, message))
        for way in ways:
            if row is not None and way not in row.ways:
                able = [other.id for other in self.catalog if way in other.ways]
                message = f"model {row.id} takes none; models that do: {', '.join(able) or 'none'}"
                wrong.append(FieldError(way, message))
        if seed is not None and seed != DRAWN_SEED and seed + num_images - 1 > MAX_SEED:
            wrong.append(FieldError("seed", f"seed + num_images - 1 is over {MAX_SEED}"))
        return wrong

    def _no_model(self, model_id: str) -> str:
        return f"there is no model {model_id[:64]!r}; GET /api/models lists: {', '.join(self.catalog.ids)}"


def _size(wanted: Wanted, row: ModelRow, image: InputPicture | None) -> tuple[int, int]:
    """Width and height in px: as asked for, else the image's own within the model's limits, else the model's."""
    if image is None:
        default = row.default_width, row.default_height
    else:
        # A side that was asked for brings the other one along; else only the limits change the size.
        scale = _scale(wanted, row, image)
        default = _side(row, image.width * scale), _side(row, image.height * scale)
    width = wanted.width if wanted.width is not None else default[0]
    height = wanted.height if wanted.height is not None else default[1]
    return width, height


def _scale(wanted: Wanted, row: ModelRow, image: InputPicture) -> float:
    if wanted.width is not None:
        return wanted.width / image.width
    if wanted.height is not None:
        return wanted.height / image.height
    longest, shortest = max(image.width, image.height), min(image.width, image.height)
    if longest > row.max_size:
        return row.max_size / longest
    return max(1.0, row.min_size / shortest)


def _side(row: ModelRow, length: float) -> int:
    rounded = round(length / SIZE_MULTIPLE_PX) * SIZE_MULTIPLE_PX
    return min(row.max_size, max(row.min_size, rounded))


def _strength(wanted: Wanted) -> float:
    if wanted.strength is not None:
        return float(wanted.strength)
    return DEFAULT_STRENGTH if wanted.mask is None else DEFAULT_MASK_STRENGTH


def _is_side(row: ModelRow, value: int) -> bool:
    return row.min_size <= value <= row.max_size and value % SIZE_MULTIPLE_PX == 0


def _either(value: float | None, default: float) -> float:
    return default if value is None else float(value)
