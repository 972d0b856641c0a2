"""A long job's notes of what is finished, and the lock that makes it one process's affair."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.fingerprint import file_sha256
from models.fp4.checkpoint import write_atomically

NOTES_FILE = "progress.json"


@dataclass(slots=True)
class Notes:
    """`progress.json`: what of a run is finished. Another run's notes are thrown away."""

    settings: dict[str, Any]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # by "component/file"
    layers: dict[str, dict[str, float]] = field(default_factory=dict)  # held-out errors

    @classmethod
    def open(cls, folder: Path, settings: dict[str, Any]) -> Notes:
        try:
            notes = cls(**json.loads((folder / NOTES_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            notes = cls(settings={})
        if notes.settings != settings:
            shutil.rmtree(folder, ignore_errors=True)
            notes = cls(settings=settings)
        folder.mkdir(parents=True, exist_ok=True)
        notes.files = {
            name: entry
            for name, entry in notes.files.items()
            if (folder / name).is_file() and file_sha256(folder / name) == entry["sha256"]
        }
        return notes

    def save(self, folder: Path) -> None:
        data = {"settings": self.settings, "files": self.files, "layers": self.layers}
        write_atomically(folder / NOTES_FILE, json.dumps(data).encode())


@contextmanager
def locked(out: Path, on_wait: Callable[[], None], poll_seconds: float = 0.5) -> Iterator[None]:
    """Be the only process that makes `out`; `on_wait` is called now and then while another one is.

    The lock file is gone afterwards; who waited on the one that went takes the new one.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(out.name + ".lock")
    while True:
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                time.sleep(poll_seconds)
                continue
            if not _is_still(path, lock.fileno()):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether `path` is the file that is open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
