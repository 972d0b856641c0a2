"""Put a backup back: checked whole first, onto services that rest, all of it or nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.settings import ROOT, load_settings
from models.precision import known_precisions
from utils.backup import databases, manifest, reading
from utils.backup.manifest import (
    DATA,
    IMAGES,
    LORAS,
    PINS,
    SETTINGS,
    BackupError,
    Manifest,
    StoredFile,
)
from utils.backup.places import ENV_FILE, Places, dotenv
from utils.backup.swap import Step, Swap, read, remove
from utils.database.sqlite import RESTORING, StoreInUse, take_lock

HOLDER = "restore"
STAGING = ".restoring"
ASIDE = ".before-restore"
SPARE_BYTES = 64 * 2**20
# Of a folder of data, what a restore replaces: databases with what lies beside them, and the jobs' inputs.
_OF_DATA = (
    f"*{databases.SUFFIX}",
    f"*{databases.SUFFIX}-wal",
    f"*{databases.SUFFIX}-shm",
    manifest.INPUTS,
)

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was put back, and where what it replaced is now."""

    manifest: Manifest
    asides: Sequence[str]
    waiting: int  # jobs that the services will draw when they start
    waiting_in_clouds: int  # of which a cloud charges for these
    kept_settings: Sequence[str]  # settings files that are here and not in the backup


def restore(
    folder: Path,
    *,
    stamp: str,
    now: str,
    tell: Tell,
    with_settings: bool = True,
    cancel_waiting: bool = False,
    dry_run: bool = False,
    root: Path = ROOT,
    environ: dict[str, str] | None = None,
) -> Restored:
    """Raises BackupError with everything as it was; ConfigurationError where the settings of the backup are wrong."""
    environ = dict(os.environ) if environ is None else environ
    tell(f"checking {folder}")
    found = reading.read(folder)
    present = Places.of({**dotenv(root / ENV_FILE), **environ}, root)
    places = _places_of(folder, environ, root) if with_settings else present
    with ExitStack() as stack:
        data_dirs = {*places.folders(DATA), *present.folders(DATA)}
        for data_dir in sorted(data_dirs):
            _lock_data(data_dir, stack, dry_run)
        for data_dir in sorted(data_dirs):
            if (data_dir / RESTORING).exists():
                if dry_run:
                    raise BackupError(
                        f"a restore was cut off in {data_dir}; ./flux restore --undo goes back first"
                    )
                tell(f"a restore was cut off in {data_dir}: going back first")
                read(data_dir / RESTORING).undo()
        for lora_dir in sorted(places.folders(LORAS)):
            _lock_loras(lora_dir, stack, dry_run)
        plan = _Plan(folder, found, places, stamp, with_settings)
        plan.require_room()
        waiting = [databases.waiting(folder / path) for path in found.schemas]
        if not dry_run:
            tell(f"copying {len(found.files)} files")
            plan.run(now if cancel_waiting else None)
    return Restored(
        manifest=found,
        asides=() if dry_run else tuple(path for path in plan.asides if os.path.lexists(path)),
        waiting=0 if cancel_waiting else sum(count for count, _ in waiting),
        waiting_in_clouds=0 if cancel_waiting else sum(count for _, count in waiting),
        kept_settings=plan.kept_settings,
    )


def undo_cut_off(places: Places, tell: Tell) -> int:
    """Go back where a restore was cut off; returns in how many folders. Raises BackupError while services run."""
    found = [data_dir / RESTORING for data_dir in places.folders(DATA)]
    found = [journal for journal in found if journal.exists()]
    with ExitStack() as stack:
        for journal in found:
            _lock_data(journal.parent, stack, dry_run=False)
        for journal in found:
            if journal.exists():  # a swap over several folders is undone by the first
                tell(f"going back in {journal.parent}")
                read(journal).undo()
    return len(found)


def _places_of(folder: Path, environ: dict[str, str], root: Path) -> Places:
    """Where the services will look when the backup's settings are in place."""
    values = {**dotenv(folder / SETTINGS / ENV_FILE), **environ}
    if not (folder / SETTINGS / ENV_FILE).exists():
        values = {**dotenv(root / ENV_FILE), **values}
    found = {}
    for service in known_precisions():
        own = folder / SETTINGS / f"{service}.toml"
        found[service] = load_settings(
            service, {**values, "FLUX_CONFIG": str(own)} if own.exists() else values
        )
    return Places(settings=found, environ=values, root=root)


