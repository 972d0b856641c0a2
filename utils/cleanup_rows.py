"""Pictures, jobs and usage that a database knows and that are to go: by age, by number, by size.

Rows are walked in the order in which they came, a window at a time, so that nobody who asks the store meanwhile
waits for more than one window. What came after something that is young enough is no older than that, whatever
its stamp says: a clock that was wrong for a while makes nothing old.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from config.settings import CleanupSettings
from utils import images
from utils.cleanup_report import Report
from utils.clock import rfc3339
from utils.database import Connection, Row
from utils.job_store import JobStore
from utils.own_folder import OwnFolder

T = TypeVar("T")

WINDOW = 1000  # rows that are looked at, and removed, in one go
# What is so young does not go, however many there are: somebody may be about to fetch a picture, and jobs are
# asked for by their idempotency keys and for what the cloud charged today.
NEW_PICTURE = timedelta(seconds=60)
NEW_JOB = timedelta(days=2)
# Between a row's end and its file's: who found the row has begun to read the file by then.
FETCH_SECONDS = 2.0
STATE = "cleanup_clock"


class Stopped(Exception):
    """The service, or the cleanup itself, is asked to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Now, and whether ages count."""

    now: datetime
    ages_count: bool

    def before(self, days: float) -> str | None:
        """What is older may go; None: nothing is too old."""
        if not days or not self.ages_count:
            return None
        return rfc3339(self.now - timedelta(days=days))


class Rows:
    """One database, asked from a thread that is not its loop's."""

    def __init__(
        self, store: JobStore, loop: asyncio.AbstractEventLoop, should_stop: Callable[[], bool]
    ) -> None:
        self._store = store
        self._loop = loop
        self._should_stop = should_stop
        self.pause = threading.Event().wait  # replaced where nobody fetches

    def state(self) -> str | None:
        return self._wait(self._store.read_state(STATE))

    def remember(self, value: str) -> None:
        self._wait(self._store.write_state(STATE, value))

    def remove_pictures(self, settings: CleanupSettings, times: Times, report: Report) -> None:
        """The rows go; their files' names wait in `image_removed`."""
        ends = self._read("ends_of_images")[0]
        surplus = Surplus.of(
            ends["loose"],
            ends["bytes"],
            settings.cleanup_max_outputs,
            int(settings.cleanup_max_output_gib * 2**30),
        )
        walk = Walk(times, settings.cleanup_output_days, NEW_PICTURE, surplus)
        for rows in self._windows("images_between", ends["first"], ends["last"], walk):
            for row in self._remove_each([row for row in rows if walk.goes(row)], report.dry_run):
                report.tallies["outputs"].add(row["size_bytes"])

    def remove_files(self, folder: OwnFolder | None, report: Report) -> None:
        """The files of pictures whose rows went earlier, after a moment for those who are fetching them."""
        names = self._removed("")
        if not names or report.dry_run:
            return
        if folder is None:
            return report.note(
                "the output folder is not there: its files go when it is there again"
            )
        self.pause(FETCH_SECONDS)
        with folder.below(images.THUMBNAILS) as thumbnails:
            self._remove_named(names, folder, thumbnails, report)

    def _remove_named(
        self, names: list[str], folder: OwnFolder, thumbnails: OwnFolder | None, report: Report
    ) -> None:
        while names:
            gone = [name for name in names if self._remove_file(folder, thumbnails, name, report)]
            self._write("forget_removed", {"filenames": json.dumps(gone)})
            names = self._removed(names[-1])

    def remove_jobs(self, settings: CleanupSettings, times: Times, report: Report) -> None:
        """Jobs that have ended and have no picture any more."""
        ends = self._read("ends_of_jobs")[0]
        surplus = Surplus.of(ends["ended"], 0, settings.cleanup_max_jobs, 0)
        walk = Walk(times, settings.cleanup_job_days, NEW_JOB, surplus)
        for rows in self._windows("jobs_between", ends["first"], ends["last"], walk):
            places = [row["place"] for row in rows if walk.goes(row)]
            if places and not report.dry_run:
                places = self._write("remove_jobs", {"places": json.dumps(places)})
            report.tallies["jobs"].count += len(places)

    def remove_usage(self, settings: CleanupSettings, times: Times, report: Report) -> None:
        before = times.before(settings.cleanup_usage_days)
        after = ""
        while before is not None:
            values = {"before": before[:10], "after": after, "limit": WINDOW}
            ids = [row["job_id"] for row in self._read("old_usage", values)]
            if not ids:
                return
            after = ids[-1]
            if not report.dry_run:
                self._write("remove_usage", {"ids": json.dumps(ids)})
            report.tallies["usage"].count += len(ids)

    def _windows(
        self, query: str, first: int | None, last: int | None, walk: Walk
    ) -> Iterator[Sequence[Row]]:
        while first is not None and last is not None and first <= last and not walk.is_over:
            yield self._read(query, {"first": first, "after": first + WINDOW})
            first += WINDOW

    def _remove_each(self, rows: Sequence[Row], dry_run: bool) -> Sequence[Row]:
        """Those of the pictures that were still there and not pinned."""
        if dry_run or not rows:
            return list(rows)

        def change(db: Connection) -> Sequence[Row]:
            removed = []
            for row in rows:
                for gone in db.rows("remove_image", {"id": row["id"]}):
                    db.rows("note_removed", {"filename": gone["filename"]})
                    removed.append(row)
            return removed

        return self._wait(self._store.write(change))

    def _removed(self, after: str) -> list[str]:
        values = {"after": after, "limit": WINDOW}
        return [row["filename"] for row in self._read("removed_images", values)]

    def _remove_file(
        self, folder: OwnFolder, thumbnails: OwnFolder | None, name: str, report: Report
    ) -> bool:
        """Whether there is nothing more to do about it."""
        try:
            if folder.remove(name) is None and folder.has(name):
                report.note(f"{name} is no plain file and stays")
            if thumbnails is not None:
                thumbnails.remove(f"{name}.jpg")
        except ValueError as error:  # a row that no service wrote
            report.note(f"{error}; nothing is removed for it")
        except OSError as error:
            report.note(f"{name} stays: {error.strerror}; the next cleanup tries again")
            return False
        return True

    def _read(self, query: str, values: Mapping[str, Any] | None = None) -> Sequence[Row]:
        return self._wait(self._store.read(query, values or {}))

    def _write(self, query: str, values: Mapping[str, Any]) -> list[int]:
        """The first column of what the query returns."""

        def change(db: Connection) -> list[int]:
            return [next(iter(dict(row).values())) for row in db.rows(query, values)]

        return self._wait(self._store.write(change))

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        if self._should_stop():
            call.close()
            raise Stopped
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()


