"""The cloud as a worker: it has the face of `worker.parent.Worker`, and no process, device or model.

It has many jobs at once. Each picture of a job is asked for once: its row (`cloud_tasks`) is on disk
before the request leaves, and says where to look after it before that begins. So a service that ends,
in whatever way, goes on with what the cloud was asked for when it is back.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from config.catalog import Catalog
from config.errors import FluxError, StorageUnavailable
from config.settings import Settings
from models import safety
from models.bfl_prices import Prices
from models.hub import on_disk
from models.types import GenerationRequest, GenerationResult, Stage
from utils import cloud_pictures, images
from utils.checker_process import CheckerProcess
from utils.cloud_job import Cloud, CloudJob
from utils.cloud_tasks import Asked, CloudTasks
from utils.gpu_manager import WorkerSlot
from utils.line import Lane
from utils.log_forms import without
from utils.worker import events
from utils.worker.inspection import Inspection
from utils.worker.parent import (
    Death,
    GivenJob,
    HeldModel,
    WorkerListener,
    WorkerState,
    child_environment,
)

log = logging.getLogger(__name__)

LEAVE_SECONDS = 10.0  # a stop waits so long for the answer to a request that has left
PERCENT = 100


class CloudWorker:
    """A `worker.parent.Worker` in another place. `inputs_dir` has the pictures that requests bring."""

    lane = Lane.CLOUD
    # What a worker has that a cloud has not.
    model = engine = compute = loading = device = memory_mib = pid = None
    last_death = last_load_error = None
    batches_exactly = is_degraded = False
    deaths = 0

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        prices: Prices,
        tasks: CloudTasks,
        inputs_dir: Path,
        listener: WorkerListener,
        bring: Callable[[GenerationRequest], Awaitable[None]] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bring = bring  # what a request begins with, where others have it
        self.slot = WorkerSlot(name="bfl")
        self.jobs: dict[str, GivenJob] = {}
        self.versions: dict[str, str] = {}
        self.models: dict[str, HeldModel] = {}
        self._settings = settings.cloud
        self._output_dir = settings.storage.output_dir
        self._catalog = catalog
        self._prices = prices
        self._tasks = tasks
        self._inputs_dir = inputs_dir
        self._listener = listener
        self._monotonic = monotonic
        self._checker, self._inspection = _checker_of(settings, catalog, self.slot)
        self.safety = self._inspection.name
        self._preparing: asyncio.Task[None] | None = None
        self._cloud = Cloud(
            settings.cloud,
            tasks,
            self._inspection,
            output_dir=self._output_dir,
            inputs_dir=inputs_dir,
            monotonic=monotonic,
        )
        self._numbers = itertools.count()
        self._drawing: dict[str, asyncio.Task[events.Finished]] = {}
        self._ends: set[asyncio.Task[None]] = set()
        self._is_stopped = False

    # The face of a worker

    @property
    def name(self) -> str:
        return self.slot.name

    @property
    def state(self) -> WorkerState:
        if self._is_stopped:
            return WorkerState.STOPPED
        return WorkerState.BUSY if self.jobs else WorkerState.IDLE

    @property
    def job_id(self) -> str | None:
        return next(iter(self.jobs), None)

    @property
    def takes_jobs(self) -> bool:
        return not self._is_stopped and len(self.jobs) < self._settings.bfl_concurrency

    @property
    def is_free(self) -> bool:
        return self.takes_jobs

    @property
    def last_sign(self) -> float:
        """Nothing hangs here that would have to be ended: each wait has its own end."""
        return self._monotonic()

    def read_cards(self) -> list[dict[str, Any]]:
        return []

    def start(self) -> None:
        pass

    async def run(self, jobs: Sequence[tuple[str, dict[str, Any]]], *, is_alone: bool) -> None:
        now = self._monotonic()
        for job_id, request in jobs:
            self.jobs[job_id] = GivenJob(
                id=job_id, request=request, given_at=now, is_alone=is_alone, begun_at=now
            )
            drawing = asyncio.create_task(
                self._result(job_id, GenerationRequest.from_json(request), next(self._numbers)),
                name=f"cloud {job_id}",
            )
            self._drawing[job_id] = drawing
            # A task of its own: one that is cancelled before it began would tell nobody of its end.
            end = asyncio.create_task(self._end(job_id, drawing), name=f"cloud's end {job_id}")
            self._ends.add(end)
            end.add_done_callback(self._ends.discard)

    async def cancel(self, job_id: str) -> None:
        """Wait no more for a job. What the cloud has begun it may finish, and charge."""
        job = self.jobs.get(job_id)
        if job is not None and job.unwanted_since is None:
            job.unwanted_since = self._monotonic()
            self._drawing[job_id].cancel()

    def leave(self) -> None:
        """Another front door looks after its jobs from now on."""
        self.jobs.clear()
        for drawing in self._drawing.values():
            drawing.cancel()
        self._drawing.clear()

    async def stop(self) -> None:
        """Leave everything as it is; what the cloud has is looked after when the service is back."""
        self._is_stopped = True
        for drawing in self._drawing.values():
            drawing.cancel()
        if self._checker is not None:
            self._checker.close()
        await asyncio.gather(*self._ends, return_exceptions=True)
        if self._preparing is not None:
            await asyncio.gather(self._preparing, return_exceptions=True)
        if self._cloud.asking:  # whether the cloud has it must be known, if it can be
            _, silent = await asyncio.wait(self._cloud.asking, timeout=LEAVE_SECONDS)
            for asking in silent:  # its row says that nobody knows
                asking.cancel()
            await asyncio.gather(*silent, return_exceptions=True)
        jobs = tuple(self.jobs.values())
        self.jobs.clear()
        await self._listener.on_death(self, Death(jobs=jobs, exit_text="the service stops"))  # type: ignore[arg-type]
        await self._cloud.bfl.close()

    def idle_seconds(self, model: str) -> float:
        return 0.0

    async def load(self, model: str) -> None:
        pass

    async def unload(self) -> None:
        pass

    async def want_previews(self, wanted: bool) -> None:
        pass

    def kill(self, code: str, why: str) -> None:
        log.error("the cloud's jobs: %s", why, extra={"action": "cloud_late", "worker": self.name})

    # A job

    async def _end(self, job_id: str, drawing: asyncio.Task[events.Finished]) -> None:
        """Wait for the end of a job and tell it."""
        await asyncio.wait({drawing})
        if drawing.cancelled():
            if self._is_stopped or job_id not in self.jobs:
                return  # it goes back into the line, or another front door looks after it
            event: Any = events.WasCancelled(job_id=job_id)
        elif (error := drawing.exception()) is None:
            event = drawing.result()
        elif isinstance(error, FluxError):
            event = await self._failed(job_id, error)
        else:
            log.error(
                "a job failed", extra={"action": "job_failed", "job_id": job_id}, exc_info=error
            )
            message = (
                f"drawing failed with {type(error).__name__}; the service's log has the details"
            )
            event = events.Failed(job_id=job_id, code="internal", message=message)
        self.jobs.pop(job_id, None)
        self._drawing.pop(job_id, None)
        if not isinstance(event, events.Finished):
            images.discard_staged(self._output_dir, job_id)
        try:
            await self._listener.on_event(self, event)  # type: ignore[arg-type]
        except Exception:
            log.exception(
                "an event was not handled", extra={"action": "event_failed", "worker": self.name}
            )

    async def _result(
        self, job_id: str, request: GenerationRequest, number: int
    ) -> events.Finished:
        row = self._catalog[request.model]
        if self._bring is not None:
            await self._bring(request)
        pixels = await asyncio.to_thread(cloud_pictures.pixels_of, self._inputs_dir, request)
        price = self._prices.estimate(row, request, pixels) / request.num_images
        tell_progress = functools.partial(self._tell_progress, job_id, request.num_images)
        job = CloudJob(
            id=job_id,
            request=request,
            row=row,
            number=number,
            price_usd=price,
            cloud=self._cloud,
            is_wanted=functools.partial(self._is_wanted, job_id),
            tell_progress=tell_progress,
        )
        await tell_progress(Stage.CLOUD, 0.0)
        await self._prepare_checker()
        files, failed = await job.pictures()
        asked_for = await self._tasks.of_job(job_id)
        cost = sum(asked.usd for asked in asked_for if asked.state is not Asked.REFUSED)
        result = GenerationResult(
            images=files,
            failed=failed,
            engine=cloud_pictures.ENGINE,
            precision=cloud_pictures.PRECISION,
            device="BFL's cloud",
            timings_ms={name: round(value, 1) for name, value in job.timings.items()},
            cost_usd=round(cost, 6),
        )
        return events.Finished(job_id=job_id, model=request.model, result=result.to_json())

    async def _prepare_checker(self) -> None:
        """Whether pictures can be looked at is known before one is paid for. Raises ModelUnavailable."""
        if self._preparing is None:  # jobs that come together wait for one and the same
            self._preparing = asyncio.create_task(asyncio.to_thread(self._be_ready_to_look))
            self._preparing.add_done_callback(self._was_prepared)
        await asyncio.shield(self._preparing)

    def _be_ready_to_look(self) -> None:
        self._inspection.prepare()
        if self._checker is not None:
            self._checker.prepare()  # it may have ended since the last picture

    def _was_prepared(self, preparing: asyncio.Task[None]) -> None:
        self._preparing = None
        if not preparing.cancelled():
            preparing.exception()  # who waited has it; perhaps nobody does any more

    # Inside

    async def _failed(self, job_id: str, error: FluxError) -> events.Failed:
        """The end of a job, with what its other pictures cost."""
        message = error.message
        try:
            asked = await self._tasks.of_job(job_id)
        except StorageUnavailable:
            asked = []
        taken = sum(each.state is Asked.TAKEN for each in asked)
        if len(asked) > 1 and taken:
            message += (
                f". {taken} of its pictures were asked for, and BFL charges those that it drew"
            )
        given = self.jobs.get(job_id)
        prompts = (
            [given.request.get(name) for name in ("prompt", "negative_prompt")] if given else []
        )
        log.warning(
            "%s",
            without(message, prompts),  # BFL's words may be the client's
            extra={"action": "cloud_failed", "job_id": job_id, "worker": self.name},
        )
        return events.Failed(job_id=job_id, code=error.code, message=message)

    def _is_wanted(self, job_id: str) -> bool:
        """Whether a job may still ask for something that costs."""
        given = self.jobs.get(job_id)
        return not self._is_stopped and given is not None and given.unwanted_since is None

    async def _tell_progress(
        self, job_id: str, pictures: int, stage: Stage, are_drawn: float
    ) -> None:
        steps, step = PERCENT * pictures, round(PERCENT * are_drawn)
        event = events.Progress(job_id=job_id, stage=stage, step=step, steps=steps)
        await self._listener.on_event(self, event)  # type: ignore[arg-type]


def _checker_of(
    settings: Settings, catalog: Catalog, slot: WorkerSlot
) -> tuple[CheckerProcess | None, Inspection]:
    """Who looks at what the cloud delivers, as a worker looks at what it draws; None: nobody."""
    models = settings.models
    weights = None
    if models.safety_checker != "off":
        hub = on_disk.hub_folder(models.models_dir)
        weights, _ = safety.find(models.safety_model, hub, catalog)
    if weights is None:
        is_needed = safety.is_named(models)
        return None, Inspection(None, models.safety_checker, is_needed=is_needed)
    checker = CheckerProcess(weights, child_environment(slot, settings))
    return checker, Inspection(weights, models.safety_checker, lambda weights: checker)
