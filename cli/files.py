"""Files that commands read and write."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import secrets
import stat
import sys
from pathlib import Path

from cli.failures import Failure, Status, usage

STDOUT = "-"
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
MOST_PICTURE_BYTES = 100 * 2**20  # a service takes less; a disk image by mistake is not read whole
_IMAGE_ID = re.compile(r"[0-9A-Za-z_-]{8,80}")


class Target:
    """Where pictures go, by `-o`: a file, a folder, or standard output. Looked at before anything is drawn."""

    def __init__(self, option: str | None) -> None:
        self.is_stdout = option == STDOUT
        self.path = Path(option or ".")
        self.is_folder = not self.is_stdout and (
            self.path.is_dir() or (option or "").endswith(("/", os.sep))
        )
        self.format: str | None = None
        if self.is_stdout:
            if sys.stdout.isatty():
                raise usage("-o", "a picture is not for a terminal; give a file, or pipe it")
            return
        folder = self.path if self.is_folder else self.path.parent
        if not folder.is_dir():
            raise Failure(Status.WRONG, f"-o: there is no folder {folder}; make it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise Failure(Status.WRONG, f"-o: the folder {folder} cannot be written by this user")
        if not self.is_folder:
            self.format = FORMATS.get(self.path.suffix.lower())
            if self.format is None:
                raise usage(
                    "-o",
                    f"{self.path.name!r} ends in none of {', '.join(FORMATS)}, which say the format",
                )

    def name(self, job_id: str, index: int, count: int, suffix: str) -> Path:
        """The file of one picture of several."""
        if self.is_folder:
            return self.path / f"{job_id}-{index}{suffix}"
        return self.path if count == 1 else self.beside(str(index))

    def beside(self, word: str) -> Path:
        """The same file with a word in its name."""
        return self.path.with_name(f"{self.path.stem}-{word}{self.path.suffix}")


def write(path: Path, content: bytes) -> None:
    """The whole file or none of it."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        path.write_bytes(content)  # a device or a pipe has no half
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError as error:
        raise Failure(
            Status.WRONG, f"{path}: the picture cannot be written ({error.strerror})"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def picture(option: str, value: str) -> str:
    """A picture for a request: a file's content, or what may be the id of a picture that the service has."""
    path = Path(value)
    try:
        if path.is_file():
            if path.stat().st_size > MOST_PICTURE_BYTES:
                raise usage(
                    option, f"{value} has {path.stat().st_size} bytes, which is no picture to send"
                )
            return base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise Failure(
            Status.WRONG, f"{option}: {value} cannot be read ({error.strerror})"
        ) from error
    if path.suffix or not _IMAGE_ID.fullmatch(value):
        raise usage(option, f"there is no file {value}")
    return value
