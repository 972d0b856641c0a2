"""What a backup holds, as its manifest tells it, and what every part of this needs."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from utils.database.sqlite import RESTORING

FORMAT = 1
FILENAME = "manifest.json"
DATA, LORAS, PINS, SETTINGS, IMAGES = "data", "loras", "pins", "settings", "images"
KINDS = (DATA, LORAS, PINS, SETTINGS, IMAGES)
DATABASE, INPUTS = ".sqlite3", "inputs"  # what of a folder of data is kept
BLOCK_BYTES = 2**20
MOST_MANIFEST_BYTES = 256 * 2**20


class BackupError(Exception):
    """Nothing was made or put back. The message says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of a backup. `path` is relative to the backup, with slashes."""

    path: str
    size_bytes: int
    sha256: str
    mode: int  # of the original


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFolder:
    """A folder of the services, `name` in the backup. `services` are the precisions that share it."""

    name: str
    kind: str
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    made_at: str
    version: str  # of the project
    schemas: Mapping[str, int]  # of each database, by its path
    folders: Sequence[StoredFolder]
    files: Sequence[StoredFile]
    gone: Sequence[str] = field(
        default=()
    )  # pictures whose rows were there and whose files were not
    format: int = FORMAT

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def of_kind(self, kind: str) -> list[StoredFolder]:
        return [folder for folder in self.folders if folder.kind == kind]

    def files_of(self, folder: str) -> list[StoredFile]:
        return [file for file in self.files if file.path.startswith(f"{folder}/")]

    def write(self, folder: Path) -> None:
        with open(folder / FILENAME, "x", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=1)  # in ASCII: a file's name need not be Unicode
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises BackupError for what is no backup, or one of a version to come."""
        path = folder / FILENAME
        try:
            if path.stat().st_size > MOST_MANIFEST_BYTES:
                raise BackupError(f"{path} is too large to be a manifest")
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BackupError(f"{folder} is no backup: there is no {FILENAME} in it") from None
        except NotADirectoryError:
            raise BackupError(f"{folder} is no folder; a backup is one") from None
        except (OSError, ValueError, RecursionError) as error:
            raise BackupError(f"{path} cannot be read: {error}") from error
        made_by = values.get("format") if isinstance(values, dict) else None
        if isinstance(made_by, int) and made_by > FORMAT:
            raise BackupError(
                f"{folder} was made by a newer version (format {made_by}, this one knows {FORMAT}); "
                f"restore it with version {values.get('version')} or later"
            )
        try:
            return cls._of_json(values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BackupError(f"{path} is damaged: {error!r}") from error

    @classmethod
    def _of_json(cls, values: dict[str, Any]) -> Manifest:
        if type(values["format"]) is not int or values["format"] < 1:
            raise ValueError(f"{values['format']!r} is no format")
        files = tuple(StoredFile(**each) for each in values["files"])
        folders = tuple(
            StoredFolder(name=each["name"], kind=each["kind"], services=_names(each["services"]))
            for each in values["folders"]
        )
        schemas = {str(path): int(number) for path, number in values["schemas"].items()}
        for folder in folders:
            _require_folder(folder)
        names = {folder.name: folder.kind for folder in folders}
        if len(names) != len(folders) or not {DATA, LORAS, SETTINGS} <= set(names.values()):
            raise ValueError("folders are missing, or there twice")
        for file in files:
            _require_file(file, names)
        databases = {file.path for file in files if PurePosixPath(file.path).suffix == DATABASE}
        if databases - schemas.keys():
            raise ValueError(
                f"no schema is told of {', '.join(sorted(databases - schemas.keys()))}"
            )
        return cls(
            made_at=str(values["made_at"]),
            version=str(values["version"]),
            schemas=schemas,
            folders=folders,
            files=files,
            gone=tuple(values["gone"]),
            format=values["format"],
        )


def _require_folder(folder: StoredFolder) -> None:
    """Raises ValueError."""
    if not is_safe(folder.name) or folder.kind not in KINDS:
        raise ValueError(f"{folder.name!r} ({folder.kind!r}) is no folder in a backup")


def _names(values: Any) -> tuple[str, ...]:
    """The services of a folder. Raises ValueError."""
    if not isinstance(values, list) or not values or any(type(name) is not str for name in values):
        raise ValueError(f"{values!r} are no services")
    return tuple(values)


def _require_file(file: StoredFile, kinds: Mapping[str, str]) -> None:
    """A file of a folder that is listed, and of those that its kind has. Raises ValueError."""
    if not is_safe(file.path):
        raise ValueError(f"{file.path!r} is no path in a backup")
    facts = ((file.size_bytes, int), (file.mode, int), (file.sha256, str))
    if any(type(value) is not kind for value, kind in facts) or not 0 <= file.mode <= 0o7777:
        raise ValueError(f"{file.path!r} has no size, hash or rights")
    for name, kind in kinds.items():
        if file.path.startswith(f"{name}/") and _belongs(
            PurePosixPath(file.path).relative_to(name), kind
        ):
            return
    raise ValueError(f"{file.path!r} belongs into no folder of a backup")


def _belongs(path: PurePosixPath, kind: str) -> bool:
    """What is put back is what a backup takes: never a lock, a journal or another working file."""
    if kind == SETTINGS:
        return len(path.parts) == 1
    if any(part.startswith(".") for part in path.parts):
        return False
    if kind == DATA:
        is_input = path.parts[0] == INPUTS and len(path.parts) > 1
        return is_input or (len(path.parts) == 1 and path.suffix == DATABASE)
    return kind == IMAGES or (len(path.parts) == 1 and is_lora(path))


def is_safe(path: Any) -> bool:
    """Whether a path stays where it is put: relative, and never up."""
    if not isinstance(path, str) or "\0" in path:
        return False
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts


def copy(source: Path, to: Path) -> tuple[int, str]:
    """Copy a plain file, synced; returns its size and SHA-256. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    with open(handle, "rb") as file, open(to, "xb") as copied:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            copied.write(block)
            size += len(block)
        copied.flush()
        os.fsync(copied.fileno())
    return size, digest.hexdigest()


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # disks that sync no folders
            raise
    finally:
        os.close(handle)


def is_lora(path: PurePath) -> bool:
    """Whether a file of the library is a LoRA or its facts, and no lock, no journal, nothing half."""
    is_kept = path.suffix in (".safetensors", ".json") and not path.name.startswith(".")
    return is_kept and path.name != RESTORING
