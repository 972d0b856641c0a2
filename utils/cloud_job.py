"""The pictures of a job in the cloud: each is asked for once, looked after until it is there, and kept.

What the cloud is asked for, and what it answers, is on disk (`cloud_tasks`) before anything else is done
about it. So a job that is run again after a stop goes on with what the cloud has.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from config.catalog import ModelRow
from config.errors import FluxError, ModelUnavailable, StorageUnavailable
from config.settings import CloudSettings
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
from models.bfl_request import CloudTask
from models.types import FailedImage, GenerationRequest, ImageFile, Stage
from utils import cloud_pictures, images
from utils.cloud_tasks import Asked, CloudTasks
from utils.cloud_turns import CloudTurns, Place
from utils.log_forms import without
from utils.worker.inspection import Inspection, NotSafe

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
_RUNNING = frozenset(
    {"Pending", "Queued", "Request Accepted", "Processing", "Reasoning", "Generating", "Ready"}
)


class Cloud:
    """What jobs share: BFL, the rows of what it was asked for, and who may do how much of what at once."""

    def __init__(
        self,
        settings: CloudSettings,
        tasks: CloudTasks,
        inspection: Inspection,
        *,
        output_dir: Path,
        inputs_dir: Path,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.bfl = Bfl(settings)
        self.tasks = tasks
        self.inspection = inspection
        self.output_dir = output_dir
        self.inputs_dir = inputs_dir
        self.monotonic = monotonic
        self.turns = CloudTurns(MAX_PICTURES, monotonic)
        self.asking: set[asyncio.Task[CloudTask]] = set()  # also of jobs that nobody wants any more
        self.saving = asyncio.Semaphore(1)  # a picture of 4K takes 50 MB while it is decoded
        self.sending = asyncio.Semaphore(MAX_UPLOADS)
        self.fetching = asyncio.Semaphore(MAX_DOWNLOADS)  # each is in memory as a whole
        self._unknown: set[str] = set()  # statuses that were told of

    def was_answered(self, asking: asyncio.Task[CloudTask]) -> None:
        """What it came to stands in its row; where the job was cancelled nobody else asks for it."""
        self.asking.discard(asking)
        if not asking.cancelled():
            asking.exception()

    def note_status(self, status: str) -> None:
        """A status that nobody knows means that it is being drawn; it is told of once."""
        is_new = status not in _RUNNING and status not in self._unknown
        if is_new and len(self._unknown) < MAX_UNKNOWN:
            self._unknown.add(status)
            log.warning(
                "BFL says %r, which is taken for being drawn",
                status,
                extra={"action": "cloud_unknown_status"},
            )

    def ms_since(self, started: float) -> float:
        return (self.monotonic() - started) * 1000


@dataclass(slots=True, kw_only=True)
class CloudJob:
    """A job in the cloud."""

    id: str
    request: GenerationRequest
    row: ModelRow
    number: int  # in the order they came
    price_usd: float  # of one picture, as far as can be told before
    cloud: Cloud
    is_wanted: Callable[[], bool]
    tell_progress: Callable[[Stage, float], Awaitable[None]]  # so many pictures are drawn
    progress: dict[int, float] = field(default_factory=dict)  # by picture, 0 to 1
    timings: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("load", "lora", "encode", "denoise", "decode", "cloud", "save"), 0.0
        )
    )

    async def pictures(self) -> tuple[tuple[ImageFile, ...], tuple[FailedImage, ...]]:
        """The pictures that came, and those that did not. Raises the first one's error where none came.

        They are asked for one after the other and waited for at once. One that fails ends no other,
        because what the cloud has taken is paid for; after a refusal no more are asked for.
        """
        known = {i: asked for i, asked in enumerate(await self.cloud.tasks.of_job(self.id))}
        waiting: dict[int, asyncio.Task[ImageFile]] = {}
        errors: dict[int, Exception] = {}
        try:
            for index in range(self.request.num_images):
                place = (self.number, index)
                asked = known.get(index)
                task = None if asked is None else asked.task
                is_resumed = task is not None
                if task is not None:
                    self.cloud.turns.enter(place)
                    log.info(
                        "a picture of an earlier start is looked after again",
                        extra={"action": "cloud_resumed", "job_id": self.id},
                    )
                elif errors:
                    errors[index] = next(iter(errors.values()))
                    continue
                else:
                    try:
                        task = await self._taken(index, place)
                    except Exception as error:
                        errors[index] = error
                        continue
                picture = self._picture(index, place, task, is_resumed=is_resumed)
                waiting[index] = asyncio.create_task(picture, name=f"picture {self.id}-{index}")
            if waiting:
                await asyncio.wait(waiting.values())
        except BaseException:
            for picture_task in waiting.values():
                picture_task.cancel()
            await asyncio.gather(*waiting.values(), return_exceptions=True)
            for index in waiting:  # also of one that was cancelled before it began
                await self.cloud.turns.leave((self.number, index))
            raise
        files = {}
        for index, done in waiting.items():
            if (error := done.exception()) is None:
                files[index] = done.result()
            else:
                errors[index] = error  # type: ignore[assignment] # no other kinds come out of a task
        if not files:
            raise errors[min(errors)]
        failed = tuple(self._failed_image(index, errors[index]) for index in sorted(errors))
        return self._in_a_row([files[index] for index in sorted(files)]), failed

    def _in_a_row(self, files: Sequence[ImageFile]) -> tuple[ImageFile, ...]:
        """The files in staging by the names of their places, as those of any job are."""
        renamed = []
        for place, file in enumerate(files):
            name = images.filename_of(self.id, place, self.request.output_format)
            images.rename_staged(self.cloud.output_dir, file.filename, name)
            renamed.append(replace(file, filename=name))
        # Of an earlier run that ended before its result was committed, and had more.
        images.discard_published(self.cloud.output_dir, self.id, len(files))
        return tuple(renamed)

    async def _taken(self, index: int, place: Place) -> CloudTask:
        """A picture that the cloud has. Raises CloudError."""
        try:
            return await self._asked_until_taken(index, place)
        except BaseException:
            await self.cloud.turns.leave(place)
            raise

    async def _asked_until_taken(self, index: int, place: Place) -> CloudTask:
        """Ask when it is the picture's turn, and again when it was told to come back."""
        tries, give_up_at = 0, None
        while True:
            try:
                await self.cloud.turns.wait(place)
                asking = asyncio.create_task(self._ask(index), name=f"ask {self.id}-{index}")
                self.cloud.asking.add(asking)
                asking.add_done_callback(self.cloud.was_answered)
                # A cancel does not break a request off: what the cloud has taken must be known.
                return await asyncio.shield(asking)
            except (CloudBusy, CloudUnreachable) as error:
                now, tries = self.cloud.monotonic(), tries + 1
                give_up_at = give_up_at or now + self.cloud.settings.bfl_poll_timeout
                pause: float | None = error.retry_after_seconds
                if pause is None:
                    pause = PAUSE_SECONDS * 2 ** (tries - 1)
                pause = max(pause, LEAST_PAUSE_SECONDS * tries)  # also where the cloud says at once
                is_late = isinstance(error, CloudUnreachable) and tries >= UNREACHABLE_TRIES
                if is_late or now + pause > give_up_at:
                    raise
                self.cloud.turns.hold(pause)

    async def _ask(self, index: int) -> CloudTask:
        """One request, noted before and after. Raises CloudError."""
        if not self.request.inputs:
            return await self._ask_now(index)
        async with self.cloud.sending:
            return await self._ask_now(index)

    async def _ask_now(self, index: int) -> CloudTask:
        seed = self.request.seed + index
        body = await asyncio.to_thread(
            cloud_pictures.body_with, self.cloud.inputs_dir, self.row, self.request, seed
        )
        self._leave_if_unwanted()
        asked, may_be_asked = await _until_stored(
            lambda: self.cloud.tasks.begin(self.id, index, self.price_usd)
        )
        if not may_be_asked:
            if asked.task is not None:
                return asked.task
            await _until_stored(lambda: self.cloud.tasks.ended(self.id, index, Asked.UNCLEAR))
            raise CloudUnclear(
                "the service ended while BFL was asked for this picture, and nobody knows whether BFL took it: "
                f"{MAY_COST}. It is not asked for again by itself; POST /jobs/{self.id}/retry does"
            )
        try:
            self._leave_if_unwanted()
        except asyncio.CancelledError:
            await _until_stored(lambda: self.cloud.tasks.ended(self.id, index, Asked.REFUSED))
            raise
        try:
            task = await self.cloud.bfl.submit(self.row.source, body)
        except CloudError as error:
            state = Asked.REFUSED if error.is_free else Asked.UNCLEAR
            await _until_stored(lambda: self.cloud.tasks.ended(self.id, index, state))
            raise
        await _until_stored(lambda: self.cloud.tasks.taken(self.id, index, task))
        log.info(
            "BFL draws a picture (task %s)",
            task.id,
            extra={"action": "cloud_asked", "job_id": self.id, "model": self.request.model},
        )
        return task

    def _leave_if_unwanted(self) -> None:
        """Until the request leaves nothing is paid, and nobody may want it any more."""
        if not self.is_wanted():
            raise asyncio.CancelledError

    async def _picture(
        self, index: int, place: Place, task: CloudTask, *, is_resumed: bool
    ) -> ImageFile:
        started = self.cloud.monotonic()
        try:
            data = await self._fetched(index, task, is_resumed=is_resumed)
        except Moderated:
            await _until_stored(lambda: self.cloud.tasks.blocked(self.id, index))
            raise
        finally:
            await self.cloud.turns.leave(place)
        self.timings["cloud"] = max(self.timings["cloud"], self.cloud.ms_since(started))
        async with self.cloud.saving:
            await self._tell(Stage.SAVING)
            started = self.cloud.monotonic()
            file = await self._kept(index, data)
            self.timings["save"] += self.cloud.ms_since(started)
        return file

    async def _fetched(self, index: int, task: CloudTask, *, is_resumed: bool) -> bytes:
        """Look after a task until its picture is here. Raises CloudError."""
        give_up_at = self.cloud.monotonic() + self.cloud.settings.bfl_poll_timeout
        pause = 0.0 if is_resumed else self.cloud.settings.bfl_poll_interval
        last = "no answer yet"
        while True:
            if self.cloud.monotonic() + pause > give_up_at:
                raise CloudLate(
                    f"BFL had no picture after {self.cloud.settings.bfl_poll_timeout:g} s (FLUX_BFL_POLL_TIMEOUT), "
                    f"its last word: {last}. {MAY_COST}; its task is {task.id}"
                )
            await asyncio.sleep(pause)
            pause = self.cloud.settings.bfl_poll_interval
            try:
                look = await self.cloud.bfl.look(task)
                self.cloud.note_status(look.status)
                last = look.status
                if look.picture_url is not None:
                    async with self.cloud.fetching:
                        return await self.cloud.bfl.download(look.picture_url)
                if look.progress is not None:
                    self.progress[index] = look.progress
                    await self._tell()
            except CloudBusy as error:
                pause = max(pause, error.retry_after_seconds or 0)
                last = error.message
            except CloudUnreachable as error:
                last = error.message

    async def _kept(self, index: int, data: bytes) -> ImageFile:
        keep = functools.partial(
            cloud_pictures.keep, data, self.row, self.request, job_id=self.id, index=index
        )
        keeping = asyncio.create_task(
            asyncio.to_thread(
                keep, output_dir=self.cloud.output_dir, inspection=self.cloud.inspection
            )
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

    async def _tell(self, stage: Stage = Stage.CLOUD) -> None:
        await self.tell_progress(stage, sum(self.progress.values()))

    def _failed_image(self, index: int, error: Exception) -> FailedImage:
        """A picture that did not come, where others of its job did."""
        if isinstance(error, FluxError):
            code, message = error.code, error.message
        else:
            log.error(
                "a picture failed",
                extra={"action": "picture_failed", "job_id": self.id},
                exc_info=error,
            )
            code = "internal"
            message = (
                f"drawing failed with {type(error).__name__}; the service's log has the details"
            )
        log.warning(
            "picture %d of %d did not come: %s",
            index + 1,
            self.request.num_images,
            # BFL's words may be the client's.
            without(message, [self.request.prompt, self.request.negative_prompt]),
            extra={"action": "cloud_picture_failed", "job_id": self.id},
        )
        return FailedImage(index=index, seed=self.request.seed + index, code=code, message=message)


async def _until_stored(change: Callable[[], Awaitable[T]]) -> T:
    """What the cloud is asked for must be on disk before anything else is done about it."""
    while True:
        try:
            return await change()
        except StorageUnavailable as error:
            log.error("%s", error.message, extra={"action": "cloud_not_stored"})
            await asyncio.sleep(STORE_PAUSE_SECONDS)
