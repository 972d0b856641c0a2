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
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Protocol

from config.catalog import DefaultModel
from config.settings import ROOT, Settings
from models.precision import PrecisionProfile
from utils.gpu_manager import WorkerSlot
from utils.worker import events
from utils.worker.config import WorkerConfig

log = logging.getLogger(__name__)

# A restart waits this long, doubled for each death in a row, up to the maximum.
RESTART_DELAY_SECONDS = 0.5
RESTART_DELAY_MAX_SECONDS = 30.0
# A worker that lived this long begins again with the short delay.
HEALTHY_AFTER_SECONDS = 60.0
# Three deaths within ten minutes are a pattern, not an accident.
DEATHS_WINDOW_SECONDS = 600.0
DEATHS_DEGRADED = 3
KILL_AFTER_SECONDS = 5.0
MAX_LINE_BYTES = 2**20


class WorkerState(StrEnum):
    STARTING = "starting"  # the process is up and imports its libraries
    IDLE = "idle"  # waits for a job
    BUSY = "busy"  # has a job
    LOADING = "loading"  # loads a model without a job
    RESTARTING = "restarting"  # the process died; the next one follows
    STOPPED = "stopped"  # the service is stopping


class WorkerListener(Protocol):
    """Who is told what happens to a worker. Called in order, awaited before the next event."""

    async def on_event(self, worker: Worker, event: Any) -> None: ...

    async def on_death(self, worker: Worker, job_id: str | None, exit_text: str) -> None: ...


class Worker:
    """One slot and the process that fills it. `start` returns at once; `stop` when it is gone."""

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
        self.job_id: str | None = None
        self.model: str | None = None
        self.engine: str | None = None
        self.device: str | None = None
        self.versions: dict[str, str] = {}
        self.memory_mib: int | None = None
        self.pid: int | None = None
        self.last_death: str | None = None
        self.last_load_error: str | None = None
        self._deaths: list[float] = []
        self._profile = profile
        self._settings = settings
        self._default = default
        self._listener = listener
        self._monotonic = monotonic
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._supervisor: asyncio.Task[None] | None = None
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
        is_up = self.state in (WorkerState.IDLE, WorkerState.BUSY, WorkerState.LOADING)
        return self.deaths >= DEATHS_DEGRADED and not is_up

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

    async def run(self, job_id: str, request: dict[str, Any]) -> None:
        self.state, self.job_id = WorkerState.BUSY, job_id
        await self.send(events.Run(job_id=job_id, request=request))

    async def load(self, model: str) -> None:
        self.state = WorkerState.LOADING
        await self.send(events.Load(model=model))

    async def unload(self) -> None:
        await self.send(events.Unload())

    async def cancel(self, job_id: str) -> None:
        await self.send(events.Cancel(job_id=job_id))

    async def send(self, event: Any) -> None:
        """A child that dies meanwhile is the supervisor's to notice, not the sender's."""
        if self._writer is not None:
            with contextlib.suppress(ConnectionError):
                self._writer.write(events.encode(event))
                await self._writer.drain()

    async def _supervise(self) -> None:
        delay = RESTART_DELAY_SECONDS
        while not self._stopping.is_set():
            born = self._monotonic()
            exit_text = await self._live()
            job_id, self.job_id = self.job_id, None
            self.model = self.engine = self.memory_mib = self.pid = None
            if self._stopping.is_set():
                await self._listener.on_death(self, job_id, exit_text)
                break
            self.state, self.last_death = WorkerState.RESTARTING, exit_text
            self._deaths.append(self._monotonic())
            log.error(
                "worker %s died: %s",
                self.name,
                exit_text,
                extra={"action": "worker_died", "job_id": job_id},
            )
            try:
                await self._listener.on_death(self, job_id, exit_text)
            except Exception:
                log.exception(
                    "a death was not handled", extra={"action": "death_failed", "worker": self.name}
                )
            if self._monotonic() - born > HEALTHY_AFTER_SECONDS:
                delay = RESTART_DELAY_SECONDS
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
            delay = min(delay * 2, RESTART_DELAY_MAX_SECONDS)

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
        return _in_words(await process.wait())

    async def _take(self, event: Any) -> None:
        match event:
            case events.Ready():
                self.state, self.device, self.versions = (
                    WorkerState.IDLE,
                    event.device,
                    event.versions,
                )
            case events.Loading():
                self.model = self.engine = None
            case events.Loaded():
                self.model, self.engine, self.memory_mib = (
                    event.model,
                    event.engine,
                    event.memory_mib,
                )
                self.last_load_error = None
                self._idle_again(WorkerState.LOADING)
            case events.LoadFailed():
                self.model, self.last_load_error = None, event.message
                self._idle_again(WorkerState.LOADING)
            case events.Unloaded():
                self.model, self.engine, self.memory_mib = None, None, event.memory_mib
            case events.Finished() | events.Failed() | events.WasCancelled():
                self.job_id = None
                self._idle_again(WorkerState.BUSY)
        try:
            await self._listener.on_event(self, event)
        except Exception:
            # A fault of ours in one event must not end the supervision of the worker.
            log.exception(
                "an event was not handled", extra={"action": "event_failed", "worker": self.name}
            )

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
            allow_download=self._settings.models.allow_download,
            threads=self._settings.worker.threads,
            default_model=self._default.id,
            default_model_reason=self._default.reason,
        )
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "utils.worker.child",
            config.to_argument(),
            cwd=ROOT,
            env=child_environment(self.slot, self._settings),
            pass_fds=[socket_fd],
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal reaches the service alone
        )

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


def child_environment(slot: WorkerSlot, settings: Settings) -> dict[str, str]:
    """The child's environment: pinned to its GPU, offline where asked, without the service's keys."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("FLUX_")
    }
    environment |= {
        "CUDA_VISIBLE_DEVICES": slot.visible_devices,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        # Threads that wait for others sleep: on a CPU that is shared, spinning costs several times the work.
        "OMP_WAIT_POLICY": "PASSIVE",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # equal inputs, equal bytes
        "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if not settings.models.allow_download:
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def _in_words(returncode: int) -> str:
    if returncode >= 0:
        return f"exit status {returncode}"
    name = signal.Signals(-returncode).name
    hint = " (the kernel may have run out of memory)" if -returncode == signal.SIGKILL else ""
    return f"killed by {name}{hint}"
