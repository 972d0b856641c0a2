"""A replica with a worker's face: what happens there is heard here, and what it draws is brought here.

Its events come in one stream and go through the same state machine as a child's. A job's pictures come in
the job's own call, into staging, before its end is told. A replica that is gone is gone for good: the next one
in its place is another, with another id.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from config.catalog import DefaultModel
from config.errors import FluxError
from config.settings import Settings
from fleet.replica import ReplicaStats
from models.precision import profile_of
from models.types import GenerationRequest
from utils import images
from utils.dispatcher import Kind
from utils.fleet import messages
from utils.fleet.door_files import DoorFiles
from utils.fleet.link import Link, ReplicaFailed, ReplicaGone, ReplicaRefused
from utils.fleet.replica import ENDED, REFUSED, TAKEN
from utils.fleet.report import finishing
from utils.fleet.wants import lora_set, work_of
from utils.gpu_manager import Gpu, WorkerSlot
from utils.pace import Pace
from utils.worker import events
from utils.worker.parent import Death, GivenJob, Worker, WorkerListener, WorkerState

log = logging.getLogger(__name__)

KEPT_LORA_SETS = 8
NEWEST_SHARE = 0.3  # of a job's seconds in the average
SILENT_SECONDS = 45.0  # a replica tells something every five
KILL_PATIENCE_SECONDS = 15.0
REFUSED_SECONDS = 0.5  # after a refusal; doubled by each that follows it
REFUSED_MAX_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class _Way:
    """A job on its way: the call that brings it, whether its pictures have arrived, and how many are drawn with it."""

    bringing: asyncio.Task[None]
    arrived: asyncio.Future[None]
    beside: int


class FleetListener(WorkerListener, Protocol):
    """The queue of a fleet is told more than a worker tells."""

    async def on_refused(self, worker: FleetWorker, job_id: str, why: str) -> None: ...

    async def on_gone(self, worker: FleetWorker) -> None: ...


class FleetWorker(Worker):
    """Of a replica that said hello. `start` listens on; `on_gone` is told when there is nothing to hear any more."""

    def __init__(
        self,
        hello: messages.Hello,
        link: Link,
        lines: AsyncIterator[str],
        files: DoorFiles,
        settings: Settings,
        default: DefaultModel,
        listener: FleetListener,
        end_process: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        slot = WorkerSlot(
            name=f"{hello.node}/{hello.slot}",
            gpus=tuple(Gpu(**gpu) for gpu in hello.gpus),
            is_apple=hello.is_apple,
        )
        super().__init__(slot, profile_of(hello.precision), settings, default, listener, monotonic)
        self.replica = hello.replica
        self.node = hello.node
        self.precision = hello.precision
        self.resources = frozenset(hello.resources)
        self.runnable = dict(hello.models)
        self.reasons = dict(hello.reasons)
        self.memory_gib = hello.memory_gib
        self.pid = hello.pid
        self.max_batch_size = hello.max_batch_size
        self.pace = Pace()
        self.is_ours = True  # or another front door gives it jobs, and we listen
        self.is_draining = False  # with its machine
        self.is_leaving = False  # it is one too many, and sleeps when it has nothing left
        self.is_asleep = False
        self.processors = 0.0
        self.cards: list[dict[str, Any]] = []
        self.job_seconds: dict[str, float] = {}
        self.load_seconds: dict[str, float] = {}
        self.idle_since = monotonic()
        self._fleet: FleetListener = listener
        self._link = link
        self._lines = lines
        self._files = files
        self._end_process = end_process
        self._heard = ""
        self._lora_sets: collections.OrderedDict[tuple[str, str], None] = collections.OrderedDict()
        self._ways: dict[str, _Way] = {}  # by job
        self._refusals = 0  # in a row
        self._refuses_until = 0.0  # monotonic seconds
        self._telling: set[asyncio.Task[None]] = set()
        self._is_told = asyncio.Lock()

    # For routing

    def stats(self) -> ReplicaStats:
        used = sorted(
            (model for model in self.models if model in self.runnable),
            key=lambda model: self.models[model].used_at,
        )
        is_up = self.state in (WorkerState.IDLE, WorkerState.BUSY)
        return ReplicaStats(
            replica=self.replica,
            node=self.node,
            resources=self.resources,
            model_gib=self.runnable,
            memory_gib=self.memory_gib,
            models=tuple(used),
            lora_sets=frozenset(self._lora_sets),
            jobs=frozenset(self.jobs),
            heard=self._heard,
            finishing=frozenset(finishing(self)),
            job_seconds=dict(self.job_seconds),
            load_seconds=dict(self.load_seconds),
            load=self.processors,
            is_draining=self.is_draining
            or self.is_leaving
            or self.is_asleep
            or not is_up
            or self._monotonic() < self._refuses_until,
        )

    # The face of a worker

    def read_cards(self) -> list[dict[str, Any]]:
        unknown: list[dict[str, Any]] = [{} for _ in self.slot.gpus]
        return self.cards if len(self.cards) == len(unknown) else unknown

    def start(self) -> None:
        self._supervisor = asyncio.create_task(self._listen(), name=f"replica {self.name}")

    async def stop(self) -> None:
        """Listen no more. Jobs that run are put back by whoever stops us; the replica leaves them."""
        self._stopping.set()
        await self._leave_all()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)

    async def lose(self, why: str) -> None:
        """It cannot be reached any more: what it had goes back into the line."""
        self._kill_reason = ("worker_lost", why)
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)

    async def run(self, jobs: Sequence[tuple[str, dict[str, Any]]], *, is_alone: bool) -> None:
        await super().run(jobs, is_alone=is_alone)
        self._heard = jobs[-1][0]
        requests = dict(jobs)
        bringing = asyncio.create_task(self._bring(requests), name=f"bring {', '.join(requests)}")
        loop = asyncio.get_running_loop()
        for job_id in requests:
            self._ways[job_id] = _Way(bringing, loop.create_future(), len(jobs))

    async def _leave_all(self) -> None:
        """Have the replica leave its jobs, which stay ours."""
        ways, self._ways = list(self._ways.values()), {}
        for way in ways:
            way.bringing.cancel()  # which ends the call there, and with it the jobs
            way.arrived.cancel()
        await asyncio.gather(*(way.bringing for way in ways), return_exceptions=True)

    async def leave(self) -> None:
        """Another front door has it and its jobs from now on."""
        self.is_ours = False
        left, self.jobs = list(self.jobs), {}
        await self.stop()
        for job_id in left:
            images.discard_staged(self._settings.storage.output_dir, job_id)

    def note_job(self, job_id: str, request: dict[str, Any]) -> None:
        """Another door gave it a job, of whose way we hear."""
        self.state = WorkerState.BUSY
        self.jobs[job_id] = GivenJob(
            id=job_id, request=request, given_at=self._monotonic(), is_alone=False
        )

    def note_end(self, job_id: str) -> None:
        """A job of another door's has ended, or is not there any more."""
        self.jobs.pop(job_id, None)
        if not self.jobs:
            self._idle_again(WorkerState.BUSY)

    def kill(self, code: str, why: str) -> None:
        log.error("replica %s is ended: %s", self.name, why, extra={"action": "worker_killed"})
        self.last_sign = self._monotonic()  # asked once, not every second
        self._tell(messages.Kill(code=code, why=why))
        asyncio.get_running_loop().call_later(
            KILL_PATIENCE_SECONDS, self._kill_process, tuple(self.jobs), why
        )

    def _kill_process(self, jobs: tuple[str, ...], why: str) -> None:
        if set(jobs) & set(self.jobs) and not self._stopping.is_set():
            log.error(
                "replica %s does not answer: its process is ended",
                self.name,
                extra={"action": "replica_killed"},
            )
            self._kill_reason = ("timeout", why)
            self._end_process()

    async def send(self, event: Any) -> None:
        if not isinstance(event, events.Run):  # a job is a call of its own
            self._tell(event)

    def sleep(self) -> None:
        """Have the worker process ended, until `wake`. Only without a job."""
        self.is_asleep, self.is_leaving = True, False
        self._tell(messages.Sleep())

    def wake(self) -> None:
        self.is_asleep = False
        self.state = WorkerState.STARTING
        self._tell(messages.Wake())

    # Listening

    async def _listen(self) -> None:
        why = "its machine left the fleet, or its process ended"
        try:
            while True:
                async with asyncio.timeout(SILENT_SECONDS):
                    line = await anext(self._lines)
                await self._hear(messages.decode(line))
        except StopAsyncIteration:
            pass
        except TimeoutError:
            why = f"nothing was heard of it for {SILENT_SECONDS:g} s"
            if self.is_ours:
                self._end_process()  # what is heard of no more may draw no more
        except (ReplicaGone, ReplicaFailed, ReplicaRefused, ValueError) as error:
            why = str(error)
        except Exception as error:
            log.exception("a replica's words end", extra={"action": "replica_failed"})
            why = type(error).__name__
        except asyncio.CancelledError:
            why = "the service stops"
        if not self.is_ours:
            self.jobs.clear()
        await self._leave_all()
        for task in self._telling:
            task.cancel()
        code, why = self._kill_reason or ("worker_lost", why)
        death = Death(jobs=tuple(self.jobs.values()), exit_text=why, code=code)
        self._forget_worker()
        self.state = WorkerState.STOPPED
        if not self._stopping.is_set():
            log.error(
                "replica %s is gone: %s",
                self.name,
                why,
                extra={"action": "replica_gone", "job_id": [job.id for job in death.jobs]},
            )
        try:
            await self._listener.on_death(self, death)
        finally:
            await self._fleet.on_gone(self)

    async def _hear(self, message: Any) -> None:
        match message:
            case messages.Hello():
                pass
            case events.Finished() | events.Failed() | events.WasCancelled() if not self.is_ours:
                self.note_end(message.job_id)
            case messages.Died() if not self.is_ours:
                self._forget_worker()
                self.state, self.last_death = WorkerState.RESTARTING, message.exit_text
            case messages.Pulse():
                self.processors, self.cards = message.processors, message.cards
                if message.models is not None and message.reasons is not None:
                    self.runnable, self.reasons = dict(message.models), dict(message.reasons)
            case messages.Died():
                await self._note_death(message)
            case messages.Asleep():
                self._forget_worker()
                self.state = WorkerState.STOPPED
            case events.Finished() | events.Failed() | events.WasCancelled():
                task = asyncio.create_task(self._end(message), name=f"end {message.job_id}")
                self._telling.add(task)
                task.add_done_callback(self._telling.discard)
            case _:
                await self._take(message)
                if isinstance(message, events.Loaded) and message.milliseconds:
                    _note(self.load_seconds, message.model, message.milliseconds / 1000)
                if isinstance(message, events.Begun):
                    self.is_asleep = False  # another caller's job kept it awake
                if isinstance(message, events.Drawn):
                    kind = Kind(message.model, message.width, message.height)
                    self.pace.batch_took(kind, message.pictures, message.milliseconds)

    async def _end(self, event: Any) -> None:
        """Of a job: told when its pictures are here."""
        way = self._ways.get(event.job_id)
        if way is not None and isinstance(event, events.Finished):
            await asyncio.wait([way.arrived])
        given = self.jobs.get(event.job_id)
        if given is None or self.state is WorkerState.STOPPED:
            return  # it ended otherwise meanwhile
        self._ways.pop(event.job_id, None)
        if isinstance(event, events.Finished):
            if way is None or way.arrived.cancelled():
                return
            error = way.arrived.exception()
            if isinstance(error, ReplicaGone):
                return  # the stream of events ends, too, and tells what becomes of its jobs
            if error is not None:
                event = self._not_brought(event.job_id, error)
            else:
                self._note_success(given, way.beside)
        await self._take(event)
        self.idle_since = self._monotonic()

    def _not_brought(self, job_id: str, error: BaseException) -> events.Failed:
        log.error("a picture was not brought", extra={"action": "not_brought", "job_id": job_id})
        if isinstance(error, OSError):
            what = f"the picture could not be written: {error.strerror}; free some disk space or check the output folder"
            return events.Failed(job_id=job_id, code="storage", message=what)
        return events.Failed(
            job_id=job_id,
            code="internal",
            message=f"the picture was drawn and could not be brought from {self.name}; the log has the details",
        )

    def _note_success(self, given: GivenJob, beside: int) -> None:
        request = GenerationRequest.from_json(given.request)
        # Drawing and saving, and of a batch its share; what it waited for and what was loaded for it is not its own.
        seconds = (self._monotonic() - (given.drawing_since or given.given_at)) / beside
        _note(self.job_seconds, request.model, seconds / work_of(request))
        if name := lora_set(request):
            self._lora_sets[request.model, name] = None
            self._lora_sets.move_to_end((request.model, name))
            while len(self._lora_sets) > KEPT_LORA_SETS:
                self._lora_sets.popitem(last=False)

    async def _note_death(self, died: messages.Died) -> None:
        await self._leave_all()
        jobs = tuple(self.jobs.values())
        self._forget_worker()
        self.state, self.last_death = WorkerState.RESTARTING, died.exit_text
        self._deaths.append(self._monotonic())
        await self._listener.on_death(
            self, Death(jobs=jobs, exit_text=died.exit_text, code=died.code)
        )

    def _forget_worker(self) -> None:
        self.jobs.clear()
        self.model = self.engine = self.compute = self.loading = self.memory_mib = None
        self.models.clear()
        self._lora_sets.clear()

    # A job's way there and back

    async def _bring(self, requests: dict[str, dict[str, Any]]) -> None:
        """Bring jobs that are drawn together, and what they need, to the replica, and their pictures into staging."""
        try:
            ready = await self._provide(requests)
            if ready:
                await self._exchange(ready)
        except ReplicaRefused as refused:
            self._note_refusal()
            await self._give_back(requests, str(refused))
        except ReplicaGone as gone:
            # The stream of events ends, too, and tells what became of its jobs.
            for job_id in requests:
                self._arrive(job_id, gone)
        except Exception as error:  # also what nobody expected: a job is never left without its end
            log.exception("jobs failed", extra={"action": "job_failed", "job_id": list(requests)})
            what = error if isinstance(error, ReplicaFailed) else type(error).__name__
            text = f"replica {self.name} failed ({what}); the service's log has the details"
            for job_id in requests:
                if job_id in self._ways and not self._ways[job_id].arrived.done():
                    await self._fail(job_id, "internal", text)

    async def _provide(self, requests: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Those whose files are on the replica's machine; the others have ended."""
        ready = {}
        for job_id, request in requests.items():
            try:
                needs = GenerationRequest.from_json(request)
                await self._files.provide(self.node, self._link, needs)
            except FluxError as error:
                await self._fail(job_id, error.code, error.message)
                continue
            given = self.jobs.get(job_id)
            if given is not None and given.unwanted_since is not None:
                self._forget_way(job_id)
                await self._take(events.WasCancelled(job_id=job_id))
            elif given is not None:
                ready[job_id] = request
        return ready

    async def _exchange(self, requests: dict[str, dict[str, Any]]) -> None:
        parts: dict[str, list[bytes]] = collections.defaultdict(list)
        faults: dict[str, OSError] = {}
        async for said in self._link.run(requests):
            if not isinstance(said, str):
                name, part, is_last = said
                parts[name].append(part)
                if is_last:
                    await self._stage(name, b"".join(parts.pop(name)), faults)
            elif said.startswith(REFUSED):
                raise ReplicaRefused(said)
            elif said == TAKEN:
                self._refusals = 0
            else:
                job_id = said.removeprefix(f"{ENDED} ")
                self._arrive(job_id, faults.get(job_id))

    async def _stage(self, name: str, data: bytes, faults: dict[str, OSError]) -> None:
        try:
            await asyncio.to_thread(images.stage, data, self._settings.storage.output_dir, name)
        except OSError as error:
            faults[images.job_of(name)] = error  # of this job alone

    def _arrive(self, job_id: str, error: BaseException | None) -> None:
        """All of a job's pictures are here, or do not come."""
        way = self._ways.get(job_id)
        if way is None or way.arrived.done():
            return
        if error is None:
            way.arrived.set_result(None)
        else:
            way.arrived.set_exception(error)
            way.arrived.exception()  # its end may be told otherwise

    def _forget_way(self, job_id: str) -> None:
        way = self._ways.pop(job_id, None)
        if way is not None:
            way.arrived.cancel()

    def _note_refusal(self) -> None:
        """It is left alone for a while, which grows: another may take the job, and nobody is asked in a circle."""
        pause = min(REFUSED_MAX_SECONDS, REFUSED_SECONDS * 2**self._refusals)
        self._refusals += 1
        self._refuses_until = self._monotonic() + pause

    async def _give_back(self, job_ids: Iterable[str], why: str) -> None:
        for job_id in job_ids:
            self._forget_way(job_id)
            if self.jobs.pop(job_id, None) is not None:
                if not self.jobs:
                    self._idle_again(WorkerState.BUSY)
                await self._fleet.on_refused(self, job_id, why)

    async def _fail(self, job_id: str, code: str, message: str) -> None:
        self._forget_way(job_id)
        if job_id in self.jobs:
            await self._take(events.Failed(job_id=job_id, code=code, message=message))

    # Telling

    def _tell(self, message: Any) -> None:
        task = asyncio.create_task(self._tell_now(message), name=f"tell {self.name}")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell_now(self, message: Any) -> None:
        async with self._is_told:  # in their order
            try:
                await self._tell_until_heard(message)
            except ReplicaGone:
                pass  # the stream of events ends, too
            except Exception as error:
                log.error(
                    "%s was not told %s: %s",
                    self.name,
                    type(message).__name__,
                    error,
                    extra={"action": "not_told"},
                )

    async def _tell_until_heard(self, message: Any) -> None:
        while True:
            try:
                return await self._link.tell(message)
            except ReplicaRefused:  # Ray has too many calls that wait
                await asyncio.sleep(REFUSED_SECONDS)


def _note(seconds: dict[str, float], model: str, newest: float) -> None:
    before = seconds.get(model, newest)
    seconds[model] = before + (newest - before) * NEWEST_SHARE
