"""One `Run` inside the worker: its jobs, drawn together where they can be, each with its own end.

A job's pictures and those of the jobs beside it are drawn in chunks. What goes wrong in a chunk of
several is tried again one by one, so that nobody pays for a neighbour. Out of memory is tried once
more with less (`frugal`). Every job ends in exactly one event: Finished, Failed or WasCancelled.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from config.errors import FluxError
from models.types import (
    EXACT_BATCH_SIZE,
    Cancelled,
    Drawing,
    GenerationRequest,
    ImageFile,
    ImageModel,
    LoraApplied,
    PreviewOf,
    Stage,
)
from utils import log_context
from utils.worker import events

log = logging.getLogger("worker")

# A preview is made at most this often; a sampler with short steps would make more than anyone sees.
PREVIEW_SECONDS = 0.1


class Workshop(Protocol):
    """What a run needs of its worker."""

    max_batch_size: int
    previews_wanted: bool
    preview_seconds: float  # at least so much between two previews

    def seen(self, job_id: str, preview: bytes) -> bytes:
        """A preview as it may be seen."""

    def model_for(
        self, model_id: str, on_loading: Callable[[], None], look_around: Callable[[], None]
    ) -> tuple[ImageModel, float]:
        """The model, loaded, and the ms that took. `look_around` is called meanwhile, and may raise Cancelled."""

    def open_inputs(self, request: GenerationRequest) -> tuple[Any, Any, tuple[Any, ...]]:
        """The request's image, mask and references as `Drawing` has them. Raises FluxError for a damaged one."""

    def is_cancelled(self, job_id: str) -> bool: ...

    def leave_if_stopping(self) -> None: ...

    def give_back_memory(self) -> None: ...

    def is_out_of_memory(self, error: Exception) -> bool: ...

    def is_poisonous(self, error: Exception) -> bool: ...

    def die_poisoned(self, job_ids: Sequence[str]) -> None: ...

    def send(self, event: Any) -> None: ...

    def report(self, call: Callable[[], None]) -> None: ...

    def save(self, job: JobInHand, index: int, image: Any, engine: str) -> None:
        """Hand a picture to the saving thread, which ends the job after its last one."""

    def end(self, event: Any) -> None:
        """Send a job's end after everything that was handed to the saving thread before."""


