"""A worker as the service sees it: a child process that is started, listened to and replaced.

The child is pinned by CUDA_VISIBLE_DEVICES before it imports anything. Both ends hold one
half of a socket pair; when either process dies the other notices at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from config.catalog import DefaultModel
from config.settings import OTHER_NAMES, ROOT, Settings
from models import safety
from models.precision import PrecisionProfile
from models.types import Stage
from utils import log_context
from utils.gpu_manager import WorkerSlot, read_load
from utils.input_pictures import inputs_folder
from utils.line import Lane
from utils.lora_pins import pins_folder
from utils.worker import events
from utils.worker.config import WorkerConfig
from utils.worker.said import listen

log = logging.getLogger(__name__)

# A restart waits this long, doubled for each death in a row, up to the maximum.
RESTART_DELAY_SECONDS = 0.5
RESTART_DELAY_MAX_SECONDS = 30.0
# A worker that lived this long begins again with the short delay.
HEALTHY_AFTER_SECONDS = 60.0
# Three deaths within ten minutes are a pattern, not an accident.
DEATHS_WINDOW_SECONDS = 600.0
DEATHS_DEGRADED = 3
KILL_AFTER_SECONDS = 2.5
LAST_WORDS_SECONDS = 1.0
MAX_LINE_BYTES = 2**20
# Threads that wait for others look 1,000 times, about 20 us, and then sleep: most gaps between two products of a
# picture are that short, and beside other programs spinning on costs many times the work. GNU's OpenMP, PyTorch's on
# Linux, looks so often also where threads outnumber processors, but only for ACTIVE; others are told by KMP_BLOCKTIME.
SHORT_WAITS = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
# On a CPU tensors come and go in the C library's heap. Given back to the system each time, their pages
# cost a sixth of a picture; what is kept goes when the worker rests (`child.REST_SECONDS`). glibc's variables;
# other C libraries know none of them.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(128 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    "MALLOC_ARENA_MAX": "1",
}


class WorkerState(StrEnum):
    STARTING = "starting"  # the process is up and imports its libraries
    IDLE = "idle"  # waits for a job
    BUSY = "busy"  # has a job
    LOADING = "loading"  # loads a model without a job
    RESTARTING = "restarting"  # the process died; the next one follows
    STOPPED = "stopped"  # the service is stopping


@dataclass(slots=True, kw_only=True)
class GivenJob:
    """A job that a worker has: whether it began with it, and since when (monotonic seconds)."""

    id: str
    request: Mapping[str, Any]
    given_at: float
    is_alone: bool  # nothing may be given beside it
    begun_at: float | None = None  # the worker is at it, or was
    drawing_since: float | None = None  # the same, loading not counted
    is_loading: bool = False  # its drawing waits for weights
    is_drawn: bool = False  # only saving is left
    unwanted_since: float | None = None  # cancelled, or over its time; the worker was told


@dataclass(slots=True, kw_only=True)
class HeldModel:
    """A model that a worker has loaded: what it takes, and when it was used last (monotonic seconds)."""

    gib: float
    used_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a worker ended, with what it had. `code` is the error of a job that is to blame."""

    jobs: tuple[GivenJob, ...]
    exit_text: str
    code: str = "poison"


class WorkerListener(Protocol):
    """Who is told what happens to a worker. Called in order, awaited before the next event."""

    async def on_event(self, worker: Worker, event: Any) -> None: ...

    async def on_death(self, worker: Worker, death: Death) -> None: ...


