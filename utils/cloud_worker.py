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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from config.catalog import Catalog, ModelRow
from config.errors import FluxError, ModelUnavailable, StorageUnavailable
from config.settings import Settings
from models import safety
from models.bfl import Bfl
from models.bfl_errors import (
    MAY_COST,
    CloudBusy,
    CloudError,
    CloudLate,
    CloudUnclear,
    CloudUnreachable,
    Moderated,
)
from models.bfl_prices import Prices
from models.bfl_request import CloudTask
from models.hub import on_disk
from models.types import FailedImage, GenerationRequest, GenerationResult, ImageFile, Stage
from utils import cloud_pictures, images
from utils.checker_process import CheckerProcess
from utils.cloud_tasks import Asked, CloudTasks
from utils.cloud_turns import CloudTurns, Place
from utils.gpu_manager import WorkerSlot
from utils.line import Lane
from utils.log_forms import without
from utils.worker import events
from utils.worker.inspection import Inspection, NotSafe
from utils.worker.parent import (
    Death,
    GivenJob,
    HeldModel,
    WorkerListener,
    WorkerState,
    child_environment,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_PICTURES = 24  # of one account, in BFL's cloud at once
MAX_DOWNLOADS = 4
MAX_UPLOADS = 2  # of requests with pictures
MAX_UNKNOWN = 100  # statuses that are told of
UNREACHABLE_TRIES = 3
PAUSE_SECONDS = 1.0  # doubled for each time in a row
LEAST_PAUSE_SECONDS = 0.25  # grows with each time in a row
STORE_PAUSE_SECONDS = 1.0
LEAVE_SECONDS = 10.0  # a stop waits so long for the answer to a request that has left
PERCENT = 100
_RUNNING = frozenset(
    {"Pending", "Queued", "Request Accepted", "Processing", "Reasoning", "Generating", "Ready"}
)


@dataclass(slots=True, kw_only=True)
class _Job:
    """A job in the cloud."""

    id: str
    request: GenerationRequest
    row: ModelRow
    number: int  # in the order they came
    price_usd: float  # of one picture, as far as can be told before
    progress: dict[int, float] = field(default_factory=dict)  # by picture, 0 to 1
    timings: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("load", "lora", "encode", "denoise", "decode", "cloud", "save"), 0.0
        )
    )


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
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
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
        self._bfl = Bfl(settings.cloud)
        self._checker, self._inspection = _checker_of(settings, catalog, self.slot)
        self.safety = self._inspection.name
        self._preparing: asyncio.Task[None] | None = None
        self._turns = CloudTurns(MAX_PICTURES, monotonic)
        self._numbers = itertools.count()
        self._drawing: dict[str, asyncio.Task[events.Finished]] = {}
        self._ends: set[asyncio.Task[None]] = set()
        self._asking: set[asyncio.Task[CloudTask]] = set()
        self._saving = asyncio.Semaphore(1)  # a picture of 4K takes 50 MB while it is decoded
        self._sending = asyncio.Semaphore(MAX_UPLOADS)
        self._fetching = asyncio.Semaphore(MAX_DOWNLOADS)  # each is in memory as a whole
        self._unknown: set[str] = set()  # statuses that were told of
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
        if self._asking:  # whether the cloud has it must be known, if it can be
            _, silent = await asyncio.wait(self._asking, timeout=LEAVE_SECONDS)
            for asking in silent:  # its row says that nobody knows
                asking.cancel()
            await asyncio.gather(*silent, return_exceptions=True)
        jobs = tuple(self.jobs.values())
        self.jobs.clear()
        await self._listener.on_death(self, Death(jobs=jobs, exit_text="the service stops"))  # type: ignore[arg-type]
        await self._bfl.close()

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
            if self._is_stopped:
                return  # it is still ours, and goes back into the line
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
        pixels = await asyncio.to_thread(cloud_pictures.pixels_of, self._inputs_dir, request)
        price = self._prices.estimate(row, request, pixels) / request.num_images
        job = _Job(id=job_id, request=request, row=row, number=number, price_usd=price)
        await self._tell_progress(job)
        await self._prepare_checker()
        files, failed = await self._files(job)
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

    async def _files(self, job: _Job) -> tuple[tuple[ImageFile, ...], tuple[FailedImage, ...]]:
        """The pictures that came, and those that did not. Raises the first one's error where none came.

        They are asked for one after the other and waited for at once. One that fails ends no other,
        because what the cloud has taken is paid for; after a refusal no more are asked for.
        """
        known = {i: asked for i, asked in enumerate(await self._tasks.of_job(job.id))}
        waiting: dict[int, asyncio.Task[ImageFile]] = {}
        errors: dict[int, Exception] = {}
        try:
            for index in range(job.request.num_images):
                place = (job.number, index)
                asked = known.get(index)
                task = None if asked is None else asked.task
                is_resumed = task is not None
                if task is not None:
                    self._turns.enter(place)
                    log.info(
                        "a picture of an earlier start is looked after again",
                        extra={"action": "cloud_resumed", "job_id": job.id},
                    )
                elif errors:
                    errors[index] = next(iter(errors.values()))
                    continue
                else:
                    try:
                        task = await self._taken(job, index, place)
                    except Exception as error:
                        errors[index] = error
                        continue
                picture = self._picture(job, index, place, task, is_resumed=is_resumed)
                waiting[index] = asyncio.create_task(picture, name=f"picture {job.id}-{index}")
            if waiting:
                await asyncio.wait(waiting.values())
        except BaseException:
            for picture_task in waiting.values():
                picture_task.cancel()
            await asyncio.gather(*waiting.values(), return_exceptions=True)
            for index in waiting:  # also of one that was cancelled before it began
                await self._turns.leave((job.number, index))
            raise
        files = {}
        for index, done in waiting.items():
            if (error := done.exception()) is None:
                files[index] = done.result()
            else:
                errors[index] = error  # type: ignore[assignment] # no other kinds come out of a task
        if not files:
            raise errors[min(errors)]
        failed = tuple(_failed_image(job, index, errors[index]) for index in sorted(errors))
        return self._in_a_row([files[index] for index in sorted(files)], job), failed

    def _in_a_row(self, files: Sequence[ImageFile], job: _Job) -> tuple[ImageFile, ...]:
        """The files in staging by the names of their places, as those of any job are."""
        renamed = []
        for place, file in enumerate(files):
            name = images.filename_of(job.id, place, job.request.output_format)
            images.rename_staged(self._output_dir, file.filename, name)
            renamed.append(replace(file, filename=name))
        return tuple(renamed)

    async def _taken(self, job: _Job, index: int, place: Place) -> CloudTask:
        """A picture that the cloud has. Raises CloudError."""
        try:
            return await self._asked_until_taken(job, index, place)
        except BaseException:
            await self._turns.leave(place)
            raise

    async def _asked_until_taken(self, job: _Job, index: int, place: Place) -> CloudTask:
        """Ask when it is the picture's turn, and again when it was told to come back."""
        tries, give_up_at = 0, None
        while True:
            try:
                await self._turns.wait(place)
                asking = asyncio.create_task(self._ask(job, index), name=f"ask {job.id}-{index}")
                self._asking.add(asking)
                asking.add_done_callback(self._was_answered)
                # A cancel does not break a request off: what the cloud has taken must be known.
                return await asyncio.shield(asking)
            except (CloudBusy, CloudUnreachable) as error:
                now, tries = self._monotonic(), tries + 1
                give_up_at = give_up_at or now + self._settings.bfl_poll_timeout
                pause: float | None = error.retry_after_seconds
                if pause is None:
                    pause = PAUSE_SECONDS * 2 ** (tries - 1)
                pause = max(pause, LEAST_PAUSE_SECONDS * tries)  # also where the cloud says at once
                is_late = isinstance(error, CloudUnreachable) and tries >= UNREACHABLE_TRIES
                if is_late or now + pause > give_up_at:
                    raise
                self._turns.hold(pause)

    def _was_answered(self, asking: asyncio.Task[CloudTask]) -> None:
        """What it came to stands in its row; where the job was cancelled nobody else asks for it."""
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()

    async def _ask(self, job: _Job, index: int) -> CloudTask:
        """One request, noted before and after. Raises CloudError."""
        if not job.request.inputs:
            return await self._ask_now(job, index)
        async with self._sending:
            return await self._ask_now(job, index)

    async def _ask_now(self, job: _Job, index: int) -> CloudTask:
        seed = job.request.seed + index
        body = await asyncio.to_thread(
            cloud_pictures.body_with, self._inputs_dir, job.row, job.request, seed
        )
        self._leave_if_unwanted(job)
        asked, may_be_asked = await self._until_stored(
            lambda: self._tasks.begin(job.id, index, job.price_usd)
        )
        if not may_be_asked:
            if asked.task is not None:
                return asked.task
            await self._until_stored(lambda: self._tasks.ended(job.id, index, Asked.UNCLEAR))
            raise CloudUnclear(
                "the service ended while BFL was asked for this picture, and nobody knows whether BFL took it: "
                f"{MAY_COST}. It is not asked for again by itself; POST /jobs/{job.id}/retry does"
            )
        try:
            self._leave_if_unwanted(job)
        except asyncio.CancelledError:
            await self._until_stored(lambda: self._tasks.ended(job.id, index, Asked.REFUSED))
            raise
        try:
            task = await self._bfl.submit(job.row.source, body)
        except CloudError as error:
            state = Asked.REFUSED if error.is_free else Asked.UNCLEAR
            await self._until_stored(lambda: self._tasks.ended(job.id, index, state))
            raise
        await self._until_stored(lambda: self._tasks.taken(job.id, index, task))
        log.info(
            "BFL draws a picture (task %s)",
            task.id,
            extra={"action": "cloud_asked", "job_id": job.id, "model": job.request.model},
        )
        return task

    def _leave_if_unwanted(self, job: _Job) -> None:
        """Until the request leaves nothing is paid, and nobody may want it any more."""
        given = self.jobs.get(job.id)
        if self._is_stopped or given is None or given.unwanted_since is not None:
            raise asyncio.CancelledError

    async def _picture(
        self, job: _Job, index: int, place: Place, task: CloudTask, *, is_resumed: bool
    ) -> ImageFile:
        started = self._monotonic()
        try:
            data = await self._fetched(job, index, task, is_resumed=is_resumed)
        except Moderated:
            await self._until_stored(lambda: self._tasks.blocked(job.id, index))
            raise
        finally:
            await self._turns.leave(place)
        job.timings["cloud"] = max(job.timings["cloud"], self._ms_since(started))
        async with self._saving:
            await self._tell_progress(job, Stage.SAVING)
            started = self._monotonic()
            file = await self._kept(job, index, data)
            job.timings["save"] += self._ms_since(started)
        return file

    async def _fetched(self, job: _Job, index: int, task: CloudTask, *, is_resumed: bool) -> bytes:
        """Look after a task until its picture is here. Raises CloudError."""
        give_up_at = self._monotonic() + self._settings.bfl_poll_timeout
        pause = 0.0 if is_resumed else self._settings.bfl_poll_interval
        last = "no answer yet"
        while True:
            if self._monotonic() + pause > give_up_at:
                raise CloudLate(
                    f"BFL had no picture after {self._settings.bfl_poll_timeout:g} s (FLUX_BFL_POLL_TIMEOUT), "
                    f"its last word: {last}. {MAY_COST}; its task is {task.id}"
                )
            await asyncio.sleep(pause)
            pause = self._settings.bfl_poll_interval
            try:
                look = await self._bfl.look(task)
                self._note_status(look.status)
                last = look.status
                if look.picture_url is not None:
                    async with self._fetching:
                        return await self._bfl.download(look.picture_url)
                if look.progress is not None:
                    job.progress[index] = look.progress
                    await self._tell_progress(job)
            except CloudBusy as error:
                pause = max(pause, error.retry_after_seconds or 0)
                last = error.message
            except CloudUnreachable as error:
                last = error.message

    async def _kept(self, job: _Job, index: int, data: bytes) -> ImageFile:
        keep = functools.partial(
            cloud_pictures.keep, data, job.row, job.request, job_id=job.id, index=index
        )
        keeping = asyncio.create_task(
            asyncio.to_thread(keep, output_dir=self._output_dir, inspection=self._inspection)
        )
        try:
            return await asyncio.shield(keeping)
        except asyncio.CancelledError:
            # Its file is thrown away after it was written.
            await asyncio.gather(keeping, return_exceptions=True)
            raise
        except (NotSafe, ModelUnavailable) as error:
            raise type(error)(f"{error.message}. {MAY_COST}") from error
        except OSError as error:
            raise StorageUnavailable(
                f"the picture could not be written: {error.strerror}; free some disk space or check the "
                f"output folder. {MAY_COST}"
            ) from error

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

    async def _tell_progress(self, job: _Job, stage: Stage = Stage.CLOUD) -> None:
        steps = PERCENT * job.request.num_images
        step = round(PERCENT * sum(job.progress.values()))
        event = events.Progress(job_id=job.id, stage=stage, step=step, steps=steps)
        await self._listener.on_event(self, event)  # type: ignore[arg-type]

    def _note_status(self, status: str) -> None:
        """A status that nobody knows means that it is being drawn; it is told of once."""
        is_new = status not in _RUNNING and status not in self._unknown
        if is_new and len(self._unknown) < MAX_UNKNOWN:
            self._unknown.add(status)
            log.warning(
                "BFL says %r, which is taken for being drawn",
                status,
                extra={"action": "cloud_unknown_status"},
            )

    async def _until_stored(self, change: Callable[[], Awaitable[T]]) -> T:
        """What the cloud is asked for must be on disk before anything else is done about it."""
        while True:
            try:
                return await change()
            except StorageUnavailable as error:
                log.error("%s", error.message, extra={"action": "cloud_not_stored"})
                await asyncio.sleep(STORE_PAUSE_SECONDS)

    def _ms_since(self, started: float) -> float:
        return (self._monotonic() - started) * 1000


def _failed_image(job: _Job, index: int, error: Exception) -> FailedImage:
    """A picture that did not come, where others of its job did."""
    if isinstance(error, FluxError):
        code, message = error.code, error.message
    else:
        log.error(
            "a picture failed", extra={"action": "picture_failed", "job_id": job.id}, exc_info=error
        )
        code = "internal"
        message = f"drawing failed with {type(error).__name__}; the service's log has the details"
    log.warning(
        "picture %d of %d did not come: %s", index + 1, job.request.num_images, message,
        extra={"action": "cloud_picture_failed", "job_id": job.id},
    )  # fmt: skip
    return FailedImage(index=index, seed=job.request.seed + index, code=code, message=message)


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