def _lock_data(data_dir: Path, stack: ExitStack, dry_run: bool) -> None:
    """Have every job database of a folder, as a service would. Raises BackupError while one of them runs."""
    if dry_run and not data_dir.is_dir():
        return
    named = {f"{service}{databases.SUFFIX}" for service in known_precisions()}
    named |= {path.with_suffix(databases.SUFFIX).name for path in data_dir.glob("*.lock")}
    for name in sorted(named):
        if dry_run and not (data_dir / name).with_suffix(".lock").exists():
            continue  # nobody has it, and nothing is made
        try:
            stack.callback(take_lock(data_dir / name, HOLDER).close)
        except StoreInUse as error:
            service = name.removesuffix(databases.SUFFIX)
            raise BackupError(
                f"the service {service} runs on {data_dir} (or its cleanup does). Stop it first: a backup is put back "
                "onto services that rest"
            ) from error
        except OSError as error:
            raise BackupError(f"{data_dir}: {error.strerror}; nothing was changed") from error


def _lock_loras(lora_dir: Path, stack: ExitStack, dry_run: bool) -> None:
    """The library's own lock: a service of another checkout may share it."""
    if dry_run and not (lora_dir / ".lock").exists():
        return
    try:
        lora_dir.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(open(lora_dir / ".lock", "a"))
    except OSError as error:
        raise BackupError(f"{lora_dir}: {error.strerror}; nothing was changed") from error
    fcntl.flock(file, fcntl.LOCK_EX)


