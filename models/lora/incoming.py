"""A file on its way into the library: written, counted and hashed while it comes, gone unless it is kept.

It lies under a name of the server's in a folder of its own. Its process holds a lock on it, so that
whoever finds one without a lock knows that its process is gone (`sweep`). What is no safetensors file
is refused by its first bytes, before the rest is taken.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
from pathlib import Path
from typing import BinaryIO

from config.errors import NoRoom, StorageUnavailable, TooLarge
from models.lora.errors import BadLoraFile
from models.lora.header import START_BYTES, check_start, open_regular

FOLDER = ".incoming"
SUFFIX = ".part"
_LOOK_EVERY_BYTES = 64 * 2**20


class Incoming:
    """A context: what was written is removed at its end, unless `keep` moved it away.

    `write` is called from one thread at a time. Raises TooLarge over `max_bytes`, NoRoom when the
    disk would have less than `reserve_bytes` left, StorageUnavailable when it refuses.
    """

    def __init__(
        self,
        library: Path,
        *,
        max_bytes: int,
        reserve_bytes: int,
        expected_bytes: int | None = None,
    ) -> None:
        self.size_bytes = 0
        self._max_bytes = max_bytes
        self._reserve_bytes = reserve_bytes
        self._start: bytes | None = b""  # None: they were looked at
        self._hash = hashlib.sha256()
        self._looked_at = 0
        self.require_fits(expected_bytes or 0)
        folder = library / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._require_room(folder, expected_bytes or 0)
            self.path = folder / f"{secrets.token_hex(16)}{SUFFIX}"
            self._file = _locked(self.path)
        except OSError as error:
            raise refused(library, error) from error

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def require_fits(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            raise TooLarge(
                f"the file has more than {self._max_bytes} bytes, which a LoRA may have (FLUX_MAX_LORA_BYTES)"
            )

    def write(self, chunk: bytes) -> int:
        self.require_fits(self.size_bytes + len(chunk))
        self.size_bytes += len(chunk)
        if self._start is not None:
            self._start += chunk[:START_BYTES]
            if len(self._start) >= START_BYTES:
                check_start(self._start)
                self._start = None
        self._hash.update(chunk)
        try:
            if self.size_bytes - self._looked_at >= _LOOK_EVERY_BYTES:
                self._looked_at = self.size_bytes
                self._require_room(self.path.parent, 0)
            return self._file.write(chunk)
        except OSError as error:
            raise refused(self.path.parent.parent, error) from error

    def finish(self) -> str:
        """The SHA-256 of what was written, which is on disk when this returns."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise refused(self.path.parent.parent, error) from error
        return self._hash.hexdigest()

    def keep(self, path: Path) -> None:
        """Move what was finished to its place."""
        os.replace(self.path, path)

    # What a download that begins anew asks of a file

    def tell(self) -> int:
        return self.size_bytes

    def seek(self, position: int) -> int:
        if position != 0:
            raise ValueError("what comes in is written from its start to its end")
        return position

    def truncate(self) -> int:
        self._file.seek(0)
        self._file.truncate(0)
        self.size_bytes, self._looked_at = 0, 0
        self._start, self._hash = b"", hashlib.sha256()
        return 0

    def _require_room(self, folder: Path, needed: int) -> None:
        stats = os.statvfs(folder)
        free = stats.f_bavail * stats.f_frsize
        if free - needed < self._reserve_bytes:
            raise NoRoom(
                f"{free // 2**20} MiB are free in {folder.parent}, which is not enough for the file and the "
                f"{self._reserve_bytes // 2**20} MiB kept in reserve (FLUX_MIN_FREE_MIB); delete LoRAs or make room"
            )


def _locked(path: Path) -> BinaryIO:
    """A new file with a lock on it."""
    while True:
        file = open(path, "xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # swept away by another process before it had its lock


def sweep(library: Path) -> None:
    """Remove what processes that are gone left half-way. Nothing but files: a pipe would hold us up."""
    for path in (library / FOLDER).glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError, BadLoraFile), open_regular(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process lives
            path.unlink(missing_ok=True)


def refused(library: Path, error: OSError) -> StorageUnavailable | NoRoom:
    """What the disk says, for people."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom(f"the disk of {library} is full; delete LoRAs or make room")
    return StorageUnavailable(
        f"the LoRA folder {library} cannot be written: {error.strerror}; check its permissions (FLUX_LORA_DIR)",
        retry_after_seconds=60,
    )
