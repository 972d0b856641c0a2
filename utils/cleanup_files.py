"""What lies in our own folders and belongs to nothing any more: thumbnails, unfinished files, rotated logs.

One cleanup at a time works in a folder. Nothing is removed whose owner may still be at it: an upload's process
holds a lock on its file, and an unfinished picture stays while any database beside ours has its job open.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

from config.settings import Settings
from models.lora import incoming
from utils import images
from utils.cleanup_report import Report
from utils.cleanup_rows import Stopped, Times
from utils.own_folder import OwnFolder, opened

# Not what begins with a dot: the locks of logs lie beside them.
ROTATED = re.compile(r"[^.].*\.log[.-].+")
UNFINISHED_AGE = timedelta(days=1)
BUSY_SECONDS = 5.0


class Files:
    """The folders of a machine's services."""

    def __init__(self, settings: Settings, should_stop: Callable[[], bool]) -> None:
        self._settings = settings
        self._should_stop = should_stop

    def remove(self, times: Times, report: Report) -> None:
        cleanup, storage = self._settings.cleanup, self._settings.storage
        with self._ours(storage.output_dir, report) as folder:
            if folder is not None:
                days = cleanup.cleanup_thumbnail_days
                self._thumbnails(folder, _moment(times, days), report)
                self._staging(folder, times, storage.data_dir, report)
        with self._ours(storage.lora_dir, report) as folder:
            if folder is not None:
                self._uploads(folder, report)
        with self._ours(self._settings.log.log_dir, report) as folder:
            before = _moment(times, cleanup.cleanup_log_days)
            if folder is not None and before is not None:
                for name in filter(ROTATED.fullmatch, folder.names()):
                    if _age_of(folder, name) < before:
                        self._take(folder, name, "logs", report)

    @contextmanager
    def _ours(self, path: Path, report: Report) -> Iterator[OwnFolder | None]:
        """The folder while nobody else cleans it up. What goes wrong in it ends its cleanup, not the others'."""
        try:
            with opened(path) as folder:
                if folder is None:
                    yield None
                    return
                with folder.locked() as is_ours:
                    if not is_ours:
                        report.note(f"{path}: another cleanup is at work in it")
                    yield folder if is_ours else None
        except OSError as error:
            report.note(f"{path}: {error.strerror or error}")

    def _thumbnails(self, outputs: OwnFolder, before: float | None, report: Report) -> None:
        """Those without a picture and those that nobody made anew for long; all can be made again."""
        with outputs.below(images.THUMBNAILS) as folder:
            for name in folder.names() if folder is not None else ():
                picture = name.removesuffix(".jpg")
                is_whole = picture != name and bool(picture)
                is_alone = is_whole and not outputs.has(picture)
                if is_alone or (before is not None and _age_of(folder, name) < before):
                    self._take(folder, name, "thumbnails", report)

    def _staging(self, outputs: OwnFolder, times: Times, data_dir: Path, report: Report) -> None:
        before = _moment(times, UNFINISHED_AGE / timedelta(days=1))
        with outputs.below(images.STAGING) as folder:
            if folder is None or before is None:
                return
            for name in folder.names():
                if _age_of(folder, name) >= before:
                    continue
                try:
                    is_open = _is_open(name.partition("-")[0], data_dir)
                except sqlite3.Error as error:
                    return report.note(f"unfinished pictures stay: a job database says {error}")
                if not is_open:
                    self._take(folder, name, "staging", report)

    def _uploads(self, library: OwnFolder, report: Report) -> None:
        with library.below(incoming.FOLDER) as folder:
            for name in folder.names() if folder is not None else ():
                if name.endswith(incoming.SUFFIX):
                    self._take(folder, name, "uploads", report, unlocked_only=True)

    def _take(
        self,
        folder: OwnFolder,
        name: str,
        kind: str,
        report: Report,
        *,
        unlocked_only: bool = False,
    ) -> None:
        if self._should_stop():
            raise Stopped
        if report.dry_run:
            found = folder.file(name)
            is_held = unlocked_only and folder.is_locked(name)
            size = None if found is None or is_held else found.st_size
        else:
            size = folder.remove_unlocked(name) if unlocked_only else folder.remove(name)
        if size is not None:
            report.tallies[kind].add(size)


def _moment(times: Times, days: float) -> float | None:
    """Files changed before this may go; None: none is too old. Seconds since 1970."""
    if not days or not times.ages_count:
        return None
    return (times.now - timedelta(days=days)).timestamp()


def _age_of(folder: OwnFolder, name: str) -> float:
    """When a plain file was changed last; what is none is never old enough."""
    found = folder.file(name)
    return float("inf") if found is None else found.st_mtime


def _is_open(job_id: str, data_dir: Path) -> bool:
    """Whether a job waits or runs in any database of the data folder. Raises sqlite3.Error."""
    if not job_id.isascii():
        return False  # no job's id; what is no Unicode could not even be asked for
    for path in sorted(data_dir.glob("*.sqlite3")):
        with closing(
            sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)
        ) as db:
            tables = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'job'").fetchall()
            query = "SELECT 1 FROM job WHERE id = ? AND status IN ('queued', 'running')"
            if tables and db.execute(query, (job_id,)).fetchall():
                return True
    return False