class Worker:
    """One slot and the process that fills it. `start` returns at once; `stop` when it is gone."""

    lane = Lane.LOCAL

    def __init__(
        self,
        slot: WorkerSlot,
        profile: PrecisionProfile,
        settings: Settings,
        default: DefaultModel,
        listener: WorkerListener,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slot = slot
        self.state = WorkerState.STARTING
        self.jobs: dict[str, GivenJob] = {}
        self.model: str | None = None  # what it draws with, or drew with last
        self.models: dict[str, HeldModel] = {}  # what it has loaded
        self.engine: str | None = None
        self.compute: str | None = None
        self.batches_exactly = False  # the model it has loaded
        self.loading: tuple[str, float | None] | None = None  # what is being done, how far
        self.device: str | None = None
        self.versions: dict[str, str] = {}
        self.safety: str | None = None  # the checker that looks at its pictures
        self.memory_mib: int | None = None
        self.pid: int | None = None
        self.last_death: str | None = None
        self.last_load_error: str | None = None
        self.last_sign = monotonic()  # of progress, or of a rest; monotonic seconds
        # Weights that go while the service runs must not mean, after a worker's death, that nobody looks.
        self._is_looked_at = safety.is_named(settings.models)
        self._takes_next = False  # its device is about to be free
        self._wants_previews = False
        self._kill_reason: tuple[str, str] | None = None  # error code, words
        self._deaths: list[float] = []
        self._profile = profile
        self._settings = settings
        self._default = default
        self._listener = listener
        self._monotonic = monotonic
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._said: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    @property
    def name(self) -> str:
        return self.slot.name

    @property
    def deaths(self) -> int:
        """Deaths within the last ten minutes."""
        horizon = self._monotonic() - DEATHS_WINDOW_SECONDS
        self._deaths = [death for death in self._deaths if death > horizon]
        return len(self._deaths)

    @property
    def is_degraded(self) -> bool:
        """Whether it died again and again and has not shown since that it can load a model."""
        is_up = self.state in (WorkerState.IDLE, WorkerState.BUSY)
        return self.deaths >= DEATHS_DEGRADED and not is_up

    @property
    def job_id(self) -> str | None:
        """The job it has had longest; None without one."""
        return next(iter(self.jobs), None)

    @property
    def is_free(self) -> bool:
        """Whether it can be given a job that wants to be alone."""
        return self.state is WorkerState.IDLE

    @property
    def takes_jobs(self) -> bool:
        """Whether it can be given jobs: it has none, or those it has are nearly done."""
        if self.state is WorkerState.BUSY:
            return self._takes_next and not any(job.is_alone for job in self.jobs.values())
        return self.state is WorkerState.IDLE

    def read_cards(self) -> list[dict[str, Any]]:
        """What its cards say of themselves now. Blocks; for a thread."""
        return [read_load(gpu) for gpu in self.slot.gpus]

    def start(self) -> None:
        self._supervisor = asyncio.create_task(self._supervise(), name=f"worker {self.name}")

    async def stop(self) -> None:
        """End the process: ask, then terminate, then kill. A running job is left at its next step."""
        self._stopping.set()
        process = self._process
        if process is not None and process.returncode is None:
            if self.state is WorkerState.STARTING:
                process.terminate()  # it has nothing to end, and would read the message late
            await self.send(events.Shutdown())
            if not await self._gone(process, KILL_AFTER_SECONDS):
                process.terminate()
                if not await self._gone(process, 1.0):
                    process.kill()
        if self._supervisor is not None:
            await self._supervisor
        self.state = WorkerState.STOPPED

    async def run(self, jobs: Sequence[tuple[str, dict[str, Any]]], *, is_alone: bool) -> None:
        """Give it jobs that can be drawn together: id and request of each."""
        now = self._monotonic()
        if not self.jobs:
            self.last_sign = now
        self.state, self._takes_next = WorkerState.BUSY, False
        for job_id, request in jobs:
            self.jobs[job_id] = GivenJob(
                id=job_id, request=request, given_at=now, is_alone=is_alone
            )
        await self.send(events.Run(jobs=list(jobs)))

    async def load(self, model: str) -> None:
        self.state, self.last_sign = WorkerState.LOADING, self._monotonic()
        await self.send(events.Load(model=model))

    async def unload(self, model: str | None = None) -> None:
        """Have it let go of a model, or of all."""
        self.last_sign = self._monotonic()  # asked once, not every second
        await self.send(events.Unload(model=model))

    def idle_seconds(self, model: str) -> float:
        """How long ago a model that it has loaded was used last."""
        return max(0.0, self._monotonic() - self.models[model].used_at)

    async def cancel(self, job_id: str) -> None:
        """Tell it that nobody wants a job any more."""
        job = self.jobs.get(job_id)
        if job is not None and job.unwanted_since is None:
            job.unwanted_since = self._monotonic()
        await self.send(events.Cancel(job_id=job_id))

    async def want_previews(self, wanted: bool) -> None:
        """Whether progress comes with pictures; told only when it changes."""
        if wanted is not self._wants_previews:
            self._wants_previews = wanted
            await self.send(events.Previews(wanted=wanted))

    def kill(self, code: str, why: str) -> None:
        """End a process that does not answer any more; its job is to blame with `code`."""
        if self._process is not None and self._process.returncode is None:
            self._kill_reason = (code, why)
            log.error("worker %s is ended: %s", self.name, why, extra={"action": "worker_killed"})
            self._process.kill()  # a hung kernel does not hear a gentler signal

    async def send(self, event: Any) -> None:
        """A child that dies meanwhile is the supervisor's to notice, not the sender's.

        Messages are few and short: nobody waits for a child that does not read them.
        """
        if self._writer is not None:
            with contextlib.suppress(ConnectionError):
                self._writer.write(events.encode(event))

    async def _supervise(self) -> None:
        delay = RESTART_DELAY_SECONDS
        while not self._stopping.is_set():
            born = self._monotonic()
            death = self._death(await self._live())
            self.jobs.clear()
            self.model = self.engine = self.compute = self.loading = None
            self.models.clear()
            self.memory_mib = self.pid = None
            if self._stopping.is_set():
                await self._listener.on_death(self, death)
                break
            self.state, self.last_death = WorkerState.RESTARTING, death.exit_text
            self._deaths.append(self._monotonic())
            log.error(
                "worker %s died: %s",
                self.name,
                death.exit_text,
                extra={
                    "action": "worker_died",
                    "job_id": log_context.of_jobs([job.id for job in death.jobs]),
                },
            )
            try:
                await self._listener.on_death(self, death)
            except Exception:
                log.exception(
                    "a death was not handled", extra={"action": "death_failed", "worker": self.name}
                )
            if self._monotonic() - born > HEALTHY_AFTER_SECONDS:
                delay = RESTART_DELAY_SECONDS
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
            delay = min(delay * 2, RESTART_DELAY_MAX_SECONDS)

    def _death(self, exit_text: str) -> Death:
        code, why = self._kill_reason or ("poison", exit_text)
        self._kill_reason = None
        return Death(jobs=tuple(self.jobs.values()), exit_text=why, code=code)

    async def _live(self) -> str:
        """One process from birth to death; returns how it ended, in words."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = process = await self._spawn(theirs.fileno())
        except OSError as error:
            ours.close()
            return f"could not be started: {error}"
        self.pid, self.state = process.pid, WorkerState.STARTING
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE_BYTES)
        if self._stopping.is_set():
            process.kill()  # `stop` came while the process was made, and could not tell it
        watchdog = asyncio.create_task(self._kill_unless_ready(process))
        try:
            while line := await reader.readline():
                await self._take(events.decode(line))
        except (ConnectionError, ValueError) as error:
            level = logging.DEBUG if self._stopping.is_set() else logging.ERROR
            log.log(level, "worker %s: %s", self.name, error, extra={"action": "worker_protocol"})
        finally:
            watchdog.cancel()
            self._writer.close()
            self._writer = None
        if not await self._gone(process, KILL_AFTER_SECONDS):
            process.kill()  # it closed the socket and lives on
        ended = _in_words(await process.wait())
        if self._said is not None:
            # Its last words first; children of its own may hold the pipe for longer.
            await asyncio.wait({self._said}, timeout=LAST_WORDS_SECONDS)
            self._said.cancel()
        return ended

    async def _take(self, event: Any) -> None:
        self.last_sign = self._monotonic()
        match event:
            case events.Ready():
                self.state, self.device = WorkerState.IDLE, event.device
                self.versions, self._wants_previews = event.versions, False
                self.safety = event.safety
                self._is_looked_at |= event.safety is not None
            case events.Begun():
                for job_id in event.job_ids:
                    if job_id in self.jobs:
                        self.jobs[job_id].begun_at = self._monotonic()
                        self._note_use(self.jobs[job_id].request["model"])
            case events.Progress():
                self._note_progress(event)
            case events.Handover():
                self._takes_next = True
                for job in self.jobs.values():
                    job.is_drawn = job.begun_at is not None
            case events.Finished() | events.Failed() | events.WasCancelled():
                if (job := self.jobs.pop(event.job_id, None)) is not None:
                    self._note_use(job.request["model"])
                if not self.jobs:
                    self.loading = None  # what was being loaded for them, in vain
                    self._idle_again(WorkerState.BUSY)
            case _:
                self._note_model(event)
        try:
            await self._listener.on_event(self, event)
        except Exception:
            # A fault of ours in one event must not end the supervision of the worker.
            log.exception(
                "an event was not handled", extra={"action": "event_failed", "worker": self.name}
            )

    def _note_progress(self, event: events.Progress) -> None:
        job = self.jobs.get(event.job_id)
        if job is None:
            return
        job.is_loading = event.stage == Stage.LOADING
        if not job.is_loading:
            job.drawing_since = job.drawing_since or self._monotonic()

    def _note_use(self, model: str) -> None:
        if model in self.models:
            self.models[model].used_at = self._monotonic()

    def _note_held(self, event: events.Holds) -> None:
        now = self._monotonic()
        before, self.memory_mib = self.models, event.memory_mib
        self.models = {
            model: HeldModel(gib=gib, used_at=before[model].used_at if model in before else now)
            for model, gib in event.models
        }
        if self.model not in self.models:
            self.model = self.engine = self.compute = None

    def _note_model(self, event: Any) -> None:
        match event:
            case events.Holds():
                self._note_held(event)
            case events.Loading():
                self.model = self.engine = self.compute = None
                self.loading = (event.what, event.fraction)
            case events.Loaded():
                self.model, self.engine, self.compute = event.model, event.engine, event.compute
                self.batches_exactly = event.batches_exactly
                self.memory_mib, self.loading = event.memory_mib, None
                self.last_load_error = None
                self._note_use(event.model)
                for job in self.jobs.values():
                    job.is_loading = False
                self._idle_again(WorkerState.LOADING)
            case events.LoadFailed():
                self.model, self.last_load_error, self.loading = None, event.message, None
                self._idle_again(WorkerState.LOADING)
            case events.Unloaded():
                if self.model not in self.models:
                    self.model = self.engine = self.compute = None
                self.memory_mib = event.memory_mib

    def _idle_again(self, expected: WorkerState) -> None:
        if self.state is expected:
            self.state = WorkerState.IDLE

    async def _spawn(self, socket_fd: int) -> asyncio.subprocess.Process:
        assert self._profile.loader is not None
        config = WorkerConfig(
            socket_fd=socket_fd,
            name=self.name,
            precision=self._profile.name,
            loader=self._profile.loader,
            output_dir=self._settings.storage.output_dir,
            models_dir=self._settings.models.models_dir,
            loras_dir=pins_folder(
                self._settings.storage.lora_dir,
                self._profile.name,
                self._settings.storage.data_dir,
            ),
            inputs_dir=inputs_folder(self._settings.storage.data_dir, self._profile.name),
            allow_download=self._settings.models.allow_download,
            reserve_bytes=self._settings.storage.min_free_mib * 2**20,
            device=self.slot.kind,
            model_memory_gib=model_memory_gib(self._settings),
            offload=self._settings.models.offload,
            safety_checker=self._settings.models.safety_checker,
            safety_model=self._settings.models.safety_model,
            is_looked_at=self._is_looked_at,
            engine=self._settings.models.engine,
            fp8_weights=self._settings.models.fp8_weights,
            compile=self._settings.models.compile,
            mflux_quantize=self._settings.models.mflux_quantize,
            threads=self._settings.worker.threads,
            devices=self.slot.devices,
            log_level=self._settings.log.log_level,
            max_batch_size=self._settings.worker.max_batch_size,
            default_model=self._default.id,
            default_model_reason=self._default.reason,
        )
        said, output = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "utils.worker.child",
                config.to_argument(),
                cwd=ROOT,
                env=child_environment(self.slot, self._settings),
                pass_fds=[socket_fd],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal reaches the service alone
            )
        except BaseException:
            os.close(said)
            raise
        finally:
            os.close(output)
        # Not the library's own pipes: a process has not ended for it as long as its children hold them.
        self._said = asyncio.create_task(listen(said, self.name), name=f"said {self.name}")
        return process

    async def _kill_unless_ready(self, process: asyncio.subprocess.Process) -> None:
        await asyncio.sleep(self._settings.worker.start_timeout_seconds)
        if self.state is WorkerState.STARTING:
            log.error(
                "worker %s did not start in time",
                self.name,
                extra={"action": "worker_start_timeout"},
            )
            process.kill()

    async def _gone(self, process: asyncio.subprocess.Process, seconds: float) -> bool:
        try:
            await asyncio.wait_for(process.wait(), seconds)
        except TimeoutError:
            return False
        return True


def model_memory_gib(settings: Settings) -> float | None:
    """The budget of a worker's models; None: by its device."""
    budget = settings.models.model_memory_gib
    return None if budget == "auto" else budget


def child_environment(slot: WorkerSlot, settings: Settings) -> dict[str, str]:
    """The child's environment: pinned to its GPU, offline where asked, without the service's keys."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FLUX_") and name not in OTHER_NAMES
    }
    environment |= {
        "CUDA_VISIBLE_DEVICES": slot.visible_devices,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # equal inputs, equal bytes
        "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    environment = SHORT_WAITS | environment
    if slot.kind == "cpu":
        environment = KEEP_FREED_MEMORY | environment
    # What was compiled once is there after a restart.
    environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(settings.models.models_dir / "compiled"))
    if not settings.models.allow_download:
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def _in_words(returncode: int) -> str:
    if returncode >= 0:
        return f"exit status {returncode}"
    name = signal.Signals(-returncode).name
    hint = " (the kernel may have run out of memory)" if -returncode == signal.SIGKILL else ""
    return f"killed by {name}{hint}"
