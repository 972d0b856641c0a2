"""The worker process: holds one model on one device and draws one job at a time.

Three exits. Told to (`Shutdown`), or the service is gone (the socket ends): status 0. A CUDA
error that poisons the context: status 70, because every later call would fail too; the service
starts a fresh process. Everything else is an answer, not an exit.

A thread reads the socket, so that a cancel is seen while the main thread computes. torch is
imported here and nowhere above.
"""

from __future__ import annotations

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
from typing import Any

from config.catalog import Catalog, load_catalog
from config.errors import FluxError, StorageUnavailable
from models.types import (
    Cancelled,
    GenerationRequest,
    GenerationResult,
    ImageFile,
    ImageModel,
    OutOfMemory,
    Stage,
)
from utils import images, metadata
from utils.worker import events
from utils.worker.config import WorkerConfig

log = logging.getLogger("worker")

EXIT_POISONED_CONTEXT = 70


class Child:
    """The main thread's side: takes commands in order and answers with events."""

    def __init__(self, config: WorkerConfig, connection: socket.socket, catalog: Catalog) -> None:
        self._config = config
        self._connection = connection
        self._catalog = catalog
        self._send_lock = threading.Lock()
        self._commands: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._stopping = False
        self._model: ImageModel | None = None
        self._model_id: str | None = None
        self._device: Any = None

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
                    self._send(events.Unloaded(memory_mib=self._memory_mib()))

    # Reader thread

    def _read(self) -> None:
        with self._connection.makefile("rb") as lines:
            for line in lines:
                command = events.decode(line)
                if isinstance(command, events.Cancel):
                    self._cancelled.add(command.job_id)
                else:
                    self._stopping |= isinstance(command, events.Shutdown)
                    self._commands.put(command)
        os._exit(0)  # the service is gone: nobody would see a picture

    # Main thread

    def _prepare(self) -> None:
        import torch

        if self._config.threads:
            torch.set_num_threads(self._config.threads)
        self._device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        module, _, function = self._config.loader.partition(":")
        self._load_model = getattr(importlib.import_module(module), function)
        versions = {
            name: importlib.metadata.version(name)
            for name in ("torch", "diffusers", "transformers")
        }
        self._send(events.Ready(device=self._device_name(), versions=versions))

    def _run(self, command: events.Run) -> None:
        job_id = command.job_id
        try:
            outcome = self._outcome(job_id, GenerationRequest.from_json(command.request))
        finally:
            self._cancelled.discard(job_id)
        if not isinstance(outcome, events.Finished):
            images.discard_staged(self._config.output_dir, job_id)
        self._send(outcome)

    def _outcome(self, job_id: str, request: GenerationRequest) -> Any:
        """Draw the job; every way it can end is one event."""
        try:
            return events.Finished(job_id=job_id, result=self._draw(job_id, request).to_json())
        except Cancelled:
            return events.WasCancelled(job_id=job_id)
        except FluxError as error:
            return events.Failed(job_id=job_id, code=error.code, message=error.message)
        except Exception as error:
            if _is_poisonous(error):
                log.exception(
                    "the CUDA context is lost",
                    extra={"action": "worker_poisoned", "job_id": job_id},
                )
                os._exit(EXIT_POISONED_CONTEXT)
            if not _is_out_of_memory(error):
                log.exception("the job failed", extra={"action": "job_failed", "job_id": job_id})
                return events.Failed(
                    job_id=job_id,
                    code="internal",
                    message=f"drawing failed with {type(error).__name__}; the service's log has the details",
                )
        # Out of memory, outside the except block: its traceback would keep the tensors alive.
        self._give_back_memory()
        return events.Failed(
            job_id=job_id,
            code="oom",
            message=f"{request.width}x{request.height} px does not fit into the device's memory; ask for a smaller size",
        )

    def _draw(self, job_id: str, request: GenerationRequest) -> GenerationResult:
        steps = request.num_inference_steps * request.num_images
        done = 0

        def on_stage(stage: Stage) -> None:
            if self._stopping:
                os._exit(0)  # the service puts the job back into the queue
            if job_id in self._cancelled:
                raise Cancelled
            self._send(events.Progress(job_id=job_id, stage=stage, step=done, steps=steps))

        def on_step(step: int, _steps: int) -> None:
            nonlocal done
            done += 1
            on_stage(Stage.DENOISING)

        timings = {
            "load": 0.0,
            "encode": 0.0,
            "denoise": 0.0,
            "decode": 0.0,
            "save": 0.0,
        }
        if self._model_id != request.model:
            on_stage(Stage.LOADING)
            timings["load"] = self._load(request.model)
        model = self._model
        assert model is not None

        files = []
        for index in range(request.num_images):
            seed = request.seed + index
            image, ms = model.generate(request, seed=seed, on_stage=on_stage, on_step=on_step)
            on_stage(Stage.SAVING)
            started = time.perf_counter()
            files.append(self._save(image, job_id, index, request, seed, model.engine))
            ms["save"] = (time.perf_counter() - started) * 1000
            for name, value in ms.items():
                timings[name] += value
        if job_id in self._cancelled:
            raise Cancelled
        return GenerationResult(
            images=tuple(files),
            engine=model.engine,
            precision=self._config.precision,
            device=self._device_name(),
            timings_ms={name: round(value, 1) for name, value in timings.items()},
        )

    def _save(
        self,
        image: Any,
        job_id: str,
        index: int,
        request: GenerationRequest,
        seed: int,
        engine: str,
    ) -> ImageFile:
        origin = metadata.Origin(
            precision=self._config.precision, engine=engine, model_reason=self._why(request.model)
        )
        data = images.encode(image, request, seed=seed, origin=origin)
        filename = images.filename_of(job_id, index, request.output_format)
        try:
            images.stage(data, self._config.output_dir, filename)
        except OSError as error:
            log.exception("cannot write", extra={"action": "save_failed", "job_id": job_id})
            raise StorageUnavailable(
                f"the picture could not be written: {error.strerror}; free some disk space or check the output folder"
            ) from error
        return ImageFile(
            filename=filename,
            seed=seed,
            width=image.width,
            height=image.height,
            size_bytes=len(data),
        )

    def _why(self, model_id: str) -> str:
        if model_id == self._config.default_model:
            return f"the default: {self._config.default_model_reason}"
        return "asked for by the request"

    def _load_alone(self, model_id: str) -> None:
        if self._model_id == model_id:
            return self._announce(0.0)
        try:
            self._load(model_id)
        except FluxError as error:
            self._send(events.LoadFailed(model=model_id, code=error.code, message=error.message))
        except Exception as error:
            if _is_poisonous(error):
                os._exit(EXIT_POISONED_CONTEXT)
            log.exception("loading failed", extra={"action": "load_failed", "model": model_id})
            message = f"model {model_id} could not be loaded: {type(error).__name__}; the service's log has the details"
            self._send(events.LoadFailed(model=model_id, code="model_unavailable", message=message))

    def _load(self, model_id: str) -> float:
        """Load a model in place of the present one; returns ms."""
        self._unload()
        self._send(events.Loading(model=model_id))
        started = time.perf_counter()
        self._model = self._load_model(
            self._catalog[model_id],
            device=self._device,
            models_dir=self._config.models_dir,
            allow_download=self._config.allow_download,
        )
        self._model_id = model_id
        milliseconds = (time.perf_counter() - started) * 1000
        self._announce(milliseconds)
        return milliseconds

    def _announce(self, milliseconds: float) -> None:
        assert self._model is not None and self._model_id is not None
        self._send(
            events.Loaded(
                model=self._model_id,
                engine=self._model.engine,
                milliseconds=round(milliseconds, 1),
                memory_mib=self._memory_mib(),
            )
        )

    def _unload(self) -> None:
        if self._model is not None:
            self._model.unload()
        self._model = self._model_id = None
        self._give_back_memory()

    def _give_back_memory(self) -> None:
        import torch

        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _memory_mib(self) -> int:
        """Memory the worker holds: allocated on the GPU, or resident on the CPU, MiB."""
        import torch

        if self._device.type == "cuda":
            return torch.cuda.memory_reserved(self._device) // 2**20
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

    def _device_name(self) -> str:
        import torch

        if self._device.type == "cuda":
            return torch.cuda.get_device_name(self._device)
        return "cpu"

    def _send(self, event: Any) -> None:
        with self._send_lock:
            self._connection.sendall(events.encode(event))


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, OutOfMemory | torch.OutOfMemoryError | MemoryError)


def _is_poisonous(error: Exception) -> bool:
    """Whether the CUDA context cannot be used any more (CUDA's errors 710, 714, 718, 719 and their kin)."""
    import torch

    if _is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


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
