"""Logs as they lie in their folder: which there are, their last lines, and their lines as they come.

A log and its older files are one text: `bf16.log.2`, `bf16.log.1`, `bf16.log`. Rotation renames them,
so who follows knows a file by its inode and not by its name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from utils.log_file import LOG, is_in_use

LEVELS = ("debug", "info", "warning", "error", "critical")
READ_BYTES = 2**16
LOOKED_AT_BYTES = 8 * 2**20  # of a log's end, for its last lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A service's log: the file in use or last in use, which may be gone, and the older ones, newest first."""

    path: Path
    service: str
    older: tuple[Path, ...]

    @property
    def is_in_use(self) -> bool:
        return is_in_use(self.path)


def logs_in(folder: Path, services: frozenset[str] = frozenset()) -> list[Log]:
    """Every log of a folder, or of some services. Links are none."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_symlink() or not path.is_file():
            continue
        name, number = _parts(path.name)
        match = LOG.fullmatch(name)
        if match is not None and (not services or match["service"] in services):
            found.setdefault(name, []).append((number, path))
    return [
        Log(
            path=folder / name,
            service=LOG.fullmatch(name)["service"],  # type: ignore[index]
            older=tuple(path for number, path in sorted(paths) if number),
        )
        for name, paths in found.items()
    ]


def _parts(name: str) -> tuple[str, int]:
    """`bf16.log.2` is (`bf16.log`, 2)."""
    match = re.fullmatch(r"(.+\.log)\.([1-9][0-9]{0,3})", name)
    return (name, 0) if match is None else (match[1], int(match[2]))


def parsed(line: str) -> Mapping[str, Any] | None:
    """A line's object; None for what no service wrote."""
    try:
        said = json.loads(line)
        datetime.fromisoformat(said["time"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_ours = all(isinstance(said.get(name), str) for name in ("level", "service", "message"))
    return said if is_ours else None


def is_at_least(said: Mapping[str, Any], level: str) -> bool:
    return said["level"] not in LEVELS or LEVELS.index(said["level"]) >= LEVELS.index(level)


def newest_first(log: Log) -> Iterator[str]:
    """Its lines from the last one back, as far as `LOOKED_AT_BYTES` reach."""
    left = LOOKED_AT_BYTES
    for path in (log.path, *log.older):
        try:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - left))
                lines = file.read(left).decode("utf-8", "replace").split("\n")
        except FileNotFoundError:  # rotated meanwhile
            continue
        yield from filter(None, reversed(lines if size <= left else lines[1:]))
        left -= size
        if left <= 0:
            return


class Tail:
    """What is written to a log from now on, or `from_start`, however often it is rotated."""

    def __init__(self, path: Path, *, from_start: bool) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._begun = b""
        self._from_start = from_start

    def lines(self) -> Iterator[str]:
        """The lines that came since the last call."""
        if self._file is None:
            self._file = self._opened(self._path)
            if self._file is not None and not self._from_start:
                self._file.seek(0, os.SEEK_END)
            self._from_start = True  # what comes into its place later is all new
        while self._file is not None:
            # Looked for first: what is written until it is renamed is then read.
            following = self._following()
            yield from self._rest()
            if not following:
                return
            for file in following:
                self._file.close()
                self._file = file
                if file is not following[-1]:
                    yield from self._rest()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _following(self) -> list[BinaryIO]:
        """The files that came after the one that is read, oldest first; none while it is still the log."""
        assert self._file is not None
        ours = _identity(self._file)
        newest = self._opened(self._path)
        if newest is None:
            return []
        if _identity(newest) == ours:
            newest.close()
            if os.fstat(self._file.fileno()).st_size < self._file.tell():
                self._file.seek(0)  # it was emptied
            return []
        files = [newest]
        number = 1
        while (
            older := self._opened(self._path.with_name(f"{self._path.name}.{number}"))
        ) is not None:
            if _identity(older) == ours:
                older.close()
                return files[::-1]
            files.append(older)
            number += 1
        # Ours is gone: what lies between cannot be told from what was read before.
        for file in files[1:]:
            file.close()
        return files[:1]

    def _rest(self) -> Iterator[str]:
        assert self._file is not None
        while more := self._file.read(READ_BYTES):
            *lines, self._begun = (self._begun + more).split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in lines)

    @staticmethod
    def _opened(path: Path) -> BinaryIO | None:
        try:
            return open(path, "rb")
        except FileNotFoundError:
            return None


def _identity(file: BinaryIO) -> tuple[int, int]:
    facts = os.fstat(file.fileno())
    return facts.st_dev, facts.st_ino
