"""The file that a service writes its log to: one process has it, and rotates it by size.

A lock beside the file says who. Two services of one precision that share a folder (two checkouts, two
data folders) write `bf16.log` and `bf16-2.log`: neither rotates what the other writes. A log that
somebody moved or removed is begun anew. A disk that is full costs lines, not the service.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sys
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path

from config.errors import ConfigurationError

MAX_LOGS = 99  # of one service in one folder
LOG = re.compile(r"(?P<service>[a-z0-9_]+)(?:-(?P<number>[0-9]+))?\.log")


class LogFile(RotatingFileHandler):
    """`<folder>/<service>.log`, with `keep` older ones beside it. Raises ConfigurationError."""

    def __init__(self, folder: Path, service: str, max_bytes: int, keep: int) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock_file, path = _claimed(folder, service)
            super().__init__(
                path,
                maxBytes=max_bytes,
                backupCount=keep,
                encoding="utf-8",
                errors="backslashreplace",
            )
        except OSError as error:
            raise ConfigurationError(
                f"FLUX_LOG_DIR = {str(folder)!r}: the log cannot be written there: {error.strerror}; "
                "name a folder that can be written, or set FLUX_LOG_TO_FILE=false"
            ) from error
        self._is_refused = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
            self._look_for_file()
            size = os.fstat(self.stream.fileno()).st_size
            if size and size + len(line.encode("utf-8", "backslashreplace")) > self.maxBytes:
                self.doRollover()
            self.stream.write(line)
            self.flush()
        except Exception:
            self.handleError(record)
        else:
            self._is_refused = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Said once on the console, until lines can be written again."""
        if not self._is_refused and sys.stderr is not None:
            self._is_refused = True
            reason = sys.exc_info()[1]
            print(f"the log {self.baseFilename} cannot be written: {reason}", file=sys.stderr)

    def close(self) -> None:
        super().close()
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1

    def _look_for_file(self) -> None:
        """Opens the file anew when its name leads elsewhere by now, or nowhere."""
        if self.stream is not None:
            ours = os.fstat(self.stream.fileno())
            try:
                found = os.stat(self.baseFilename)
            except FileNotFoundError:
                found = None
            if found is not None and (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
                return
            self.stream.close()
        self.stream = self._open()


def lock_of(log: Path) -> Path:
    return log.with_name(f".{log.name}.lock")


def is_in_use(log: Path) -> bool:
    """Whether a service writes to it now."""
    try:
        handle = os.open(lock_of(log), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _claimed(folder: Path, service: str) -> tuple[int, Path]:
    """The lock, held, of the first log that nobody writes to. It ends with the process."""
    for number in range(1, MAX_LOGS + 1):
        path = folder / (f"{service}.log" if number == 1 else f"{service}-{number}.log")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        handle = os.open(lock_of(path), flags, 0o644)
        if _is_locked_now(handle) or _is_locked_now(handle, after_seconds=0.05):
            return handle, path
        os.close(handle)
    raise OSError(None, f"{MAX_LOGS} services write their logs there already")


def _is_locked_now(handle: int, after_seconds: float = 0.0) -> bool:
    """Whether the lock is ours. Once more after a moment: who only looks holds it as long as that takes."""
    time.sleep(after_seconds)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
