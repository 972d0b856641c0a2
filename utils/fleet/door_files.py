"""What jobs need on other machines, from here: each file goes to a machine once."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from config.errors import NotFound, StorageUnavailable
from models.lora.names import SUFFIX
from models.types import GenerationRequest
from utils.fleet.link import Link


class DoorFiles:
    """`loras` and `inputs` are the folders of what this front door's jobs keep."""

    # Another door may have taken a job's files: brings one here, where it is to be had.
    fetch: Callable[[str, str], Awaitable[Any]] | None = None

    def __init__(self, loras: Path, inputs: Path) -> None:
        self._folders = {"lora": loras, "input": inputs}
        # By machine and content: who comes second waits for the first.
        self._turns: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = (
            weakref.WeakValueDictionary()
        )

    async def provide(self, node: str, link: Link, request: GenerationRequest) -> None:
        """The files of a request are on the replica's machine. Raises NotFound, StorageUnavailable."""
        wanted = [("lora", lora.sha256) for lora in request.loras]
        wanted += [("input", sha256) for sha256 in request.inputs]
        if not wanted:
            return
        for kind, sha256 in await link.missing(list(dict.fromkeys(wanted))):
            turn = self._turns.setdefault((node, sha256), asyncio.Lock())
            async with turn:
                if await link.missing([(kind, sha256)]):
                    await self._send(link, kind, sha256)

    async def _send(self, link: Link, kind: str, sha256: str) -> None:
        path = self._folders[kind] / (sha256 + SUFFIX if kind == "lora" else sha256)
        if self.fetch is not None:
            await self.fetch(kind, sha256)
        try:
            await link.send_file(kind, sha256, path, _read)
        except FileNotFoundError as error:
            raise NotFound(
                f"the {kind} with SHA-256 {sha256} of this job is not here any more; send it again"
            ) from error
        except OSError as error:
            raise StorageUnavailable(
                f"the {kind} with SHA-256 {sha256} could not be brought to the replica: {error.strerror or error}"
            ) from error


async def _read(file, size: int) -> bytes:
    return await asyncio.to_thread(file.read, size)
