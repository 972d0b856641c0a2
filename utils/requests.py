"""From what a client asked to a request with nothing left open, or an error that names the field."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from config.catalog import (
    CLOUD_BACKEND,
    DEFAULT_WITHOUT_GPU,
    Catalog,
    DefaultModel,
    ModelRow,
    Way,
)
from config.errors import FieldError, InvalidRequest, ModelUnavailable, UnsupportedHardware
from config.settings import CloudSettings, ModelSettings
from models.families import mflux_command
from models.precision import PrecisionProfile, known_precisions, profile_of
from models.types import MAX_SEED, GenerationRequest, OutputFormat
from utils import cloud_limits, main_memory, model_memory
from utils.clock import Chance
from utils.gpu_manager import Placement, WorkerSlot
from utils.input_pictures import InputPicture, reference_field
from utils.lora_choice import LoraChoice
from utils.lora_manager import LoraManager
from utils.model_files import ModelFiles

DRAWN_SEED = -1
NO_FILES_RETRY_SECONDS = 60  # somebody has to fetch them
NO_CLOUD = CloudSettings()
NO_LIMITS = ModelSettings()
# How much of an image is drawn anew where the request does not say: diffusers' default, and with a
# mask all of what is white.
DEFAULT_STRENGTH = 0.6
DEFAULT_MASK_STRENGTH = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A client's request; None where it left the choice to us. Types and ranges are checked already.

    `image`, `mask` and `reference_images` are as they came: a picture's bytes, or text that stands for it.
    """

    prompt: str
    negative_prompt: str | None = None
    model: str | None = None
    backend: str | None = None
    precision: str | None = None
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
    reference_images: tuple[str | bytes, ...] = ()

    @property
    def ways(self) -> list[Way]:
        """What it brings beside its text, each as often as it brings it."""
        brought: list[Way] = []
        if self.image is not None:
            brought.append("image")
        if self.mask is not None:
            brought.append("mask")
        return brought + ["references"] * len(self.reference_images)


