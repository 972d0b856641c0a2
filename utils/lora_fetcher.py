"""LoRAs from the Hugging Face Hub, each fetched once into the library however many ask for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from config.errors import FluxError, TooLarge, Unavailable
from models.lora import hub
from models.lora.entry import HUB, LoraEntry
from models.lora.incoming import Incoming
from models.lora.library import Library
from models.lora.names import HubId, clean_filename
from utils.event_bus import EventBus

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_AT_ONCE = 2
TELL_EVERY_SECONDS = 0.5
EVENT = "lora"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetching:
    """A LoRA on its way: what was asked for, and how much of it is here."""

    name: str
    size_bytes: int | None = None
    received_bytes: int = 0

    @property
    def fraction(self) -> float | None:
        return round(self.received_bytes / self.size_bytes, 3) if self.size_bytes else None


class LoraFetcher:
    """Fetches in threads of its own, which end when the service does. Tells the bus how far it is."""

    def __init__(
        self, library: Library, *, max_bytes: int, reserve_bytes: int, allow_download: bool
    ) -> None:
        self._library = library
        self._max_bytes = max_bytes
        self._reserve_bytes = reserve_bytes
        self._allow_download = allow_download
        self._tasks: dict[str, asyncio.Task[LoraEntry]] = {}
        self._fetching: dict[str, Fetching] = {}
        self._free = asyncio.Semaphore(MAX_AT_ONCE)
        self._is_stopping = False
        self._bus: EventBus

    def start(self, bus: EventBus) -> None:
        self._bus = bus

    async def stop(self) -> None:
        self._is_stopping = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    @property
    def fetching(self) -> list[Fetching]:
        return list(self._fetching.values())

    async def fetch(self, wanted: HubId) -> LoraEntry:
        """The LoRA of an id, when it is in the library. Goes on when the caller goes away."""
        if not self._allow_download:
            raise Unavailable(
                f"{wanted} is not in the library, and fetching is switched off (FLUX_ALLOW_DOWNLOAD); "
                "upload the file"
            )
        name = str(wanted)
        task = self._tasks.get(name)
        if task is None:
            task = asyncio.create_task(self._fetch(name, wanted), name=f"fetch {name}")
            self._tasks[name] = task
            task.add_done_callback(lambda task: self._ended(name, task))
        return await asyncio.shield(task)

    def _ended(self, name: str, task: asyncio.Task[LoraEntry]) -> None:
        del self._tasks[name]
        if not task.cancelled():
            task.exception()  # was logged, also when nobody waits for it any more

    async def _fetch(self, name: str, wanted: HubId) -> LoraEntry:
        self._fetching[name] = Fetching(name=name)
        self._tell(name)
        try:
            async with self._free:
                entry = await self._through_the_hub(name, wanted)
        except FluxError as error:
            log.warning(
                "LoRA %s was not fetched: %s",
                name,
                error.message,
                extra={"action": "lora_not_fetched"},
            )
            self._bus.publish(
                EVENT, data={"name": name, "status": "failed", "message": error.message}
            )
            raise
        finally:
            del self._fetching[name]
        log.info("LoRA %s was fetched", name, extra={"action": "lora_fetched"})
        return entry

    async def _through_the_hub(self, name: str, wanted: HubId) -> LoraEntry:
        found = await in_a_thread(lambda: hub.locate(wanted))
        if found.size_bytes > self._max_bytes:
            raise TooLarge(
                f"{found.id} has {found.size_bytes} bytes; a LoRA may have {self._max_bytes} "
                "(FLUX_MAX_LORA_BYTES)"
            )
        self._fetching[name] = Fetching(name=name, size_bytes=found.size_bytes or None)
        telling = asyncio.create_task(self._keep_telling(name))
        try:
            return await in_a_thread(lambda: self._download(name, found))
        finally:
            telling.cancel()

    def _download(self, name: str, found: hub.HubFile) -> LoraEntry:
        filename = clean_filename(str(found.id.file).rpartition("/")[2])
        place = self._library.incoming(
            reserve_bytes=self._reserve_bytes, expected_bytes=found.size_bytes
        )
        with place as into:
            hub.fetch(found, _Watched(into, lambda size: self._note(name, size)))
            entry, _ = self._library.add(into, filename, source=HUB, hub_id=str(found.id))
            return entry

    def _note(self, name: str, received: int) -> None:
        """Called from the thread of a fetch."""
        if self._is_stopping:
            raise Unavailable("the service is stopping")
        self._fetching[name] = replace(self._fetching[name], received_bytes=received)

    async def _keep_telling(self, name: str) -> None:
        told = None
        while True:
            if self._fetching[name] != told:
                told = self._fetching[name]
                self._tell(name)
            await asyncio.sleep(TELL_EVERY_SECONDS)

    def _tell(self, name: str) -> None:
        fraction = self._fetching[name].fraction
        self._bus.publish(EVENT, data={"name": name, "status": "fetching", "fraction": fraction})


class _Watched:
    """A file that says how long it is after each write."""

    def __init__(self, file: Incoming, told: Callable[[int], None]) -> None:
        self._file = file
        self._told = told
        self.tell, self.seek, self.truncate = file.tell, file.seek, file.truncate

    def write(self, chunk: bytes) -> int:
        written = self._file.write(chunk)
        self._told(self._file.size_bytes)
        return written


async def in_a_thread(call: Callable[[], T]) -> T:
    """As `asyncio.to_thread`, in a thread that a stop does not wait for: a Hub may be slow."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="lora fetch", daemon=True).start()
    return await future
