"""A job keeps its LoRAs: hard links that no deletion in the library reaches.

Before a job with LoRAs is written, each of their files is linked (copied where the disk has no links)
into a folder of the service's own, and workers read there alone. So a LoRA that is deleted leaves the
library at once and stays with the jobs that wait or run. When no open job of the service has it any more,
its link goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from config.errors import FluxError, NotFound
from models.lora import incoming
from models.lora.library import Library
from models.lora.names import STORED, SUFFIX
from models.types import LoraRef

log = logging.getLogger(__name__)

FOLDER = ".pins"
SWEEP_PAUSE_SECONDS = 1.0

OpenLoras = Callable[[], Awaitable[set[str]]]


def pins_folder(lora_dir: Path, service: str, data_dir: Path) -> Path:
    """Of one service; two of a kind that share the LoRAs have jobs of their own."""
    queue = hashlib.sha256(str(data_dir).encode()).hexdigest()[:8]
    return lora_dir / FOLDER / f"{service}-{queue}"


class LoraPins:
    """Holds LoRAs for jobs. `start` with what tells the LoRAs of open jobs, by content."""

    def __init__(self, folder: Path, library: Library) -> None:
        self.folder = folder
        self._library = library
        self._arriving: Counter[str] = Counter()  # of jobs on their way into the store
        self._held_meanwhile: set[str] = set()  # since the last sweep began
        self._ended = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None
        self._open_loras: OpenLoras

    async def start(self, open_loras: OpenLoras) -> None:
        self._open_loras = open_loras
        for path in self.folder.glob(".*"):
            if not path.is_dir():  # what a restore put aside is one
                path.unlink(missing_ok=True)  # half of a copy, of a process that is gone
        await self._sweep()
        self._sweeper = asyncio.create_task(self._sweep_on(), name="lora pins")

    async def stop(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def held(self, loras: Sequence[LoraRef]) -> AsyncIterator[None]:
        """The LoRAs are linked, and stay while the block writes the job that has them.

        Raises NotFound for one that is not in the library any more.
        """
        contents = [lora.sha256 for lora in loras]
        self._arriving.update(contents)
        self._held_meanwhile.update(contents)
        try:
            for lora in loras:
                if not self._path(lora.sha256).exists():
                    await asyncio.to_thread(self._link, lora)
            yield
        finally:
            self._arriving.subtract(contents)
            self._arriving += Counter()  # without those that nobody waits for

    def job_ended(self, loras: Sequence[LoraRef]) -> None:
        """A job needs these no more; others may."""
        if loras:
            self._ended.set()

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}{SUFFIX}"

    def _link(self, lora: LoraRef) -> None:
        entry = self._library.by_sha256(lora.sha256)
        if entry is None:
            self._library.refresh()
            entry = self._library.by_sha256(lora.sha256)
        if entry is None:
            raise _gone(lora)
        path = self._path(lora.sha256)
        temporary = path.with_name(f".{secrets.token_hex(8)}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                os.link(entry.path, temporary)
            except FileNotFoundError:
                raise
            except OSError:  # another disk, or one without links
                shutil.copyfile(entry.path, temporary)
            os.replace(temporary, path)
        except FileNotFoundError as error:
            raise _gone(lora) from error
        except OSError as error:
            raise incoming.refused(self.folder, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    async def _sweep_on(self) -> None:
        while True:
            await self._ended.wait()
            await asyncio.sleep(SWEEP_PAUSE_SECONDS)  # jobs end in groups
            self._ended.clear()
            try:
                await self._sweep()
            except (FluxError, OSError) as error:
                log.warning("LoRAs of ended jobs stay: %s", error, extra={"action": "pins_stay"})

    async def _sweep(self) -> None:
        self._held_meanwhile = set(self._arriving)
        there = [path for path in self.folder.glob("*") if STORED.fullmatch(path.name)]
        if not there:
            return
        wanted = await self._open_loras()
        for path in there:
            # No job can come in between: this does not wait.
            if path.name.removesuffix(SUFFIX) not in wanted | self._held_meanwhile:
                path.unlink(missing_ok=True)


def _gone(lora: LoraRef) -> NotFound:
    return NotFound(
        f"LoRA {lora.name} of this job is not in the library any more; upload it again (SHA-256 {lora.sha256})"
    )
