"""Write a backup, while the services run or rest."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from utils.backup import databases, manifest
from utils.backup.manifest import (
    DATA,
    IMAGES,
    LORAS,
    PINS,
    SETTINGS,
    BackupError,
    Manifest,
    StoredFile,
    StoredFolder,
)
from utils.backup.places import Places
from utils.database.sqlite import RESTORING
from utils.lora_pins import FOLDER as PINS_FOLDER

Tell = Callable[[str], None]


def make(
    folder: Path, places: Places, *, now: str, version: str, with_images: bool, tell: Tell
) -> Manifest:
    """A new folder with all that the services keep; nothing is left of one that fails. Raises BackupError."""
    folder = Path(os.path.abspath(folder))
    _refuse(folder, places)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_litter(folder)
        partial.mkdir(mode=0o700)
        made = _Making(partial, places, tell).all(now, version, with_images)
        made.write(partial)
        manifest.sync_folder(partial)
        os.replace(partial, folder)  # takes the place of an empty folder, too
        manifest.sync_folder(folder.parent)
        return made
    except OSError as error:
        where = error.filename or folder
        raise BackupError(f"{where}: {error.strerror or error}; nothing was made") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_litter(folder: Path) -> None:
    """What backups of this name left that were killed."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
        pid = path.name.split(".")[-2]
        if not pid.isdecimal() or not psutil.pid_exists(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _refuse(folder: Path, places: Places) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BackupError(
            f"{folder} is there already; a backup gets a folder of its own, such as {folder}/2026-01-31"
            if folder.is_dir()
            else f"{folder} is a file; a backup is a folder"
        )
    for kind in (DATA, LORAS, IMAGES):
        for inside in places.folders(kind):
            if folder.resolve().is_relative_to(inside):
                raise BackupError(
                    f"{folder} lies in {inside}, which is what the services keep; choose another place"
                )
    for data_dir in places.folders(DATA):
        if (data_dir / RESTORING).exists():
            raise BackupError(
                f"a restore was cut off in {data_dir}; ./flux restore --undo puts back what was there before it"
            )


class _Making:
    """One backup on its way. Content-named files are looked for before and after the databases are copied, so that
    what a job of the copy needs is in it, however much comes and goes meanwhile."""

    def __init__(self, folder: Path, places: Places, tell: Tell) -> None:
        self._folder = folder
        self._places = places
        self._tell = tell
        self._files: dict[str, StoredFile] = {}
        self._folders: list[StoredFolder] = []
        self._schemas: dict[str, int] = {}
        self._gone: list[str] = []

    def all(self, now: str, version: str, with_images: bool) -> Manifest:
        data = self._named(DATA)
        loras = self._named(LORAS)
        pins = {
            f"{PINS}/{service}": self._places.pins(service) for service in self._places.settings
        }
        for name in pins:
            service = name.partition("/")[2]
            self._folders.append(StoredFolder(name=name, kind=PINS, services=(service,)))
        self._contents(data, loras, pins)
        for name, folder in data.items():
            for path in sorted(folder.glob(f"*{databases.SUFFIX}")):
                self._database(path, f"{name}/{path.name}")
        self._contents(data, loras, pins)
        self._settings()
        if with_images:
            self._images(data)
        return Manifest(
            made_at=now,
            version=version,
            schemas=self._schemas,
            folders=tuple(self._folders),
            files=tuple(self._files.values()),
            gone=tuple(self._gone),
        )

    def _named(self, kind: str) -> dict[str, Path]:
        """The folders of a kind by their names in the backup."""
        found = self._places.folders(kind)
        named = {}
        for folder, services in found.items():
            name = kind if len(found) == 1 else f"{kind}-{services[0]}"
            self._folders.append(StoredFolder(name=name, kind=kind, services=services))
            named[name] = folder
        return named

    def _contents(
        self, data: dict[str, Path], loras: dict[str, Path], pins: dict[str, Path]
    ) -> None:
        for name, folder in data.items():
            for path in _plain_files(folder / "inputs"):
                self._copy(path, f"{name}/{path.relative_to(folder).as_posix()}")
        for named in (loras, pins):
            for name, folder in named.items():
                for path in filter(manifest.is_lora, _plain_files(folder, deep=False)):
                    # A change of a LoRA's name or words is a change of the file beside it.
                    self._copy(path, f"{name}/{path.name}", again=path.suffix == ".json")

    def _database(self, path: Path, name: str) -> None:
        self._tell(f"copying {path}")
        to = self._place(name)
        self._schemas[name] = databases.copy(path, to)
        self._files[name] = StoredFile(
            path=name,
            size_bytes=to.stat().st_size,
            sha256=manifest.sha256_of(to),
            mode=stat.S_IMODE(path.stat().st_mode),
        )

    def _settings(self) -> None:
        self._folders.append(
            StoredFolder(name=SETTINGS, kind=SETTINGS, services=tuple(self._places.settings))
        )
        for name, path in self._places.settings_files().items():
            if path.is_file():
                self._copy(path.resolve(), f"{SETTINGS}/{name}")

    def _images(self, data: dict[str, Path]) -> None:
        """By the rows of the copies, so that pictures and jobs agree."""
        for name, folder in self._named(IMAGES).items():
            services = next(each.services for each in self._folders if each.name == name)
            self._tell(f"copying the pictures in {folder}")
            for service in services:
                for place in data:
                    copied = self._folder / place / f"{service}{databases.SUFFIX}"
                    for filename in databases.pictures(copied) if copied.exists() else ():
                        if manifest.is_safe(filename) and not self._copy(
                            folder / filename, f"{name}/{filename}"
                        ):
                            self._gone.append(filename)

    def _copy(self, path: Path, name: str, *, again: bool = False) -> bool:
        """Whether the file was there; one that is in the backup already stays as it is."""
        if name in self._files and not again:
            return True
        to = self._place(name)
        to.unlink(missing_ok=True)
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            size, sha256 = manifest.copy(path, to)
        except FileNotFoundError:  # removed since it was seen
            self._files.pop(name, None)
            to.unlink(missing_ok=True)
            return False
        with contextlib.suppress(OSError):  # a disk without rights, such as a stick
            os.chmod(to, 0o600)
        self._files[name] = StoredFile(path=name, size_bytes=size, sha256=sha256, mode=mode)
        return True

    def _place(self, name: str) -> Path:
        path = self._folder / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path


def _plain_files(folder: Path, *, deep: bool = True) -> Iterator[Path]:
    """Files that are none's working files (hidden), never through a link."""
    if not folder.is_dir():
        return
    assert PINS_FOLDER.startswith(".")  # which is looked at by itself
    for path in sorted(folder.rglob("*") if deep else folder.iterdir()):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not is_hidden and path.is_file() and not path.is_symlink():
            yield path