class _Plan:
    """What goes where. Nothing is touched before `run`."""

    def __init__(
        self, folder: Path, found: Manifest, places: Places, stamp: str, with_settings: bool
    ) -> None:
        self._folder = folder
        self._stamp = stamp
        self.asides: list[str] = []
        self.kept_settings: list[str] = []
        self._copies: list[tuple[StoredFile, Path]] = []  # each file, and where it is staged
        self._staging: list[Path] = []
        self._litter: list[Path] = []  # of restores that were killed before they changed anything
        self._moves: list[tuple[Path, Path | None, Path]] = []  # target, staged, aside
        self._needed: dict[Path, int] = {}
        self._journals = [str(data_dir / RESTORING) for data_dir in places.folders(DATA)]
        for stored in found.of_kind(DATA):
            target = places.one_folder(DATA, stored.services)
            self._replace(found, stored.name, target, _entries(target, _OF_DATA))
        for stored in found.of_kind(LORAS):
            target = places.one_folder(LORAS, stored.services)
            self._replace(found, stored.name, target, _loras(target))
        for stored in found.of_kind(PINS):
            service = stored.services[0]
            if service in places.settings:
                target = places.pins(service)
                self._replace(found, stored.name, target, _loras(target))
        for stored in found.of_kind(IMAGES):
            target = places.one_folder(IMAGES, stored.services)
            self._replace(found, stored.name, target, [])  # what else lies there stays
        if with_settings:
            self._settings(found, places)
        self._refuse_twice()

    def require_room(self) -> None:
        for folder, size in self._needed.items():
            there = _existing(folder)
            if not os.access(there, os.W_OK | os.X_OK):
                raise BackupError(f"{there} cannot be written by this user; nothing was changed")
            free = shutil.disk_usage(there).free
            if free < size + SPARE_BYTES:
                raise BackupError(
                    f"{folder}: {size >> 20} MiB are to be written, and {free >> 20} MiB are free; make room"
                )

    def run(self, cancelled_at: str | None) -> None:
        steps = [
            Step(
                target=str(target),
                staged=None if staged is None else str(staged),
                aside=str(aside),
                had_before=os.path.lexists(target),
            )
            for target, staged, aside in self._moves
        ]
        swap = Swap(
            steps=steps,
            journals=self._journals,
            staging=[str(folder) for folder in self._staging],
            asides=self.asides,
        )
        for path in self._litter:
            remove(path)
        try:
            self._stage(cancelled_at)
            for journal in self._journals:
                Path(journal).parent.mkdir(parents=True, exist_ok=True)
            swap.run()
        except OSError as error:
            where = error.filename or self._folder
            raise BackupError(
                f"{where}: {error.strerror or error}; everything is as it was before"
            ) from error
        finally:
            if not any(Path(journal).exists() for journal in self._journals):
                for folder in self._staging:
                    remove(folder)

    def _replace(self, found: Manifest, name: str, target: Path, present: Sequence[Path]) -> None:
        """The files of a folder of the backup into a folder of the services, by the entries at its top."""
        staging, aside = target / f"{STAGING}-{self._stamp}", target / f"{ASIDE}-{self._stamp}"
        self._staging.append(staging)
        self._litter += target.glob(f"{STAGING}-*")
        self.asides.append(str(aside))
        files = found.files_of(name)
        tops = set()
        for file in files:
            relative = Path(file.path).relative_to(name)
            tops.add(relative.parts[0])
            self._copies.append((file, staging / relative))
        self._needed[target] = self._needed.get(target, 0) + sum(f.size_bytes for f in files)
        for top in sorted(tops):
            self._moves.append((target / top, staging / top, aside / top))
        for path in present:
            if path.name not in tops:
                self._moves.append((path, None, aside / path.name))

    def _settings(self, found: Manifest, places: Places) -> None:
        here = places.settings_files()
        listed = {file.path.removeprefix(f"{SETTINGS}/"): file for file in found.files_of(SETTINGS)}
        taken: dict[Path, str] = {}
        for name, path in here.items():
            file = listed.get(name)
            if file is None:
                if path.exists():
                    self.kept_settings.append(str(path))
                continue
            if taken.setdefault(path, file.sha256) != file.sha256:
                raise BackupError(
                    f"{path} (FLUX_CONFIG) is to hold the settings of several services, and the backup has different "
                    "ones; leave FLUX_CONFIG out, or restore --without-settings"
                )
            if path.is_file() and manifest.sha256_of(path) == file.sha256:
                continue
            if any(path == target for target, _, _ in self._moves):
                continue
            # Beside it, under names that git does not see: a rename does not cross a disk.
            staging = path.with_name(f"{path.name}{STAGING}-{self._stamp}")
            aside = path.with_name(f"{path.name}{ASIDE}-{self._stamp}")
            self._copies.append((file, staging))
            self._staging.append(staging)
            self._litter += path.parent.glob(f"{path.name}{STAGING}-*")
            self._moves.append((path, staging, aside))
            self.asides.append(str(aside))
            self._needed.setdefault(path.parent, 0)

    def _refuse_twice(self) -> None:
        targets = [target for target, staged, _ in self._moves if staged is not None]
        for target in targets:
            if targets.count(target) > 1:
                raise BackupError(
                    f"two folders of the backup would both write {target}: the services had folders of their own, and "
                    "share one by the settings of now; set FLUX_DATA_DIR and FLUX_LORA_DIR for each"
                )

    def _stage(self, cancelled_at: str | None) -> None:
        """Copies beside their places, checked once more by what was really read."""
        for file, to in self._copies:
            to.parent.mkdir(parents=True, exist_ok=True)
            _, sha256 = manifest.copy(self._folder / file.path, to)
            if sha256 != file.sha256:
                raise BackupError(
                    f"{self._folder / file.path} changed while it was read; everything is as it was before"
                )
            if cancelled_at is not None and databases.is_database(to) and databases.waiting(to)[0]:
                databases.cancel_waiting(to, cancelled_at)
            os.chmod(to, file.mode & 0o777)  # no setuid and its like
        for folder in self._staging:
            for path in _with_all_below(folder):
                _give_to_owner(path, folder.parent)


def _entries(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _loras(folder: Path) -> list[Path]:
    """Of a folder that may hold other things, too: it may be the folder of data."""
    return sorted(filter(manifest.is_lora, folder.iterdir())) if folder.is_dir() else []


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _with_all_below(path: Path) -> Iterator[Path]:
    if os.path.lexists(path):
        yield path
    if path.is_dir():
        yield from path.rglob("*")


def _give_to_owner(path: Path, folder: Path) -> None:
    """Root restores for the services' user: what it wrote is to be theirs."""
    owner: Any = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        with contextlib.suppress(OSError):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
