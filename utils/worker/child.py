"""The worker process: holds one model on its device and draws what it is given.

Three exits. Told to (`Shutdown`), or the service is gone (the socket ends): status 0. A CUDA
error that poisons the context: status 70, because every later call would fail too; the service
starts a fresh process. Everything else is an answer, not an exit.

A thread reads the socket, so that a cancel is seen while the main thread computes; two more make
previews and save pictures (`outbox.py`). The loader imports torch, here and nowhere above; a stand-in
model that draws without it is up in a fraction of the time.
"""

from __future__ import annotations

import ctypes
import gc
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

from config.catalog import Catalog, load_catalog
from config.errors import FluxError
from models.types import (
    GenerationRequest,
    GenerationResult,
    ImageFile,
    ImageModel,
    LoadOptions,
    OutOfMemory,
    Stage,
)
from utils import images, input_pictures, metadata
from utils.worker import events
from utils.worker.config import WorkerConfig
from utils.worker.drawing import JobInHand, Run
from utils.worker.outbox import Outbox

log = logging.getLogger("worker")

EXIT_POISONED_CONTEXT = 70


class Child:
    """The main thread's side: takes commands in order and answers with events. A `drawing.Workshop`."""

    def __init__(self, config: WorkerConfig, connection: socket.socket, catalog: Catalog) -> None:
        self.max_batch_size = config.max_batch_size
        self.previews_wanted = False
        self._config = config
        self._connection = connection
        self._catalog = catalog
        self._send_lock = threading.Lock()
        self._commands: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._stopping = False
        self._model: ImageModel | None = None
        self._model_id: str | None = None
        self._devices: list[str] = []
        self._outbox = Outbox(_on_outbox_error)

    def run(self) -> None:
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        self._prepare()
        while not isinstance(command := self._commands.get(), events.Shutdown):
            match command:
                case events.Run():
                    self._run(command)
                case events.Load():
                    self._load_alone(command.model)
                case events.Unload():
                    self._unload()
                    self.send(events.Unloaded(memory_mib=self._memory_mib()))
        self._outbox.flush()

    # Reader thread

    def _read(self) -> None:
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
        os._exit(0)  # the service is gone: nobody would see a picture

    # Main thread

    def _prepare(self) -> None:
        module, _, function = self._config.loader.partition(":")
        self._load_model = getattr(importlib.import_module(module), function)
        torch = _torch()
        if torch and self._config.threads:
            torch.set_num_threads(self._config.threads)
        if torch and torch.cuda.is_available():
            self._devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        else:
            self._devices = ["cpu"] * self._config.devices
        versions = {
            name: importlib.metadata.version(name)
            for name in ("torch", "diffusers", "transformers")
        }
        self.send(events.Ready(device=self._device_name(), versions=versions))

    def _run(self, command: events.Run) -> None:
        jobs = [
            JobInHand(id=job_id, request=GenerationRequest.from_json(request))
            for job_id, request in command.jobs
        ]
        # From this thread, before anything else: who dies at once must still be known to have begun.
        self.send(events.Begun(job_ids=[job.id for job in jobs]))
        Run(jobs, self).run()
        # A cancel that came too late must not hit a job of the same id that is tried again.
        self._cancelled.difference_update(job.id for job in jobs)

    # For `drawing.Run`

    def model_for(self, model_id: str, on_loading: Callable[[], None]) -> tuple[ImageModel, float]:
        milliseconds = 0.0
        if self._model_id != model_id:
            on_loading()
            milliseconds = self._load(model_id)
        assert self._model is not None
        return self._model, milliseconds

    def open_inputs(self, request: GenerationRequest) -> tuple[Any, Any, tuple[Any, ...]]:
        size, folder = (request.width, request.height), self._config.inputs_dir
        image = request.image and input_pictures.open_image(folder, request.image, size)
        mask = request.mask and input_pictures.open_mask(folder, request.mask, size)
        references = tuple(
            input_pictures.open_reference(folder, index, sha256)
            for index, sha256 in enumerate(request.reference_images)
        )
        return image, mask, references

    def is_cancelled(self, job_id: str) -> bool:
        return job_id in self._cancelled

    def leave_if_stopping(self) -> None:
        if self._stopping:
            self._outbox.flush()  # pictures that are drawn are not drawn again
            os._exit(0)  # the service puts the job back into the queue

    def give_back_memory(self) -> None:
        gc.collect()
        if (torch := _torch()) and self._is_on_gpu:
            for device in self._devices:
                with torch.cuda.device(device):
                    torch.cuda.empty_cache()

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
            "the CUDA context is lost", extra={"action": "worker_poisoned", "job_id": list(job_ids)}
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
        origin = metadata.Origin(
            precision=self._config.precision, engine=engine, model_reason=self._why(request.model)
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
        )

    def _result(self, job: JobInHand, engine: str) -> GenerationResult:
        return GenerationResult(
            images=tuple(job.files[index] for index in range(job.request.num_images)),
            engine=engine,
            precision=self._config.precision,
            device=self._device_name(),
            timings_ms={name: round(value, 1) for name, value in job.timings.items()},
            loras=job.loras,
        )

    def _why(self, model_id: str) -> str:
        if model_id == self._config.default_model:
            return f"the default: {self._config.default_model_reason}"
        return "asked for by the request"

    # The model

    def _load_alone(self, model_id: str) -> None:
        if self._model_id == model_id:
            return self._announce(0.0)
        try:
            self._load(model_id)
        except FluxError as error:
            self.send(events.LoadFailed(model=model_id, code=error.code, message=error.message))
        except Exception as error:
            if self.is_poisonous(error):
                os._exit(EXIT_POISONED_CONTEXT)
            log.exception("loading failed", extra={"action": "load_failed", "model": model_id})
            message = f"model {model_id} could not be loaded: {type(error).__name__}; the service's log has the details"
            self.send(events.LoadFailed(model=model_id, code="model_unavailable", message=message))

    def _load(self, model_id: str) -> float:
        """Load a model in place of the present one; returns ms."""
        self._unload()
        self.send(events.Loading(model=model_id))
        started = time.perf_counter()
        options = LoadOptions(
            devices=tuple(self._devices),
            models_dir=self._config.models_dir,
            loras_dir=self._config.loras_dir,
            allow_download=self._config.allow_download,
            engine=self._config.engine,
            fp8_weights=self._config.fp8_weights,
            mflux_quantize=self._config.mflux_quantize,
            on_progress=lambda what, fraction: self.send(
                events.Loading(model=model_id, what=what, fraction=round(fraction, 3))
            ),
        )
        self._model = self._load_model(self._catalog[model_id], options)
        self._model_id = model_id
        milliseconds = (time.perf_counter() - started) * 1000
        self._announce(milliseconds)
        return milliseconds

    def _announce(self, milliseconds: float) -> None:
        assert self._model is not None and self._model_id is not None
        self.send(
            events.Loaded(
                model=self._model_id,
                engine=self._model.engine,
                compute=self._model.compute,
                batches_exactly=self._model.batches_exactly,
                milliseconds=round(milliseconds, 1),
                memory_mib=self._memory_mib(),
            )
        )

    def _unload(self) -> None:
        if self._model is not None:
            self._model.unload()
        self._model = self._model_id = None
        self.give_back_memory()
        _trim_heap()

    def _memory_mib(self) -> int:
        """Memory the worker holds: allocated on its GPUs, or resident on the CPU, MiB."""
        if (torch := _torch()) and self._is_on_gpu:
            return sum(torch.cuda.memory_reserved(device) for device in self._devices) // 2**20
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

    def _device_name(self) -> str:
        if (torch := _torch()) and self._is_on_gpu:
            return " + ".join(torch.cuda.get_device_name(device) for device in self._devices)
        return " + ".join(self._devices)

    @property
    def _is_on_gpu(self) -> bool:
        return self._devices[0] != "cpu"

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


def _trim_heap() -> None:
    """Give freed memory back to the system; the C library would keep much of it."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return  # another C library, which has its own ways


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's; it says Shutdown
    config = WorkerConfig.from_argument(sys.argv[1])
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"%(asctime)s %(levelname)s worker {config.name}: %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    connection = socket.socket(fileno=config.socket_fd)
    try:
        Child(config, connection, load_catalog()).run()
    except BrokenPipeError:
        os._exit(0)  # the service is gone


if __name__ == "__main__":
    main()