@dataclass(slots=True)
class Surplus:
    """By how many, and by how many bytes, there is more than there may be."""

    count: int
    bytes: int

    @classmethod
    def of(cls, count: int, size_bytes: int, max_count: int, max_bytes: int) -> Surplus:
        """A limit of 0 is none."""
        return cls(
            count - max_count if max_count else 0, size_bytes - max_bytes if max_bytes else 0
        )

    @property
    def is_there(self) -> bool:
        return self.count > 0 or self.bytes > 0


class Walk:
    """Decides row by row, oldest first."""

    def __init__(self, times: Times, days: float, new: timedelta, surplus: Surplus) -> None:
        self._before = times.before(days)
        self._now = rfc3339(times.now)
        self._new = rfc3339(times.now - new)
        self._surplus = surplus
        self._young_seen = self._before is None

    @property
    def is_over(self) -> bool:
        return self._young_seen and not self._surplus.is_there

    def goes(self, row: Row) -> bool:
        """Whether a row (created_at, is_kept; finished_at and size_bytes where it has them) is to go."""
        if self._before is not None and self._before <= row["created_at"] <= self._now:
            self._young_seen = True
        if row["is_kept"]:
            return False
        has = row.keys()
        last = row["finished_at"] if "finished_at" in has else row["created_at"]
        is_old = not self._young_seen and self._before is not None
        is_old = is_old and max(last, row["created_at"]) < self._before
        if not is_old and not (self._surplus.is_there and last <= self._new):
            return False
        self._surplus.count -= 1
        self._surplus.bytes -= row["size_bytes"] if "size_bytes" in has else 0
        return True
