"""The worker process: holds models on its device and draws what it is given.

Three exits. Told to (`Shutdown`), or the service is gone (the socket ends): status 0. A CUDA
error that poisons the context: status 70, because every later call would fail too; the service
starts a fresh process. Everything else is an answer, not an exit.

A thread reads the socket, so that a cancel is seen while the main thread computes; two more make
previews and save pictures (`outbox.py`). The loader imports torch, here and nowhere above; a stand-in
model that draws without it is up in a fraction of the time.
"""

from __future__ import annotations

import importlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from config.catalog import Catalog, ModelRow, load_catalog
from config.errors import FluxError
from models import safety
from models.families import mflux_command
from models.hub import on_disk
from models.types import (
    GenerationRequest,
    GenerationResult,
    ImageFile,
    ImageModel,
    LoadOptions,
    OutOfMemory,
    Stage,
)
from utils import images, input_pictures, log_context, logs, metadata
from utils.worker import compile_cache, events
from utils.worker import device as devices
from utils.worker.config import WorkerConfig
from utils.worker.drawing import JobInHand, Run
from utils.worker.inspection import Inspection
from utils.worker.outbox import Outbox
from utils.worker.quick_import import quick_import
from utils.worker.residents import Residents

log = logging.getLogger("worker")

EXIT_POISONED_CONTEXT = 70
# A worker that has had nothing to do for so long gives back what it kept for the next picture.
REST_SECONDS = 10.0


