"""A worker without a process: the service's half is the real one, the child is played by the test.

What a child may do is here, in the order in which a real one does it: `begin` the jobs of the
oldest `Run`, `step`, `hand_over`, `put_down` the brush (only saving is left), `finish` or `fail`
each job, and at any moment `die`. What was said before a death is still heard, as with a socket.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from config.catalog import DefaultModel
from config.settings import Settings
from models.precision import profile_of
from models.types import GenerationRequest, GenerationResult, ImageFile, Stage
from utils import images
from utils.gpu_manager import WorkerSlot
from utils.worker import events
from utils.worker.parent import Worker, WorkerListener, WorkerState

PICTURE = b"picture"


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of the socket: how the process ended."""

    text: str


class FakeWorker(Worker):
    """Implements a child beside the service's own `Worker`. It is up as soon as it is started."""

    def __init__(self, name: str, settings: Settings, listener: WorkerListener) -> None:
        super().__init__(
            WorkerSlot(name=name),
            profile_of("bf16"),
            settings,
            DefaultModel("embedded", "no GPU"),
            listener,
        )
        self.sent: list[Any] = []  # everything the service ever told it
        self.runs: list[list[str]] = []  # the ids of each Run it was ever given
        self.is_up = False
        self.died_unheard = False  # the service has not dealt with its death yet
        self.batches_together = False  # what its model says of itself
        self._folder = settings.storage.output_dir
        self._forget()

    def _forget(self) -> None:
        self._said: asyncio.Queue[Any] = asyncio.Queue()
        self.given: collections.deque[list[str]] = collections.deque()  # Runs not begun
        self.drawing: list[str] = []
        self.saving: list[str] = []
        self.steps_done = 0
        self._requests: dict[str, GenerationRequest] = {}
        self._cancelled: set[str] = set()
        self._loaded: str | None = None

    @property
    def unheard(self) -> int:
        """What the child said and the service has not read."""
        return self._said.qsize()

    # In place of a process

    async def _live(self) -> str:
        self._forget()
        self.died_unheard = False
        self.is_up, self.state = True, WorkerState.STARTING
        self.say(events.Ready(device="cpu", versions={}))
        while not isinstance(said := await self._said.get(), Exit):
            await self._take(said)
        self.died_unheard = True
        return said.text

    async def send(self, event: Any) -> None:
        if not self.is_up:
            return
        self.sent.append(event)
        match event:
            case events.Run():
                ids = [job_id for job_id, _ in event.jobs]
                self.runs.append(ids)
                self.given.append(list(ids))
                for job_id, request in event.jobs:
                    self._requests[job_id] = GenerationRequest.from_json(request)
            case events.Cancel():
                self._cancelled.add(event.job_id)
            case events.Load():
                self._load(event.model)
            case events.Unload():
                self._loaded = None
                self.say(events.Unloaded(memory_mib=0))

    async def stop(self) -> None:
        """A child that is told to stop leaves its job, and ends those whose pictures are drawn."""
        self._stopping.set()
        for job_id in list(self.saving):
            self.finish(job_id)
        self.die("exit status 0")
        if self._supervisor is not None:
            await self._supervisor
        self.state, self.died_unheard = WorkerState.STOPPED, False

    def kill(self, code: str, why: str) -> None:
        if self.is_up:
            self._kill_reason = (code, why)
            self.die(why)

    # What a child does

    def say(self, event: Any) -> None:
        if self.is_up:
            self._said.put_nowait(event)

    def die(self, text: str = "killed by SIGKILL") -> None:
        self.say(Exit(text))
        self.is_up = False

    def begin(self) -> Sequence[str]:
        """Begin with the oldest Run; returns its ids."""
        assert self.given and not self.drawing
        self.drawing, self.steps_done = self.given.popleft(), 0
        begun = list(self.drawing)
        self.say(events.Begun(job_ids=begun))
        self._leave_cancelled()
        if self.drawing:
            self._load(self._requests[self.drawing[0]].model)
            self._progress(Stage.DENOISING)
        return begun

    def step(self) -> None:
        """One step of the sampler; a cancel is seen here."""
        self._leave_cancelled()
        self.steps_done += 1
        self._progress(Stage.DENOISING)

    def hand_over(self) -> None:
        """The last steps are done: the next jobs may come."""
        self._progress(Stage.DECODING)
        self.say(events.Handover())

    def put_down(self) -> None:
        """The pictures are drawn, and wait to be saved."""
        self.saving += self.drawing
        self.drawing = []

    def finish(self, job_id: str) -> None:
        """Stage the pictures and say so."""
        self._drop(job_id)
        request = self._requests[job_id]
        files = []
        for index in range(request.num_images):
            name = images.filename_of(job_id, index, request.output_format)
            (self._folder / images.STAGING).mkdir(parents=True, exist_ok=True)
            (self._folder / images.STAGING / name).write_bytes(PICTURE)
            files.append(
                ImageFile(
                    filename=name,
                    seed=request.seed + index,
                    width=request.width,
                    height=request.height,
                    size_bytes=len(PICTURE),
                )
            )
        timings = dict.fromkeys(("load", "encode", "denoise", "decode", "save"), 1.0)
        result = GenerationResult(
            images=tuple(files), engine="e", precision="bf16", device="cpu", timings_ms=timings
        )
        self.say(events.Finished(job_id=job_id, model=request.model, result=result.to_json()))

    def fail(self, job_id: str, code: str = "internal") -> None:
        self._drop(job_id)
        self.say(events.Failed(job_id=job_id, code=code, message="it failed"))

    def draw(self) -> Sequence[str]:
        """Everything from `begin` to `finish` for the oldest Run."""
        begun = self.begin()
        for _ in range(2):
            self.step()
        left = list(self.drawing)
        if left:
            self.hand_over()
        self.put_down()
        for job_id in left:
            self.finish(job_id)
        return begun

    # Inside

    def _load(self, model: str) -> None:
        if self._loaded == model:
            return
        self._loaded = model
        self.say(events.Loading(model=model))
        self.say(
            events.Loaded(
                model=model,
                engine="e",
                compute="c",
                batches_exactly=self.batches_together,
                milliseconds=1.0,
                memory_mib=1,
            )
        )

    def _leave_cancelled(self) -> None:
        for job_id in [job_id for job_id in self.drawing if job_id in self._cancelled]:
            self.drawing.remove(job_id)
            self.say(events.WasCancelled(job_id=job_id))

    def _progress(self, stage: Stage) -> None:
        for job_id in self.drawing:
            steps = self._requests[job_id].num_inference_steps
            self.say(
                events.Progress(
                    job_id=job_id, stage=stage, step=min(self.steps_done, steps), steps=steps
                )
            )

    def _drop(self, job_id: str) -> None:
        for jobs in (self.drawing, self.saving):
            if job_id in jobs:
                jobs.remove(job_id)
