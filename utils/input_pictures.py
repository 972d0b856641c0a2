"""Pictures that requests begin with: looked at, kept with their jobs, decoded for the worker.

A service keeps them in a folder of its own, each under the SHA-256 of its bytes, so a job names its
pictures by content and the same picture is there once. A file is on disk before its job is, and stays
while an open job has it. After that it stays for a while, for `retry`: not longer than `KEPT_SECONDS`,
and of all that nobody needs no more than `KEPT_BYTES`, the oldest leaving first.

The service reads headers only (`picture_header`). Pixels are decoded in the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import io
import logging
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.errors import (
    BadPicture,
    FluxError,
    NoRoom,
    NotAPicture,
    NotFound,
    StorageUnavailable,
    TooLarge,
)
from utils.images import sync_folder
from utils.picture_header import PictureHeader, read_header
from utils.png_pixels import require_pixels

log = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 2**26  # 8192 x 8192: 200 MB while it is decoded
# Pillow's Transpose for EXIF's orientations, but for 1, which is upright.
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
SHA256 = re.compile(r"[0-9a-f]{64}")

KEPT_SECONDS = 3600.0
KEPT_BYTES = 2**29
NEW_SECONDS = 60.0  # a file so young may belong to a job that is on its way into the store
SWEEP_SECONDS = 60.0

OpenInputs = Callable[[], Awaitable[set[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputPicture:
    """A picture that is kept, and its size in px, upright."""

    sha256: str
    width: int
    height: int


def inputs_folder(data_dir: Path, service: str) -> Path:
    return data_dir / "inputs" / service


def looked_at(field: str, data: bytes) -> InputPicture:
    """What a file is, by its header. Raises NotAPicture, BadPicture, TooLarge, naming the field."""
    header = _header(field, data)
    digest = hashlib.sha256(data).hexdigest()
    return InputPicture(sha256=digest, width=header.width, height=header.height)


def _header(field: str, data: bytes) -> PictureHeader:
    try:
        header = read_header(data)
    except ValueError as error:
        raise BadPicture.of(field, f"the picture is damaged: {error}; send it whole") from error
    if header is None:
        raise NotAPicture.of(
            field, "is no PNG, JPEG or WebP; send the picture in one of these formats"
        )
    pixels = header.width * header.height
    if pixels > MAX_PIXELS:
        raise TooLarge.of(
            field,
            f"has {header.width}x{header.height} px; at most {MAX_PIXELS} pixels are taken "
            f"(8192x8192), so make it smaller",
        )
    return header


class InputPictures:
    """The folder. `start` with what tells the inputs of open jobs, by content."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._now = now
        self._sweeper: asyncio.Task[None] | None = None
        self._open_inputs: OpenInputs

    async def start(self, open_inputs: OpenInputs) -> None:
        self._open_inputs = open_inputs
        for path in self.folder.glob(".*"):
            if not path.is_dir():  # what a restore put aside is one
                path.unlink(missing_ok=True)  # half of a file, of a process that is gone
        await self.sweep()
        self._sweeper = asyncio.create_task(self._sweep_on(), name="input pictures")

    async def stop(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)

    def keep(self, picture: InputPicture, data: bytes) -> None:
        """Put a picture into the folder; it is on disk when this returns. Blocks; for a thread."""
        path = self.folder / picture.sha256
        if self._touch(path):
            return
        temporary = self.folder / f".{secrets.token_hex(8)}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            self._touch(path)
            sync_folder(self.folder)
        except OSError as error:
            raise self._refused(error) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def read(self, field: str, sha256: str) -> InputPicture:
        """A picture that is there already. Raises NotFound. Blocks; for a thread."""
        path = self.folder / sha256
        if not self._touch(path):
            raise _gone(sha256, field)
        try:
            return looked_at(field, path.read_bytes())
        except OSError as error:
            raise self._refused(error) from error

    def data(self, field: str, sha256: str) -> bytes:
        """The file of a picture that is there already. Raises NotFound. Blocks; for a thread."""
        try:
            return (self.folder / sha256).read_bytes()
        except OSError as error:
            raise _gone(sha256, field) from error

    def require(self, contents: Sequence[str]) -> None:
        """The pictures are there, and stay until the job that is about to be written has them.

        Raises NotFound for one that is not.
        """
        for sha256 in contents:
            if not self._touch(self.folder / sha256):
                raise _gone(sha256)

    def job_ended(self, contents: Sequence[str]) -> None:
        """A job needs these no more; from now on they wait for a retry."""
        for sha256 in contents:
            with contextlib.suppress(FluxError):
                self._touch(self.folder / sha256)

    async def sweep(self) -> None:
        """Remove what no open job has and nobody is likely to ask for again."""
        there = [path for path in self.folder.glob("*") if SHA256.fullmatch(path.name)]
        if not there:
            return
        wanted = await self._open_inputs()
        # No job can come in between from here on: this does not wait.
        aged = [(self._age(path), path) for path in there if path.name not in wanted]
        kept_bytes = 0
        for age, path in sorted(aged):
            with contextlib.suppress(FileNotFoundError):
                kept_bytes += path.stat().st_size
                if age > NEW_SECONDS and (age > KEPT_SECONDS or kept_bytes > KEPT_BYTES):
                    path.unlink()

    async def _sweep_on(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.sweep()
            except (FluxError, OSError) as error:
                log.warning("old inputs stay: %s", error, extra={"action": "inputs_stay"})

    def _touch(self, path: Path) -> bool:
        """Whether the file is there; its age begins anew."""
        now = self._now()
        try:
            os.utime(path, (now, now))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._refused(error) from error
        return True

    def _age(self, path: Path) -> float:
        try:
            return self._now() - path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _refused(self, error: OSError) -> StorageUnavailable | NoRoom:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return NoRoom(f"the disk of {self.folder} is full; make room")
        return StorageUnavailable(
            f"the folder of input pictures {self.folder} cannot be written: {error.strerror}; "
            "check its permissions (FLUX_DATA_DIR)",
            retry_after_seconds=60,
        )


def open_image(folder: Path, sha256: str, size: tuple[int, int]) -> Any:
    """A kept picture as Pillow RGB of `size` px. Transparent parts are white."""
    return _opened(folder, "image", sha256, size, background=255).convert("RGB")


def open_mask(folder: Path, sha256: str, size: tuple[int, int]) -> Any:
    """A kept mask as Pillow L of `size` px. Transparent parts are black: they stay as they are."""
    return _opened(folder, "mask", sha256, size, background=0).convert("L")


def open_reference(folder: Path, index: int, sha256: str) -> Any:
    """A kept picture as Pillow RGB of its own size. Transparent parts are white."""
    return _opened(folder, reference_field(index), sha256, None, background=255).convert("RGB")


def reference_field(index: int) -> str:
    """What errors call the request's reference of this place in the list."""
    return f"reference_images.{index}"


def _opened(
    folder: Path, field: str, sha256: str, size: tuple[int, int] | None, *, background: int
) -> Any:
    """Upright, without transparency, covering `size` with what is over cut off on both sides alike."""
    from PIL import Image, ImageOps

    try:
        data = (folder / sha256).read_bytes()
    except FileNotFoundError as error:
        raise _gone(sha256, field) from error
    header = _header(field, data)  # a decoder is given nothing that says it is larger
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            if sorted(file.size) != sorted((header.width, header.height)):
                raise ValueError("it tells two sizes")  # a header for us and one for the decoder
            file.load()
            require_pixels(data)
            turn = _TURNS.get(
                header.orientation
            )  # not Pillow's own look, which finds more than EXIF
            picture = _flat(file if turn is None else file.transpose(turn), background)
    except MemoryError:
        raise
    except Exception as error:  # what decoders raise for damaged files is of many kinds
        raise BadPicture.of(
            field, f"the picture cannot be decoded: {in_words(error)}; send it whole"
        ) from error
    if size is None or picture.size == size:
        return picture
    return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def in_words(error: Exception) -> str:
    """What a decoder's error says. Some say nothing, and one names an object of ours."""
    from PIL import UnidentifiedImageError

    said = "" if isinstance(error, UnidentifiedImageError) else str(error)
    return said or "it is damaged"


def _flat(picture: Any, background: int) -> Any:
    """L or RGB, 8 bits, on a grey of `background` where the picture is transparent."""
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits of grey
        return picture.convert("I").point(lambda value: value / 257).convert("L")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (background, background, background, 255))
        return Image.alpha_composite(ground, picture).convert("RGB")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def _gone(sha256: str, field: str = "image") -> NotFound:
    return NotFound.of(
        field, f"the input picture with SHA-256 {sha256} is not here any more; send it again"
    )
