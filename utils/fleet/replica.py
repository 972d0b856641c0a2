"""A worker on a machine of the fleet, as a replica of Ray Serve.

It has what a single service has for a card: `utils/worker/parent.Worker` with its child process. The front
door hears everything that it says by one long call, `watch`, and tells it things by `tell`; a job, or several that
are drawn together, is a call which lasts until all pictures have been handed over. What is here belongs to one front door at a
time: jobs of an earlier one are left when the next begins to watch.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from config.settings import load_settings
from utils import gpu_manager, images, logs
from utils.fleet import machine as machines
from utils.fleet import messages
from utils.fleet.node_files import NodeFiles
from utils.fleet.report import report_of
from utils.gpu_manager import WorkerSlot
from utils.input_pictures import inputs_folder
from utils.lora_pins import pins_folder
from utils.worker import events
from utils.worker.parent import Death, Worker, WorkerState

log = logging.getLogger(__name__)

PULSE_SECONDS = 5.0
CHUNK_BYTES = 4 * 2**20
UNWANTED_KEPT = 100  # jobs that were cancelled before they came
TAKEN, REFUSED, ENDED = "taken", "refused", "ended"


@dataclass(slots=True)
class _Job:
    """A job that is here: what came of it, and to whom its end is told."""

    id: str
    ends: asyncio.Queue[_Job]
    files: tuple[str, ...] = ()
    has_ended: bool = False

    def end(self, files: tuple[str, ...] = ()) -> None:
        if not self.has_ended:
            self.has_ended, self.files = True, files
            self.ends.put_nowait(self)


class Replica:
    """Made by Ray in a process of its own. `precision` is what its place in the cluster was given for."""

    def __init__(self, precision: str) -> None:
        settings = load_settings("fleet")
        self._machine = machines.machine_of(settings)
        if self._machine.profile.name != precision:
            raise RuntimeError(
                f"{self._machine.name} has {self._machine.profile.name} replicas and was asked for {precision}"
            )
        self._slot, self._place = machines.take_place(self._machine)
        logs.configure(settings, f"fleet-{self._machine.name}-{self._slot.name}")
        storage = self._machine.settings.storage
        storage.output_dir.mkdir(parents=True, exist_ok=True)
        self._files = NodeFiles(
            pins_folder(storage.lora_dir, precision, storage.data_dir),
            inputs_folder(storage.data_dir, precision),
            settings.fleet.fleet_cache_gib,
        )
        self._id = self._own_id()
        self._worker: Worker | None = None
        self._jobs: dict[str, _Job] = {}
        self._unwanted: collections.OrderedDict[str, None] = collections.OrderedDict()
        self._door = ""
        self._lines: asyncio.Queue[str | None] | None = None
        self._others: set[asyncio.Queue[str | None]] = set()  # doors that listen beside it
        self._changing = asyncio.Lock()
        self._able = self._machine.able(self._slot)

    # For Ray

    def record_routing_stats(self) -> dict[str, Any]:
        """What our request router scores by, for callers that are no front door."""
        return report_of(
            self._worker,
            replica=self._id,
            machine=self._machine,
            able=self._able[0],
            memory_gib=self._machine.memory_gib(self._slot),
            load=psutil.cpu_percent() / 100,
        )

    def check_health(self) -> None:
        """The worker process is looked after here; Ray replaces us only when this process is gone."""

    # For the front door

    async def watch(self, door: str, *, to: str) -> AsyncIterator[str]:
        """Everything that happens here from now on, for one front door."""
        if self._lines is not None:
            self._lines.put_nowait(None)
        lines = self._lines = asyncio.Queue()
        if door != self._door:
            self._door = door
            await self._leave_jobs()
        lines.put_nowait(messages.encode(self._hello()))
        if self._worker is None:
            await self._wake()
        else:
            self._retell(self._worker, lines)
        pulse = asyncio.create_task(self._tell_pulse(lines), name="pulse")
        try:
            while (line := await lines.get()) is not None:
                yield line
        finally:
            pulse.cancel()
            if self._lines is lines:
                self._lines = None

    async def listen(self, *, to: str) -> AsyncIterator[str]:
        """The same for a front door that does not route: nothing changes here by its listening."""
        lines: asyncio.Queue[str | None] = asyncio.Queue()
        lines.put_nowait(messages.encode(self._hello()))
        if self._worker is None:
            lines.put_nowait(messages.encode(messages.Asleep()))
        else:
            self._retell(self._worker, lines)
        pulse = asyncio.create_task(self._tell_pulse(lines), name="pulse")
        self._others.add(lines)
        try:
            while (line := await lines.get()) is not None:
                yield line
        finally:
            pulse.cancel()
            self._others.discard(lines)

    async def run(self, job_id: str, request: str, *, to: str | None = None) -> AsyncIterator[Any]:
        """Draw a job, here or where Ray sends it. `taken` or `refused` at once, and after its end (name, part, is_last) of its pictures' files."""
        async for said in self._draw({job_id: json.loads(request)}):
            if not (isinstance(said, str) and said.startswith(ENDED)):
                yield said

    async def run_together(self, jobs: str, *, to: str) -> AsyncIterator[Any]:
        """The same of [id, request] pairs that can be drawn together; after the pictures of each `ended` and its id."""
        async for said in self._draw(dict(json.loads(jobs))):
            yield said

    async def _draw(self, requests: dict[str, Any]) -> AsyncIterator[Any]:
        worker = self._worker
        wanted = {id: each for id, each in requests.items() if id not in self._unwanted}
        if not wanted:
            yield f"{REFUSED}: it was cancelled on its way"
            return
        if worker is None or not worker.takes_jobs or self._jobs.keys() & wanted.keys():
            yield f"{REFUSED}: the worker is {'asleep' if worker is None else worker.state.value}"
            return
        ends: asyncio.Queue[_Job] = asyncio.Queue()
        here = {job_id: _Job(job_id, ends) for job_id in wanted}
        self._jobs |= here
        try:
            await worker.run(list(wanted.items()), is_alone=False)
            yield TAKEN
            for job_id in requests.keys() - wanted.keys():
                self._say(events.WasCancelled(job_id=job_id))
            while here:
                job = await ends.get()
                async for part in self._pictures(job):
                    yield part
                yield f"{ENDED} {job.id}"
                self._let_go(here.pop(job.id))
        finally:
            for job in here.values():
                if not job.has_ended:  # the front door is gone, or wants it no more
                    await worker.cancel(job.id)
                self._let_go(job)

    async def _pictures(self, job: _Job) -> AsyncIterator[tuple[str, bytes, bool]]:
        folder = self._machine.settings.storage.output_dir / images.STAGING
        for name in job.files:
            data = await asyncio.to_thread((folder / name).read_bytes)
            for start in range(0, len(data), CHUNK_BYTES):
                part = data[start : start + CHUNK_BYTES]
                yield (name, part, start + CHUNK_BYTES >= len(data))

    def _let_go(self, job: _Job) -> None:
        self._jobs.pop(job.id, None)
        if job.has_ended:
            images.discard_staged(self._machine.settings.storage.output_dir, job.id)

    async def tell(self, line: str, *, to: str) -> None:
        """A word of the front door's to the worker."""
        message = messages.decode(line)
        match message:
            case messages.Sleep():
                await self._sleep()
            case messages.Wake():
                await self._wake()
            case messages.Kill():
                if self._worker is not None:
                    self._worker.kill(message.code, message.why)
            case events.Cancel():
                await self._cancel(message.job_id)
            case events.Load():
                if self._worker is not None:
                    await self._worker.load(message.model)
            case events.Unload():
                if self._worker is not None:
                    await self._worker.unload(message.model)
            case events.Previews():
                if self._worker is not None:
                    await self._worker.want_previews(message.wanted)
            case _:
                raise ValueError(f"a replica is not told {type(message).__name__}")

    async def missing(self, wanted: str, *, to: str) -> str:
        """Of [kind, SHA-256] pairs those that this machine has not, as JSON."""
        pairs = [tuple(pair) for pair in json.loads(wanted)]
        return json.dumps(await asyncio.to_thread(self._files.missing, pairs))

    async def receive(
        self, kind: str, sha256: str, part: bytes, is_first: bool, is_last: bool, *, to: str
    ) -> None:
        """A file that a job needs, part by part, in order."""

        def take() -> None:
            if is_first:
                self._files.begin(kind, sha256)
            try:
                self._files.write(sha256, part)
            except OSError:
                self._files.drop(sha256)
                raise
            if is_last:
                self._files.end(kind, sha256)

        await asyncio.to_thread(take)

    # WorkerListener

    async def on_event(self, worker: Worker, event: Any) -> None:
        match event:
            case events.Finished():
                names = tuple(image["filename"] for image in event.result["images"])
                self._end(event.job_id, names)
            case events.Failed() | events.WasCancelled():
                self._end(event.job_id)
        self._say(event)

    async def on_death(self, worker: Worker, death: Death) -> None:
        begun = [job.id for job in death.jobs if job.begun_at is not None]
        for job in death.jobs:
            self._end(job.id)
            images.discard_staged(self._machine.settings.storage.output_dir, job.id)
        if worker.state is WorkerState.RESTARTING:
            self._say(messages.Died(exit_text=death.exit_text, code=death.code, begun=begun))

    # Inside

    def _own_id(self) -> str:
        from ray import serve

        return serve.get_replica_context().replica_id.unique_id

    def _hello(self) -> messages.Hello:
        models, reasons = self._able = self._machine.able(self._slot)
        return messages.Hello(
            replica=self._id,
            node=self._machine.name,
            slot=self._slot.name,
            precision=self._machine.profile.name,
            resources=sorted(self._machine.resources),
            models=models,
            reasons=reasons,
            memory_gib=self._machine.memory_gib(self._slot),
            gpus=[asdict(gpu) for gpu in self._slot.gpus],
            is_apple=self._slot.is_apple,
            pid=os.getpid(),
            max_batch_size=self._machine.settings.worker.max_batch_size,
        )

    def _make_worker(self, slot: WorkerSlot) -> Worker:
        machine = self._machine
        return Worker(slot, machine.profile, machine.settings, machine.default, self)

    def _retell(self, worker: Worker, lines: asyncio.Queue[str | None]) -> None:
        """What the next front door must know of a worker that is up already."""

        def say(message: Any) -> None:
            lines.put_nowait(messages.encode(message))

        if worker.device is not None and worker.state is not WorkerState.RESTARTING:
            say(events.Ready(device=worker.device, versions=worker.versions, safety=worker.safety))
            say(
                events.Holds(
                    models=[(model, held.gib) for model, held in worker.models.items()],
                    memory_mib=worker.memory_mib or 0,
                )
            )
        if worker.model is not None and worker.engine is not None:
            say(
                events.Loaded(
                    model=worker.model,
                    engine=worker.engine,
                    compute=worker.compute or "",
                    batches_exactly=worker.batches_exactly,
                    milliseconds=0.0,
                    memory_mib=worker.memory_mib or 0,
                )
            )

    async def _wake(self) -> None:
        async with self._changing:
            if self._worker is None:
                self._worker = self._make_worker(self._slot)
                self._worker.start()

    async def _sleep(self) -> None:
        async with self._changing:
            worker = self._worker
            if worker is None or worker.jobs:
                return
            self._worker = None
            await worker.stop()
            self._say(messages.Asleep())

    async def _leave_jobs(self) -> None:
        """An earlier front door's: what they were put back for is drawn anew, here or elsewhere."""
        for job in list(self._jobs.values()):
            job.end()
        if self._worker is not None:
            for job_id in list(self._worker.jobs):
                await self._worker.cancel(job_id)

    async def _cancel(self, job_id: str) -> None:
        if self._worker is not None and job_id in self._worker.jobs:
            await self._worker.cancel(job_id)
        elif job_id not in self._jobs:  # it is on its way, or has ended
            self._unwanted[job_id] = None
            while len(self._unwanted) > UNWANTED_KEPT:
                self._unwanted.popitem(last=False)

    def _end(self, job_id: str, files: tuple[str, ...] = ()) -> None:
        job = self._jobs.get(job_id)
        if job is None:  # nobody waits for its files
            images.discard_staged(self._machine.settings.storage.output_dir, job_id)
        else:
            job.end(files)

    def _say(self, message: Any) -> None:
        line = messages.encode(message)
        for lines in (self._lines, *self._others):
            if lines is not None:
                lines.put_nowait(line)

    async def _tell_pulse(self, lines: asyncio.Queue[str | None]) -> None:
        psutil.cpu_percent()
        told = self._able
        while True:
            await asyncio.sleep(PULSE_SECONDS)
            with contextlib.suppress(OSError):
                self._able = await asyncio.to_thread(self._machine.able, self._slot)
            cards = [await asyncio.to_thread(gpu_manager.read_load, gpu) for gpu in self._slot.gpus]
            is_new, told = self._able != told, self._able
            pulse = messages.Pulse(
                processors=psutil.cpu_percent() / 100,
                cards=cards,
                models=self._able[0] if is_new else None,
                reasons=self._able[1] if is_new else None,
            )
            lines.put_nowait(messages.encode(pulse))