@dataclass(slots=True, kw_only=True)
class JobInHand:
    """A job on its way through the worker; `files` fills up as its pictures are saved."""

    id: str
    request: GenerationRequest
    image: Any = None
    mask: Any = None
    references: tuple[Any, ...] = ()
    steps_done: int = 0
    is_over: bool = False  # its end was sent
    timings: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("load", "lora", "encode", "denoise", "decode", "save"), 0.0
        )
    )
    loras: tuple[LoraApplied, ...] = ()
    files: dict[int, ImageFile] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return self.request.steps_to_run * self.request.num_images


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One picture of one job."""

    job: JobInHand
    index: int

    @property
    def drawing(self) -> Drawing:
        return Drawing(
            request=self.job.request,
            seed=self.job.request.seed + self.index,
            image=self.job.image,
            mask=self.job.mask,
            references=self.job.references,
        )


class Run:
    """The jobs of one `events.Run`, which agree in their batch key when there are several."""

    def __init__(self, jobs: Sequence[JobInHand], workshop: Workshop) -> None:
        self._jobs = jobs
        self._workshop = workshop
        self._previewed = 0.0
        self._handed_over = False

    def run(self) -> None:
        """Draw everything; returns when the last picture was handed to the saving thread."""
        try:
            model = self._load()
        except Cancelled:
            return  # every job was, and each was told
        except Exception as error:
            self._fail(self._jobs, error)
            return
        if model is None or not self._use_loras(model):
            return
        self._open_inputs()
        chunks = list(self._chunks(model))
        for number, chunk in enumerate(chunks):
            units = [unit for unit in chunk if not self._is_gone(unit.job)]
            if units:
                self._draw(model, units, is_last=number + 1 == len(chunks))

    def _load(self) -> ImageModel | None:
        """None when nobody waits for it any more."""
        first = self._jobs[0]
        if all([self._is_gone(job) for job in self._jobs]):
            return None
        model, milliseconds = self._workshop.model_for(
            first.request.model,
            self._tell_loading,
            lambda: self._look_around([Unit(job=job, index=0) for job in self._jobs]),
        )
        for job in self._jobs:
            job.timings["load"] = milliseconds
        return model

    def _use_loras(self, model: ImageModel) -> bool:
        """Have the model draw with the jobs' LoRAs and no others; False if it cannot: that is their end."""
        started = time.perf_counter()
        try:
            applied = model.use_loras(self._jobs[0].request.loras)
        except Exception as error:
            is_short_of_memory = self._workshop.is_out_of_memory(error)
            if not is_short_of_memory:
                self._fail(self._jobs, error)
            error.__traceback__ = None  # it keeps the tensors alive
        else:
            self._note_loras(applied, (time.perf_counter() - started) * 1000)
            return True
        if is_short_of_memory:
            self._workshop.give_back_memory()
            words = "the LoRAs do not fit into the device's memory beside the model; ask for fewer"
            for job in self._jobs:
                self._end(job, events.Failed(job_id=job.id, code="oom", message=words))
        return False

    def _open_inputs(self) -> None:
        """Decode the pictures that jobs bring; a damaged one is the end of its own job alone."""
        for job in self._jobs:
            if job.request.inputs and not self._is_gone(job):
                try:
                    job.image, job.mask, job.references = self._workshop.open_inputs(job.request)
                except Exception as error:
                    self._fail([job], error)

    def _note_loras(self, applied: Sequence[LoraApplied], milliseconds: float) -> None:
        for job in self._jobs:
            job.timings["lora"] = milliseconds
            # Jobs agree in contents and weights; each has its own names for them.
            job.loras = tuple(
                replace(one, name=ref.name)
                for one, ref in zip(applied, job.request.loras, strict=True)
            )

    def _chunks(self, model: ImageModel) -> Iterator[list[Unit]]:
        size = self._workshop.max_batch_size or (EXACT_BATCH_SIZE if model.batches_exactly else 1)
        units = [
            Unit(job=job, index=i) for job in self._jobs for i in range(job.request.num_images)
        ]
        for start in range(0, len(units), size):
            yield units[start : start + size]

    def _draw(self, model: ImageModel, units: list[Unit], *, is_last: bool) -> None:
        """Draw a chunk and hand its pictures on; its failures are its jobs' ends."""
        try:
            return self._attempt(model, units, is_last=is_last)
        except Cancelled:
            return  # every job of the chunk was, and each was told
        except Exception as error:
            self._die_if_poisoned(units, error)
            is_short_of_memory, failure = self._workshop.is_out_of_memory(error), error
            if len(units) == 1 and not is_short_of_memory:
                return self._fail([units[0].job], failure)
            failure.__traceback__ = None  # it keeps the tensors alive
        if is_short_of_memory:
            self._workshop.give_back_memory()
        if len(units) > 1:
            for number, unit in enumerate(units):
                if not self._is_gone(unit.job):
                    self._draw(model, [unit], is_last=is_last and number + 1 == len(units))
            return
        self._draw_frugally(model, units[0], is_last=is_last)

    def _draw_frugally(self, model: ImageModel, unit: Unit, *, is_last: bool) -> None:
        log.warning(
            "out of memory, once more with less",
            extra={"action": "oom_retry", "job_id": unit.job.id},
        )
        try:
            return self._attempt(model, [unit], is_last=is_last, frugal=True)
        except Cancelled:
            return
        except Exception as error:
            self._die_if_poisoned([unit], error)
            if not self._workshop.is_out_of_memory(error):
                return self._fail([unit.job], error)
        self._workshop.give_back_memory()
        request = unit.job.request
        self._end(
            unit.job,
            events.Failed(
                job_id=unit.job.id,
                code="oom",
                message=f"{request.width}x{request.height} px does not fit into the device's memory, "
                "also not in tiles; ask for a smaller size",
            ),
        )

    def _attempt(
        self, model: ImageModel, units: list[Unit], *, is_last: bool, frugal: bool = False
    ) -> None:
        before = {unit.job.id: unit.job.steps_done for unit in units}
        request = units[0].job.request

        told: Stage | None = None

        def on_stage(stage: Stage) -> None:
            nonlocal told
            self._look_around(units)
            if stage is told:
                return
            told = stage
            self._announce(stage, {unit.job.id: unit.job for unit in units}.values())
            if stage is Stage.DECODING and is_last and not self._handed_over:
                self._handed_over = True  # once, also when the chunk is tried again
                self._workshop.send(events.Handover())

        def on_step(step: int, steps: int, preview: PreviewOf | None) -> None:
            self._look_around(units)
            for job_id, done in before.items():
                job = next(unit.job for unit in units if unit.job.id == job_id)
                job.steps_done = done + step * sum(unit.job.id == job_id for unit in units)
            self._report_step(units, preview)

        started = time.perf_counter()
        try:
            images, ms = model.generate(
                [unit.drawing for unit in units], on_stage=on_stage, on_step=on_step, frugal=frugal
            )
        except BaseException:
            for unit in units:
                unit.job.steps_done = before[unit.job.id]
            raise
        milliseconds = (time.perf_counter() - started) * 1000
        self._workshop.send(
            events.Drawn(
                model=request.model,
                width=request.width,
                height=request.height,
                pictures=len(units),
                milliseconds=round(milliseconds, 1),
            )
        )
        for unit, image in zip(units, images, strict=True):
            # A batch takes its time for all of them; each job is told its share.
            for name, value in ms.items():
                unit.job.timings[name] += value / len(units)
            if not self._is_gone(unit.job):
                self._workshop.save(unit.job, unit.index, image, model.engine)

    def _look_around(self, units: Sequence[Unit]) -> None:
        """Between two steps: whether the worker must go, or nobody wants these pictures any more."""
        self._workshop.leave_if_stopping()
        if all([self._is_gone(unit.job) for unit in units]):
            raise Cancelled

    def _is_gone(self, job: JobInHand) -> bool:
        """Whether the job has ended; one that was cancelled meanwhile ends here."""
        if not job.is_over and self._workshop.is_cancelled(job.id):
            self._end(job, events.WasCancelled(job_id=job.id))
        return job.is_over

    def _tell_loading(self) -> None:
        """In this thread, so before the model's own word: whoever begins to listen after that is told by the jobs' stage."""
        for job in self._jobs:
            if not job.is_over:
                self._progress(job, Stage.LOADING)()

    def _announce(self, stage: Stage, jobs: Any = None) -> None:
        for job in self._jobs if jobs is None else jobs:
            if not job.is_over:
                self._workshop.report(self._progress(job, stage))

    def _report_step(self, units: Sequence[Unit], preview: PreviewOf | None) -> None:
        """One report for each job, with a preview of its last picture in the chunk."""
        now = time.perf_counter()
        is_due = self._workshop.previews_wanted and (
            now - self._previewed >= max(PREVIEW_SECONDS, self._workshop.preview_seconds)
        )
        is_shown = is_due and preview is not None
        if is_shown:
            self._previewed = now
        for position, unit in enumerate(units):
            is_last_of_job = position + 1 == len(units) or units[position + 1].job is not unit.job
            if is_last_of_job and not unit.job.is_over:
                picture = (lambda index=position: preview(index)) if is_shown else None
                self._workshop.report(self._progress(unit.job, Stage.DENOISING, picture))

    def _progress(
        self, job: JobInHand, stage: Stage, picture: Callable[[], bytes] | None = None
    ) -> Callable[[], None]:
        step = job.steps_done

        def send() -> None:
            preview = None if picture is None else self._encoded(picture, job.id)
            self._workshop.send(
                events.Progress(
                    job_id=job.id, stage=stage, step=step, steps=job.steps, preview=preview
                )
            )

        return send

    def _die_if_poisoned(self, units: Sequence[Unit], error: Exception) -> None:
        if self._workshop.is_poisonous(error):
            self._workshop.die_poisoned([unit.job.id for unit in units])

    def _fail(self, jobs: Sequence[JobInHand], error: Exception) -> None:
        if isinstance(error, FluxError):
            code, message = error.code, error.message
        else:
            ids = [job.id for job in jobs]
            self._die_if_poisoned([Unit(job=job, index=0) for job in jobs], error)
            log.error(
                "drawing failed",
                extra={"action": "job_failed", "job_id": log_context.of_jobs(ids)},
                exc_info=error,
            )
            code = "internal"
            message = (
                f"drawing failed with {type(error).__name__}; the service's log has the details"
            )
        for job in jobs:
            if not job.is_over:
                self._end(job, events.Failed(job_id=job.id, code=code, message=message))

    def _end(self, job: JobInHand, event: Any) -> None:
        job.is_over = True
        self._workshop.end(event)

    def _encoded(self, picture: Callable[[], bytes], job_id: str) -> str | None:
        """The preview in base64. One that cannot be made is missed by nobody but the log."""
        try:
            return base64.b64encode(self._workshop.seen(job_id, picture())).decode()
        except Exception:
            log.exception("no preview", extra={"action": "preview_failed", "job_id": job_id})
            return None
