"""Files that any front door may need, in the database that all of them share: pictures, LoRAs and input pictures.

Doors have folders of their own. What a job needs is in the database before the job is; a picture is there before its
job has succeeded. So a door that ends takes nothing with it, and a picture that was drawn at one is read at another:
it is fetched when it is first asked for, and what lies in a folder is a copy. LoRAs and inputs go by their SHA-256,
which is looked at where they arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from config.errors import NotFound, StorageUnavailable
from models.lora.names import SUFFIX
from models.types import GenerationRequest, ImageFile, OutputFormat
from utils import images, sql
from utils.database.postgres import PostgresDatabase, PostgresReader
from utils.job_store import RETRY_AFTER_STORAGE_SECONDS, JobStore

log = logging.getLogger(__name__)

PICTURE, LORA, INPUT = "picture", "lora", "input"
PART_BYTES = 4 * 2**20
KEPT_SECONDS = 3600.0  # LoRAs and inputs without a job, for those that are tried again
COPY_KEPT_SECONDS = 600.0  # so young a copy may be of a picture whose row is about to come
SWEEP_SECONDS = 60.0
_OURS = re.compile(
    rf"[0-9a-z]+-[0-9]+({'|'.join(re.escape(each.suffix) for each in OutputFormat)})"
)


class SharedFiles:
    """Of one door: `folders` by kind are where its copies lie. Methods raise StorageUnavailable."""

    def __init__(
        self,
        database: PostgresDatabase,
        folders: dict[str, Path],
        lora_at: Callable[[str], Path | None],
    ) -> None:
        self._database = database
        self._reader = PostgresReader(database)
        self._folders = folders
        self._lora_at = lora_at
        self._turns: dict[tuple[str, str], asyncio.Lock] = {}

    # Into the database

    async def keep_inputs(self, request: GenerationRequest) -> None:
        """What a job needs is there, from here or from before. Raises NotFound for what is nowhere any more."""
        wanted = [(LORA, lora.sha256) for lora in request.loras]
        wanted += [(INPUT, sha256) for sha256 in request.inputs]
        for kind, sha256 in dict.fromkeys(wanted):
            if await self._in_thread(self._touch, kind, sha256):
                await self.fetch(kind, sha256)  # a copy lies here, as if it had come here first
                continue
            path = self._path(kind, sha256)
            if kind == LORA and not path.exists():
                path = self._lora_at(sha256) or path
            await self._in_thread(self._put, kind, sha256, path, "")

    async def keep_pictures(self, job_id: str, pictures: tuple[ImageFile, ...]) -> None:
        """Of a job that is about to succeed; they lie in staging, or were published already."""
        folder = self._folders[PICTURE]
        for picture in pictures:
            staged = folder / images.STAGING / picture.filename
            path = staged if staged.exists() else folder / picture.filename
            await self._in_thread(self._put, PICTURE, picture.filename, path, job_id)

    async def remove_picture(self, filename: str) -> None:
        names = {"kind": PICTURE, "names": sql.as_json([filename])}
        await self._in_thread(self._reader.rows, "remove_files", names)

    # Out of it

    async def fetch(self, kind: str, name: str) -> bool:
        """Whether a copy lies in this door's folder, from before or from now on."""
        path = self._path(kind, name)
        if path.exists():
            return True
        turn = self._turns.setdefault((kind, name), asyncio.Lock())
        try:
            async with turn:
                return path.exists() or await self._in_thread(self._get, kind, name, path)
        finally:
            self._turns.pop((kind, name), None)

    async def fetch_inputs(self, request: GenerationRequest) -> None:
        for sha256 in request.inputs:
            await self.fetch(INPUT, sha256)

    # What nobody needs

    async def sweep_on(self, store: JobStore, routes: Callable[[], bool]) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.sweep_copies()
                if routes():
                    await self.sweep(store)
            except StorageUnavailable as error:
                log.warning("old files stay: %s", error.message, extra={"action": "files_stay"})

    async def sweep(self, store: JobStore) -> None:
        """Of the database: LoRAs and inputs that no open job has, and pictures that belong to no row."""
        needed = {
            PICTURE: set[str](),
            LORA: await store.loras_of_open_jobs(),
            INPUT: await store.inputs_of_open_jobs(),
        }
        for kind, names in needed.items():
            values = {"kind": kind, "seconds": KEPT_SECONDS}
            rows = await self._in_thread(self._reader.rows, "old_files", values)
            gone = [row["name"] for row in rows if row["name"] not in names]
            if gone:
                values = {"kind": kind, "names": sql.as_json(gone)}
                await self._in_thread(self._reader.rows, "remove_files", values)

    async def sweep_copies(self) -> None:
        """Of this door's folder: copies of pictures whose rows are gone."""
        await self._in_thread(self._sweep_copies)

    def _sweep_copies(self) -> None:
        folder = self._folders[PICTURE]
        before = time.time() - COPY_KEPT_SECONDS
        old = [name for name, at in _pictures_in(folder) if at < before]
        for start in range(0, len(old), 1000):
            some = old[start : start + 1000]
            rows = self._reader.rows("known_pictures", {"names": sql.as_json(some)})
            for name in set(some) - {row["filename"] for row in rows}:
                images.remove(folder, name)

    # Inside, in threads

    def _touch(self, kind: str, name: str) -> bool:
        """Whether it is in the database, whole; it stays for a while."""
        rows = self._reader.rows("touch_file", {"kind": kind, "name": name})
        return bool(rows) and rows[0]["bytes"] >= 0

    def _put(self, kind: str, name: str, path: Path, job_id: str) -> None:
        values = {"kind": kind, "name": name}
        is_picture = kind == PICTURE
        insert = "insert_picture_part" if is_picture else "insert_part"
        try:
            with open(path, "rb") as file:
                self._reader.rows("begin_file", values)
                size = part = 0
                while data := file.read(PART_BYTES):
                    self._reader.rows(
                        insert, {**values, "part": part, "data": data, "job_id": job_id}
                    )
                    size, part = size + len(data), part + 1
                end = "end_picture" if is_picture else "end_file"
                self._reader.rows(end, {**values, "bytes": size, "job_id": job_id})
        except FileNotFoundError as error:
            if is_picture:
                raise
            raise NotFound(
                f"the {kind} with SHA-256 {name} is not here any more; send it again"
            ) from error

    def _get(self, kind: str, name: str, path: Path) -> bool:
        rows = self._reader.rows("touch_file", {"kind": kind, "name": name})
        if not rows or rows[0]["bytes"] < 0:
            return False
        temporary = path.with_name(f".{secrets.token_hex(8)}")
        digest, size, part = hashlib.sha256(), 0, 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                while size < rows[0]["bytes"]:
                    found = self._reader.rows(
                        "file_part", {"kind": kind, "name": name, "part": part}
                    )
                    if not found:
                        return False  # it was just removed
                    file.write(found[0]["data"])
                    digest.update(found[0]["data"])
                    size, part = size + len(found[0]["data"]), part + 1
            if size != rows[0]["bytes"] or (kind != PICTURE and digest.hexdigest() != name):
                log.error(
                    "%s %s in the database is damaged", kind, name, extra={"action": "bad_file"}
                )
                return False
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        return True

    def _path(self, kind: str, name: str) -> Path:
        return self._folders[kind] / (name + SUFFIX if kind == LORA else name)

    async def _in_thread(self, call, *values):
        try:
            return await asyncio.to_thread(call, *values)
        except Exception as error:
            if not self._database.is_refusal(error):
                raise
            raise StorageUnavailable(
                self._database.in_words(error), retry_after_seconds=RETRY_AFTER_STORAGE_SECONDS
            ) from error


def _pictures_in(folder: Path) -> Iterator[tuple[str, float]]:
    """Names and times of the pictures in an output folder."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if _OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    yield entry.name, entry.stat().st_mtime