# The field that brings each way.
_FIELDS: Mapping[Way, str] = {
    "text": "prompt",
    "image": "image",
    "mask": "mask",
    "references": "reference_images",
}


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
        cloud: CloudSettings = NO_CLOUD,
        backend_defaults: Mapping[str, str] = MappingProxyType({}),
        models: ModelSettings = NO_LIMITS,
        files: ModelFiles | None = None,
    ) -> None:
        self._files = files
        self._models = models
        self.catalog = catalog
        self._backend_defaults = backend_defaults
        self._cloud = cloud
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
        references: Sequence[InputPicture] = (),
    ) -> GenerationRequest:
        """Raises InvalidRequest naming every field at fault, UnsupportedHardware, or why a LoRA is not used.

        Of LoRAs it knows what `LoraManager.prepare` has seen last. `image`, `mask` and `references` are
        the pictures that `wanted` stands for.
        """
        row = self.checked(wanted)
        if row.edits and image is not None:
            references, image = [image, *references], None
        if wrong := _faults_of_references(row, references, wanted):
            raise _invalid(wrong)
        width, height = _size(wanted, row, image, references)
        if row.cloud is not None and (wrong := cloud_limits.faults_of_size(row, width, height)):
            raise _invalid(wrong)
        steps, guidance_scale = wanted.num_inference_steps, wanted.guidance_scale
        if row.cloud is not None:  # what has no effect is not kept as if it had
            steps = None if row.cloud.steps is None else steps
            guidance_scale = None if row.cloud.guidance is None else guidance_scale
        seed = wanted.seed
        return GenerationRequest(
            prompt=wanted.prompt,
            negative_prompt=wanted.negative_prompt or None,
            model=row.id,
            backend=row.backend,
            width=width,
            height=height,
            num_inference_steps=row.num_inference_steps if steps is None else steps,
            guidance_scale=_either(guidance_scale, row.guidance_scale),
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
            reference_images=tuple(picture.sha256 for picture in references),
            precision=wanted.precision,
        )

    def checked(self, wanted: Wanted) -> ModelRow:
        """The model of a request that is sound but for its LoRAs; raises what `resolve` raises."""
        wrong = self.faults(
            model=wanted.model,
            backend=wanted.backend,
            precision=wanted.precision,
            width=wanted.width,
            height=wanted.height,
            seed=wanted.seed,
            num_images=wanted.num_images,
            guidance_scale=wanted.guidance_scale,
            num_inference_steps=wanted.num_inference_steps,
            ways=wanted.ways,
            strength=wanted.strength,
            negative_prompt=wanted.negative_prompt,
        )
        if wrong:
            raise _invalid(wrong)
        row = self.catalog[self._asked_for(wanted.model, wanted.backend)]
        self.require_runs_here(row)
        self.require_precision(row, wanted.precision)
        return row

    def why_not_here(self, row: ModelRow) -> str | None:
        """Why this service on this machine cannot draw with the model; None when one of its workers can."""
        return self.why_cannot_run(row) or self.why_no_files(row)

    def why_no_files(self, row: ModelRow) -> str | None:
        """Why the model's files are not here and do not come; None where nothing stands against it."""
        return None if self._files is None else self._files.why_not(row)

    def why_cannot_run(self, row: ModelRow) -> str | None:
        """Why no worker of this service could run the model, if its files were here; None when one could."""
        if row.cloud is not None:
            return self._why_no_cloud
        if row.memory_gib.get(self._profile.name) is None:
            ours = self._profile.title
            others = " and ".join(profile_of(name).title for name in row.memory_gib)
            instead = f"ask the {others} service" if others else "nothing here draws it"
            return f"{row.id} has no {ours} weights, and this service is {ours}; {instead}"
        reasons = [self.why_not_on(slot, row) for slot in self._placement.slots]
        return None if None in reasons else "; ".join(dict.fromkeys(filter(None, reasons)))

    def why_not_on(self, slot: WorkerSlot, row: ModelRow) -> str | None:
        """Why the worker of a slot cannot run the model; None when it can."""
        needed = row.memory_gib.get(self._profile.name)
        if needed is None:
            return f"{row.id} has no {self._profile.title} weights"
        if row.device == "apple":
            return mflux_command.why_not_here(row)
        if len(slot.gpus) < 2 and self._models.offload != "off":
            needed = row.offloaded_gib.get(self._profile.name, needed)
        budget = self._models.model_memory_gib
        if budget != "auto" and budget < needed:
            return (
                f"{row.id} needs {needed:g} GiB in {self._profile.title}, and FLUX_MODEL_MEMORY_GIB "
                f"allows {budget:g}"
            )
        if slot.is_apple:
            return self._why_not_on_apple(row)
        if not slot.gpus:
            if row.device == "any":
                return self._why_no_room(row, needed * model_memory.WIDENING)
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

    @functools.cached_property
    def _main_memory_gib(self) -> float:
        """Read once: files are opened for it, and every request asks."""
        return main_memory.total_gib()

    def _why_no_room(self, row: ModelRow, needed: float) -> str | None:
        there = self._main_memory_gib
        if needed <= there:
            return None
        return f"{row.id} needs {needed:g} GiB of main memory on a CPU, and there are {there:.1f}"

    def _why_not_on_apple(self, row: ModelRow) -> str | None:
        """Of its memory macOS gives the GPU a part, and weights have nowhere else to wait."""
        if self._profile.why_not_mps and row.device == "gpu":
            return f"{row.id}: {self._profile.why_not_mps}"
        needed, there = row.memory_gib[self._profile.name], self._main_memory_gib
        if needed <= there * model_memory.APPLE_SHARE:
            return None
        return (
            f"{row.id} needs {needed:g} GiB of GPU memory, and macOS gives Apple's GPU about "
            f"{there * model_memory.APPLE_SHARE:.0f} of this machine's {there:.0f} GiB"
        )

    @property
    def _why_no_cloud(self) -> str | None:
        if self._cloud.bfl_api_key.get_secret_value():
            return None
        return "BFL's cloud needs a key: set SD_BFL_API_KEY (or FLUX_BFL_API_KEY) and start the service again"

    @property
    def cloud_models(self) -> list[str]:
        """The models that BFL's cloud draws for this service."""
        if self._why_no_cloud is not None:
            return []
        return [row.id for row in self.catalog if row.cloud is not None]

    def models_on(self, slot: WorkerSlot) -> list[str]:
        """The models that the worker of a slot can run."""
        return [row.id for row in self.catalog if self.why_not_on(slot, row) is None]

    def require_runs_here(self, row: ModelRow) -> None:
        """Raises UnsupportedHardware or ModelUnavailable, saying why it does not and what does."""
        reason = self.why_cannot_run(row)
        if reason is not None and row.cloud is not None:
            raise ModelUnavailable(
                f"model {row.id}: {reason}", fields=[FieldError("model", reason)]
            )
        if reason is not None:
            raise UnsupportedHardware(
                reason + self._instead(), fields=[FieldError("model", reason)]
            )
        if reason := self.why_no_files(row):
            raise ModelUnavailable(
                reason + self._instead(),
                fields=[FieldError("model", reason)],
                retry_after_seconds=NO_FILES_RETRY_SECONDS,
            )

    def precisions_of(self, row: ModelRow) -> list[str]:
        """What a request for the model may name as its precision."""
        is_ours = row.cloud is None and self._profile.name in row.memory_gib
        return [self._profile.name] if is_ours else []

    def require_precision(self, row: ModelRow, precision: str | None) -> None:
        """Raises UnsupportedHardware where a precision that there is cannot be had now."""

    def _why_not_in(self, row: ModelRow, precision: str) -> str | None:
        """What the service has against drawing a model in a precision that there is."""
        if precision == self._profile.name:
            return None
        ours, other = self._profile.title, profile_of(precision).title
        return f"this service draws in {ours}; ask the {other} service, or a fleet that has such machines"

    def _fault_of_precision(self, row: ModelRow, precision: str) -> FieldError | None:
        if row.cloud is not None:
            why: str | None = (
                f"model {row.id} is drawn by BFL's cloud, which has none to choose; leave it out"
            )
        elif precision not in known_precisions():
            there = ", ".join(known_precisions())
            why = f"there is no precision {precision[:64]!r}; there is: {there}"
        else:
            why = self._why_not_in(row, precision)
        return None if why is None else FieldError("precision", why)

    def _instead(self) -> str:
        runnable = [row.id for row in self.catalog if self.why_not_here(row) is None]
        return f"; models that run here: {', '.join(runnable)}" if runnable else ""

    def model(self, model_id: str) -> ModelRow:
        row = self.catalog.get(model_id)
        if row is None:
            raise InvalidRequest.of("model", self._no_model(model_id))
        return row

    def _that_runs_here(self, default: DefaultModel) -> DefaultModel:
        """A default that nobody chose and that this machine cannot run gives way to the small model.

        Not one whose files are missing: those may come, and nothing is drawn in its place meanwhile.
        """
        reason = self.why_cannot_run(self.catalog[default.id])
        small = self.catalog.get(DEFAULT_WITHOUT_GPU)
        if default.is_configured or reason is None or small is None or self.why_cannot_run(small):
            return default
        return DefaultModel(
            small.id, f"{reason}, so the small model that ships with the project draws"
        )

    def faults(
        self,
        *,
        model: str | None = None,
        backend: str | None = None,
        precision: str | None = None,
        width: int | None = None,
        height: int | None = None,
        seed: int | None = None,
        num_images: int = 1,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        ways: Sequence[Way] | None = None,
        strength: float | None = None,
        negative_prompt: str | None = None,
    ) -> list[FieldError]:
        """What the catalog and the model have against these values; None is a choice left to us.

        `ways` are what the request brings beside its text, as often as it brings it; None: not known.
        """
        wrong = []
        row = self.catalog.get(self._asked_for(model, backend))
        if row is None:
            wrong.append(FieldError("model", self._no_model(model or "")))
        backends = sorted({other.backend for other in self.catalog})
        if backend is not None and backend not in backends:
            there = f"there is no backend {backend[:64]!r} here; there is: {', '.join(backends)}"
            wrong.append(FieldError("backend", there))
        elif backend is not None and row is not None and backend != row.backend:
            belongs = f"model {row.id} belongs to backend {row.backend}, not {backend}"
            wrong.append(FieldError("backend", belongs))
        if precision is not None and row is not None:
            wrong += filter(None, [self._fault_of_precision(row, precision)])
        for name, value in (("width", width), ("height", height)):
            if value is not None and row is not None and not _is_side(row, value):
                message = (
                    f"{value} is not a multiple of {row.size_multiple} from {row.min_size} to {row.max_size}, "
                    f"which model {row.id} draws"
                )
                wrong.append(FieldError(name, message))
        if row is not None and (guidance_scale or 0.0) > row.max_guidance_scale:
            message = (
                f"{guidance_scale:g} is over {row.max_guidance_scale:g}, the most of model {row.id}"
            )
            wrong.append(FieldError("guidance_scale", message))
        if row is not None and ways is not None:
            wrong += self._faults_of_ways(row, ways)
        if row is not None and row.cloud is not None:
            wrong += cloud_limits.faults_of_values(
                row, steps=num_inference_steps, guidance_scale=guidance_scale, strength=strength
            )
            if None not in (width, height) and not wrong:
                wrong += cloud_limits.faults_of_size(row, width, height)
        if row is not None and row.edits and strength is not None:
            message = f"model {row.id} edits the whole image by the prompt; leave strength out"
            wrong.append(FieldError("strength", message))
        if row is not None and not row.negative_prompt and negative_prompt:
            able = [other.id for other in self.catalog if other.negative_prompt]
            message = f"model {row.id} takes none; models that do: {', '.join(able) or 'none'}"
            wrong.append(FieldError("negative_prompt", message))
        if seed is not None and seed != DRAWN_SEED and seed + num_images - 1 > MAX_SEED:
            wrong.append(FieldError("seed", f"seed + num_images - 1 is over {MAX_SEED}"))
        return wrong

    def _faults_of_ways(self, row: ModelRow, ways: Sequence[Way]) -> list[FieldError]:
        """What a model has against what a request brings, or lacks."""
        wrong = []
        for way in dict.fromkeys(ways):
            if way not in row.ways:
                able = [other.id for other in self.catalog if way in other.ways]
                message = f"model {row.id} takes none; models that do: {', '.join(able) or 'none'}"
                wrong.append(FieldError(_FIELDS[way], message))
        for way in row.requires:
            if way not in ways:
                message = f"is missing; model {row.id} draws only with {' and '.join(row.requires)}"
                wrong.append(FieldError(_FIELDS[way], message))
        looked_at = ways.count("references") + (row.edits and "image" in ways)
        if "references" in row.ways and looked_at > row.max_references:
            message = f"are {looked_at} pictures; model {row.id} takes {row.max_references}"
            if row.edits and "image" in ways:
                message = f"are {looked_at} pictures with image; model {row.id} takes {row.max_references}"
            wrong.append(FieldError("reference_images", message))
        return wrong

    def prefer(self, backend: str, why: str) -> None:
        """Requests that name neither model nor backend are for this backend from now on."""
        default = self.default_of(backend)
        self.default = DefaultModel(default, why, is_configured=True)

    def default_of(self, backend: str) -> str:
        """The model of a request that names a backend alone."""
        return self._asked_for(None, backend)

    def _asked_for(self, model: str | None, backend: str | None) -> str:
        """The id of the model a request is for: a backend alone means its first that runs here."""
        if backend == CLOUD_BACKEND or (model is not None and model not in self.catalog):
            named = self._cloud.bfl_default_model if model is None else model
            of_cloud = self.catalog.of_cloud(named)
            return named if of_cloud is None else of_cloud.id
        if model is not None:
            return model
        if backend in self._backend_defaults:
            return self._backend_defaults[backend]
        rows = [row for row in self.catalog if row.backend == backend]
        if not rows or self.catalog[self.default.id] in rows:
            return self.default.id
        return next((row.id for row in rows if self.why_not_here(row) is None), rows[0].id)

    def _no_model(self, model_id: str) -> str:
        return f"there is no model {model_id[:64]!r}; GET /api/models lists: {', '.join(self.catalog.ids)}"