class Child:
    """The main thread's side: takes commands in order and answers with events. A `drawing.Workshop`."""

    def __init__(self, config: WorkerConfig, connection: socket.socket, catalog: Catalog) -> None:
        self.max_batch_size = config.max_batch_size
        self.previews_wanted = False
        self._config = config
        self._connection = connection
        self._catalog = mflux_command.quantised(catalog, config.mflux_quantize)
        self._send_lock = threading.Lock()
        self._commands: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._stopping = False
        self._model_id: str | None = None  # the one that was drawn with last
        self._look_around: Callable[[], None] = lambda: None
        self._parts: Any = None  # a `models.parts.Parts`
        self._device: devices.Device
        self._residents: Residents
        self._outbox = Outbox(_on_outbox_error)
        self._inspection = self._make_inspection()

    def _make_inspection(self) -> Inspection:
        weights, config = None, self._config
        if config.safety_checker != "off":
            hub = on_disk.hub_folder(config.models_dir)
            weights, _ = safety.find(config.safety_model, hub, self._catalog)
        return Inspection(weights, config.safety_checker, is_needed=config.is_looked_at)

    def run(self) -> None:
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        self._prepare()
        while not isinstance(command := self._next_command(), events.Shutdown):
            match command:
                case events.Run():
                    self._run(command)
                case events.Load():
                    self._load_alone(command.model)
                case events.Unload():
                    self._unload(command.model)
        self._outbox.flush()

    def _next_command(self) -> Any:
        try:
            return self._commands.get(timeout=REST_SECONDS)
        except queue.Empty:
            devices.trim_heap()  # what the last pictures left, kept for the next ones
            return self._commands.get()

    # Reader thread

    def _read(self) -> None:
        try:
            self._take_commands()
        except ConnectionError:
            pass  # as its end, but of a service that was killed before it read all that was sent
        except Exception:
            log.critical("reading failed", extra={"action": "reader_failed"}, exc_info=True)
            os._exit(1)  # deaf, it would hear neither a cancel nor the service's end
        os._exit(0)  # the service is gone: nobody would see a picture

    def _take_commands(self) -> None:
        with self._connection.makefile("rb") as lines:
            for line in lines:
                match command := events.decode(line):
                    case events.Cancel():
                        self._cancelled.add(command.job_id)
                    case events.Previews():
                        self.previews_wanted = command.wanted
                    case _:
                        self._stopping |= isinstance(command, events.Shutdown)
                        self._commands.put(command)

    # Main thread

    def _prepare(self) -> None:
        module, _, function = self._config.loader.partition(":")
        self._load_model = getattr(quick_import(module), function)
        torch = _torch()
        self._parts = importlib.import_module("models.parts").Parts() if torch else None
        if torch and self._config.threads:
            torch.set_num_threads(self._config.threads)
        self._device = devices.find(
            self._config.device, self._config.devices, self._config.model_memory_gib
        )
        self._residents = Residents(
            self._read_model,
            self._device,
            self._catalog,
            precision=self._config.precision,
            offload=self._config.offload,
            is_out_of_memory=self.is_out_of_memory,
            on_change=self._tell_holds,
        )
        versions = {
            name: importlib.metadata.version(name)
            for name in ("torch", "diffusers", "transformers")
        }
        self.send(
            events.Ready(
                device=self._device.describe(), versions=versions, safety=self._inspection.name
            )
        )

    def _run(self, command: events.Run) -> None:
        jobs = [
            JobInHand(id=job_id, request=GenerationRequest.from_json(request))
            for job_id, request in command.jobs
        ]
        # From this thread, before anything else: who dies at once must still be known to have begun.
        self.send(events.Begun(job_ids=[job.id for job in jobs]))
        ids = [job.id for job in jobs]
        with log_context.bound(job_id=log_context.of_jobs(ids)):
            Run(jobs, self).run()
        # A cancel that came too late must not hit a job of the same id that is tried again.
        self._cancelled.difference_update(job.id for job in jobs)
        self._inspection.forget([job.id for job in jobs])

    # For `drawing.Run`

    def model_for(
        self, model_id: str, on_loading: Callable[[], None], look_around: Callable[[], None]
    ) -> tuple[ImageModel, float]:
        model = self._residents.use(model_id)
        if model is None:
            on_loading()
            self._look_around = look_around
            try:
                return self._load(model_id)
            finally:
                self._look_around = lambda: None
        if self._model_id != model_id:
            self._announce(model_id, model, 0.0)
        return model, 0.0

    def open_inputs(self, request: GenerationRequest) -> tuple[Any, Any, tuple[Any, ...]]:
        size, folder = (request.width, request.height), self._config.inputs_dir
        image = request.image and input_pictures.open_image(folder, request.image, size)
        mask = request.mask and input_pictures.open_mask(folder, request.mask, size)
        references = tuple(
            input_pictures.open_reference(folder, index, sha256)
            for index, sha256 in enumerate(request.reference_images)
        )
        return image, mask, references

    @property
    def preview_seconds(self) -> float:
        return self._inspection.preview_seconds

    def seen(self, job_id: str, preview: bytes) -> bytes:
        return self._inspection.preview(job_id, preview)

    def is_cancelled(self, job_id: str) -> bool:
        return job_id in self._cancelled

    def leave_if_stopping(self) -> None:
        if self._stopping:
            self._outbox.flush()  # pictures that are drawn are not drawn again
            os._exit(0)  # the service puts the job back into the queue

    def give_back_memory(self) -> None:
        """Room for what was refused: models that are not drawn with go, and what nobody uses."""
        self._residents.keep_only(self._model_id)
        self._device.give_back()

    def is_out_of_memory(self, error: Exception) -> bool:
        if isinstance(error, OutOfMemory | MemoryError):
            return True
        torch = _torch()
        return bool(torch) and isinstance(error, torch.OutOfMemoryError)

    def is_poisonous(self, error: Exception) -> bool:
        """Whether the CUDA context cannot be used any more (CUDA's errors 710, 714, 718, 719 and their kin)."""
        if self.is_out_of_memory(error):
            return False
        torch = _torch()
        is_lost = bool(torch) and isinstance(error, torch.AcceleratorError)
        return is_lost or "CUDA error" in str(error)

    def die_poisoned(self, job_ids: Sequence[str]) -> None:
        log.exception(
            "the CUDA context is lost",
            extra={"action": "worker_poisoned", "job_id": log_context.of_jobs(job_ids)},
        )
        self._outbox.flush()  # pictures of earlier jobs are in main memory
        os._exit(EXIT_POISONED_CONTEXT)

    def report(self, call: Callable[[], None]) -> None:
        self._outbox.report(call)

    def end(self, event: Any) -> None:
        self._outbox.save(lambda: self.send(event))

    def save(self, job: JobInHand, index: int, image: Any, engine: str) -> None:
        self._outbox.save(lambda: self._save(job, index, image, engine))

    # Saving thread

    def _save(self, job: JobInHand, index: int, image: Any, engine: str) -> None:
        if job.is_over:
            return
        if not job.files:
            self.send(self._saving(job))
        started = time.perf_counter()
        try:
            job.files[index] = self._write(job, index, image, engine)
        except FluxError as error:
            return self._not_saved(job, error.code, error.message)
        except OSError as error:
            return self._not_saved(
                job,
                "storage",
                f"the picture could not be written: {error.strerror}; "
                "free some disk space or check the output folder",
            )
        except Exception as error:
            return self._not_saved(
                job,
                "internal",
                f"saving failed with {type(error).__name__}; the service's log has the details",
            )
        job.timings["save"] += (time.perf_counter() - started) * 1000
        if len(job.files) == job.request.num_images:
            job.is_over = True
            result = self._result(job, engine).to_json()
            self.send(events.Finished(job_id=job.id, model=job.request.model, result=result))

    def _not_saved(self, job: JobInHand, code: str, message: str) -> None:
        log.exception("cannot save", extra={"action": "save_failed", "job_id": job.id})
        if job.is_over:
            return  # the drawing thread ended it meanwhile
        job.is_over = True
        self.send(events.Failed(job_id=job.id, code=code, message=message))

    def _saving(self, job: JobInHand) -> events.Progress:
        return events.Progress(
            job_id=job.id, stage=Stage.SAVING, step=job.steps_done, steps=job.steps
        )

    def _write(self, job: JobInHand, index: int, image: Any, engine: str) -> ImageFile:
        """Encode a picture with its metadata and put it into staging. Raises OSError."""
        request, seed = job.request, job.request.seed + index
        verdict = self._inspection.judge(image)
        image = verdict.picture
        origin = metadata.Origin(
            precision=self._config.precision,
            engine=engine,
            model_reason=self._why(request.model),
            nsfw_flagged=verdict.is_flagged,
        )
        data = images.encode(image, request, seed=seed, origin=origin)
        filename = images.filename_of(job.id, index, request.output_format)
        images.stage(data, self._config.output_dir, filename)
        return ImageFile(
            filename=filename,
            seed=seed,
            width=image.width,
            height=image.height,
            size_bytes=len(data),
            nsfw_flagged=verdict.is_flagged,
        )

    def _result(self, job: JobInHand, engine: str) -> GenerationResult:
        return GenerationResult(
            images=tuple(job.files[index] for index in range(job.request.num_images)),
            engine=engine,
            precision=self._config.precision,
            device=self._device.describe(),
            timings_ms={name: round(value, 1) for name, value in job.timings.items()},
            loras=job.loras,
        )

    def _why(self, model_id: str) -> str:
        if model_id == self._config.default_model:
            return f"the default: {self._config.default_model_reason}"
        return "asked for by the request"

    # The model

    def _load_alone(self, model_id: str) -> None:
        try:
            model = self._residents.use(model_id)
            if model is not None:
                return self._announce(model_id, model, 0.0)
            self._look_around = self.leave_if_stopping
            self._load(model_id)
        except FluxError as error:
            self.send(events.LoadFailed(model=model_id, code=error.code, message=error.message))
        except Exception as error:
            if self.is_poisonous(error):
                os._exit(EXIT_POISONED_CONTEXT)
            log.exception("loading failed", extra={"action": "load_failed", "model": model_id})
            message = f"model {model_id} could not be loaded: {type(error).__name__}; the service's log has the details"
            self.send(events.LoadFailed(model=model_id, code="model_unavailable", message=message))
        finally:
            self._look_around = lambda: None

    def _load(self, model_id: str) -> tuple[ImageModel, float]:
        """Load a model, with room made for it first; returns it and ms."""
        self._model_id = None
        self.send(events.Loading(model=model_id))
        started = time.perf_counter()
        self._inspection.prepare()  # what it lacks is said before anything is drawn
        model = self._residents.load(model_id)
        milliseconds = (time.perf_counter() - started) * 1000
        self._announce(model_id, model, milliseconds)
        return model, milliseconds

    def _read_model(self, row: ModelRow, offload: bool | None) -> ImageModel:
        """The precision's loader, told what it must know."""

        def on_progress(what: str, fraction: float) -> None:
            self._look_around()
            self.send(events.Loading(model=row.id, what=what, fraction=round(fraction, 3)))

        options = LoadOptions(
            devices=self._device.names,
            models_dir=self._config.models_dir,
            loras_dir=self._config.loras_dir,
            allow_download=self._config.allow_download,
            reserve_bytes=self._config.reserve_bytes,
            offload=offload,
            engine=self._config.engine,
            fp8_weights=self._config.fp8_weights,
            compile=self._config.compile,
            mflux_quantize=self._config.mflux_quantize,
            parts=self._parts,
            on_progress=on_progress,
        )
        return self._load_model(row, options)

    def _announce(self, model_id: str, model: ImageModel, milliseconds: float) -> None:
        self._model_id = model_id
        self.send(
            events.Loaded(
                model=model_id,
                engine=model.engine,
                compute=model.compute,
                batches_exactly=model.batches_exactly,
                milliseconds=round(milliseconds, 1),
                memory_mib=self._device.memory_mib(),
            )
        )

    def _unload(self, model_id: str | None) -> None:
        self._residents.unload(model_id)
        if model_id in (None, self._model_id):
            self._model_id = None
        self.send(events.Unloaded(memory_mib=self._device.memory_mib()))

    def _tell_holds(self) -> None:
        models = [(held.model, round(held.gib, 3)) for held in self._residents.held]
        self.send(events.Holds(models=models, memory_mib=self._device.memory_mib()))

    def send(self, event: Any) -> None:
        with self._send_lock:
            self._connection.sendall(events.encode(event))


def _torch() -> Any:
    """torch, or None while no loader needed it."""
    return sys.modules.get("torch")


def _on_outbox_error(error: BaseException) -> None:
    """A thread beside the drawing failed in a way nobody expected: a worker that goes on would lose jobs."""
    if not isinstance(error, BrokenPipeError):  # the service is gone
        log.critical("saving failed", extra={"action": "outbox_failed"}, exc_info=error)
    os._exit(0 if isinstance(error, BrokenPipeError) else 1)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's; it says Shutdown
    config = WorkerConfig.from_argument(sys.argv[1])
    logs.configure_worker(config.name, config.log_level)
    connection = socket.socket(fileno=config.socket_fd)
    compile_cache.require_usable()
    try:
        Child(config, connection, load_catalog()).run()
    except BrokenPipeError:
        os._exit(0)  # the service is gone


if __name__ == "__main__":
    main()
