"""The folder of the LoRA library as files: `<sha256>.safetensors`, and `<sha256>.json` with its facts.

Each is written elsewhere, synced and renamed, so that nobody sees half of one. Who changes the folder,
in this process or another, holds `.lock`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from models.lora import incoming, names
from models.lora.entry import LoraEntry
from models.lora.errors import LoraError
from models.lora.header import open_regular

_LOCK = ".lock"
_MAX_SIDECAR_BYTES = 2**20
_BLOCK_BYTES = 2**20

Signature = tuple[int, int]  # size and time of a file: another means that it was written meanwhile


class Shelf:
    """Reads and writes the folder's LoRAs. Nothing is opened before the first call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mutex = threading.RLock()
        self._holds_lock = False
        self._read: dict[str, tuple[Signature | None, Signature | None, LoraEntry | None]] = {}

    def path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}{names.SUFFIX}"

    def changed_at(self) -> int | None:
        """When something was put into the folder or taken out of it, ns; None while there is no folder."""
        try:
            return self.folder.stat().st_mtime_ns
        except OSError:
            return None

    def files(self) -> list[Path]:
        """Everything in it that is named as LoRAs are, in the order of names."""
        found = (item.name for item in os.scandir(self.folder))
        return [
            self.folder / name
            for name in sorted(found)
            if not name.startswith(".") and name.lower().endswith(names.SUFFIX)
        ]

    def read(self, path: Path) -> LoraEntry | None:
        """A LoRA by the facts beside it; None where they are missing or another version's."""
        signatures = signature(path), signature(_sidecar(path))
        cached = self._read.get(path.name)
        if cached is None or cached[:2] != signatures:
            cached = self._read[path.name] = (*signatures, _read(path))
        return cached[2]

    def keep(self, entry: LoraEntry, move: Callable[[Path], None]) -> None:
        """Put a new LoRA in: `move` brings its file to its place."""
        try:
            move(entry.path)
            self.write(entry)
        except BaseException as error:
            entry.path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise incoming.refused(self.folder, error) from error
            raise

    def write(self, entry: LoraEntry) -> None:
        """Write the facts beside a LoRA."""
        temporary = self.folder / f".{secrets.token_hex(8)}.json"
        try:
            with open(temporary, "x", encoding="utf-8") as file:
                json.dump(entry.to_json(), file, ensure_ascii=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, _sidecar(entry.path))
            _sync_folder(self.folder)
        except OSError as error:
            raise incoming.refused(self.folder, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, entry: LoraEntry) -> None:
        try:
            # The LoRA first: what a crash leaves of it is then no LoRA.
            entry.path.unlink(missing_ok=True)
            _sidecar(entry.path).unlink(missing_ok=True)
            _sync_folder(self.folder)
        except OSError as error:
            raise incoming.refused(self.folder, error) from error

    def sweep(self) -> None:
        """Remove facts without a LoRA, and halves of them: what a crash leaves. Call with the lock."""
        for path in self.folder.glob("*.json"):
            is_half = path.name.startswith(".")
            if is_half or not path.with_suffix(names.SUFFIX).exists():
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes the folder meanwhile."""
        with self.mutex:
            if self._holds_lock:
                yield
                return
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = open(self.folder / _LOCK, "a")
            except OSError as error:
                raise incoming.refused(self.folder, error) from error
            with lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._holds_lock = True
                try:
                    yield
                finally:
                    self._holds_lock = False


def signature(path: Path) -> Signature | None:
    """None for what is not there."""
    try:
        facts = os.lstat(path)
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _read(path: Path) -> LoraEntry | None:
    try:
        with open_regular(_sidecar(path)) as file:
            entry = LoraEntry.from_json(json.loads(file.read(_MAX_SIDECAR_BYTES)), path)
        open_regular(path).close()
    except (LoraError, ValueError, AttributeError, RecursionError):
        return None
    is_its_own = f"{entry.sha256}{names.SUFFIX}" == path.name and names.NAME.fullmatch(entry.name)
    return entry if is_its_own and entry.info.size_bytes == path.stat().st_size else None


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