def _invalid(wrong: Sequence[FieldError]) -> InvalidRequest:
    words = "; ".join(f"{error.field}: {error.message}" for error in wrong)
    return InvalidRequest(words, fields=wrong)


def _faults_of_references(
    row: ModelRow, references: Sequence[InputPicture], wanted: Wanted
) -> list[FieldError]:
    """Pictures that the model cannot look at for their shape."""
    fields = ["image"] if row.edits and wanted.image is not None else []
    fields += [reference_field(index) for index in range(len(references))]
    wrong = []
    for field, picture in zip(fields, references, strict=False):
        shorter, longer = sorted((picture.width, picture.height))
        size = f"has {picture.width}x{picture.height} px"
        if shorter < row.min_reference_px:
            least = f"no side may have less than {row.min_reference_px}"
            wrong.append(FieldError(field, f"{size}; for model {row.id} {least}"))
        elif longer > row.max_reference_ratio * shorter:
            most = f"a side may be {row.max_reference_ratio:g} times the other at most; cut it"
            wrong.append(FieldError(field, f"{size}; for model {row.id} {most}"))
    return wrong


def _size(
    wanted: Wanted, row: ModelRow, image: InputPicture | None, references: Sequence[InputPicture]
) -> tuple[int, int]:
    """Width and height in px: as asked for, else the image's own within the model's limits, else the model's.

    With references and no image it is the model's area in the shape of the first.
    """
    if image is None and not references:
        default = row.default_width, row.default_height
    elif image is None:
        scale = _scale_to_area(wanted, row, references[0])
        default = _side(row, references[0].width * scale), _side(row, references[0].height * scale)
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


def _scale_to_area(wanted: Wanted, row: ModelRow, reference: InputPicture) -> float:
    if wanted.width is not None:
        return wanted.width / reference.width
    if wanted.height is not None:
        return wanted.height / reference.height
    area = row.default_width * row.default_height
    return (area / (reference.width * reference.height)) ** 0.5


def _side(row: ModelRow, length: float) -> int:
    rounded = round(length / row.size_multiple) * row.size_multiple
    return min(row.max_size, max(row.min_size, rounded))


def _strength(wanted: Wanted) -> float:
    if wanted.strength is not None:
        return float(wanted.strength)
    return DEFAULT_STRENGTH if wanted.mask is None else DEFAULT_MASK_STRENGTH


def _is_side(row: ModelRow, value: int) -> bool:
    return row.min_size <= value <= row.max_size and value % row.size_multiple == 0


def _either(value: float | None, default: float) -> float:
    return default if value is None else float(value)
