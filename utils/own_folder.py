"""A folder of ours, held open: what is done in it happens in it, wherever its name or what lies in it leads by now.

Names are single names, never paths, and links are neither followed nor removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class OwnFolder:
    """Made by `opened` and `below`, which close it."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    @contextmanager
    def below(self, name: str) -> Iterator[OwnFolder | None]:
        """A folder in this one; None where there is none, or a link in its place."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        try:
            handle = os.open(_single(name), flags, dir_fd=self.handle)
        except OSError as error:
            if not _is_absent(error):
                raise
            yield None
            return
        try:
            yield OwnFolder(handle)
        finally:
            os.close(handle)

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Whether nobody else had the folder's lock; while the block lasts it is ours.

        The lock is on the folder itself, so it leaves no file and ends with its process.
        """
        handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.handle)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)

    def names(self) -> list[str]:
        """What lies in it, as it was at one moment, however much goes and comes meanwhile."""
        with os.scandir(self.handle) as entries:
            return [entry.name for entry in entries]

    def file(self, name: str) -> os.stat_result | None:
        """A file's facts; None for what is not there and for what is no plain file, as a link or a folder."""
        try:
            found = os.stat(_single(name), dir_fd=self.handle, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return found if stat.S_ISREG(found.st_mode) else None

    def has(self, name: str) -> bool:
        """Whether something of this name is there, a link and a folder included."""
        try:
            os.stat(_single(name), dir_fd=self.handle, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def remove(self, name: str) -> int | None:
        """Remove a plain file; returns its bytes, None when there was none to remove."""
        found = self.file(name)
        if found is None:
            return None
        try:
            os.unlink(name, dir_fd=self.handle)
        except FileNotFoundError:  # somebody else was first
            return None
        return found.st_size

    def remove_unlocked(self, name: str) -> int | None:
        """The same of a file that no process holds a lock on."""
        with self._held(name) as is_held:
            return self.remove(name) if is_held else None

    def is_locked(self, name: str) -> bool:
        """Whether another process holds a lock on a plain file."""
        with self._held(name) as is_held:
            return not is_held and self.file(name) is not None

    @contextmanager
    def _held(self, name: str) -> Iterator[bool]:
        """Whether a plain file is there and nobody had its lock, which is ours in the block."""
        if self.file(name) is None:
            yield False
            return
        try:
            # A pipe that took the file's place must not hold us up.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            handle = os.open(name, flags, dir_fd=self.handle)
        except OSError as error:
            if not _is_absent(error):
                raise
            yield False
            return
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)


@contextmanager
def opened(path: Path) -> Iterator[OwnFolder | None]:
    """The folder of a setting, which may be a link of the operator's; None where there is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        yield None
        return
    try:
        yield OwnFolder(handle)
    finally:
        os.close(handle)


def _single(name: str) -> str:
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no file name")
    return name


def _is_absent(error: OSError) -> bool:
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
