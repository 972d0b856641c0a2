"""What jobs need on a machine of the fleet: LoRAs and input pictures by content, kept for the next job.

All replicas of a machine share the two folders, so a file comes once. It is written beside its place under
the front door's words, checked by its SHA-256, and renamed. What was used longest ago goes when there is
too much; a job that runs holds what it reads by having used it last.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from pathlib import Path

from models.lora.names import SUFFIX
from utils.input_pictures import SHA256

YOUNG_SECONDS = 600.0  # what was used so lately stays, however much there is
GIB = 2**30


class NodeFiles:
    """`loras` and `inputs` are the folders that the machine's workers read. All calls block."""

    def __init__(self, loras: Path, inputs: Path, most_gib: float) -> None:
        self._folders = {"lora": loras, "input": inputs}
        self._most_bytes = int(most_gib * GIB)
        self._open: dict[str, tuple[Path, int]] = {}  # by content: what is being received

    def missing(self, wanted: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Of (kind, SHA-256) those that are not here; the others are used now."""
        return [each for each in wanted if not self._use(self._path(*each))]

    def begin(self, kind: str, sha256: str) -> None:
        path = self._path(kind, sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.drop(sha256)
        temporary = path.with_name(f".{secrets.token_hex(8)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._open[sha256] = (temporary, handle)

    def write(self, sha256: str, data: bytes) -> None:
        handle = self._open[sha256][1]
        while data:
            data = data[os.write(handle, data) :]

    def end(self, kind: str, sha256: str) -> None:
        """Raises ValueError where what came is not what was named."""
        temporary, handle = self._open.pop(sha256)
        try:
            os.close(handle)
            with open(temporary, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise ValueError(f"{kind} {sha256} came damaged")
            self._sweep()
            os.replace(temporary, self._path(kind, sha256))
        finally:
            temporary.unlink(missing_ok=True)

    def drop(self, sha256: str) -> None:
        """What began and does not come to its end."""
        if sha256 in self._open:
            temporary, handle = self._open.pop(sha256)
            os.close(handle)
            temporary.unlink(missing_ok=True)

    def _path(self, kind: str, sha256: str) -> Path:
        if not SHA256.fullmatch(sha256):
            raise ValueError(f"{sha256[:80]!r} is no SHA-256")
        return self._folders[kind] / (sha256 + SUFFIX if kind == "lora" else sha256)

    def _use(self, path: Path) -> bool:
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _sweep(self) -> None:
        now, found = time.time(), []
        for folder in self._folders.values():
            with contextlib.suppress(FileNotFoundError):
                for entry in os.scandir(folder):
                    with contextlib.suppress(FileNotFoundError):
                        stat = entry.stat(follow_symlinks=False)
                        found.append((stat.st_mtime, stat.st_size, Path(entry.path)))
        total = sum(size for _, size, _ in found)
        for used_at, size, path in sorted(found):
            if total <= self._most_bytes or now - used_at < YOUNG_SECONDS:
                break
            path.unlink(missing_ok=True)
            total -= size
