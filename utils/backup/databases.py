"""SQLite files: copied whole while others write to them, and looked at before they are trusted."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from utils import keys, sql
from utils.backup.manifest import DATABASE, BackupError

SUFFIX = DATABASE
BUSY_SECONDS = 30.0


def is_database(path: Path) -> bool:
    return path.suffix == SUFFIX


def copy(source: Path, to: Path) -> int:
    """Copy a database as it is at one moment; returns its schema's version. Raises BackupError, and OSError of `to`.

    SQLite's own way: what is in the write-ahead log is in the copy, and nobody who writes waits.
    """
    try:
        os.close(os.open(to, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with (
            closing(sqlite3.connect(source, timeout=BUSY_SECONDS)) as db,
            closing(sqlite3.connect(to)) as copied,
        ):
            db.execute("PRAGMA query_only = ON")
            db.backup(copied)  # all pages in one step, so it is not begun anew by a write
            copied.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
            copied.commit()
        handle = os.open(to, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise BackupError(
                f"there is no room for a copy of {source}; make room, or choose a place on another disk"
            ) from error
        raise BackupError(
            f"{source} cannot be copied ({error}); ./flux doctor looks at it, and a database that is damaged may be "
            "moved away"
        ) from error
    return check(to, source)


def check(path: Path, named: Path) -> int:
    """The schema's version of a database that is whole. Raises BackupError, which calls it `named`."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            found = db.execute("PRAGMA integrity_check").fetchone()[0]
            version: int = db.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as error:
        found, version = str(error), 0
    if found != "ok":
        raise BackupError(f"{named}: the database is damaged ({found})")
    return version


def known_schema(name: str) -> int:
    """The newest schema that this version reads in a database of this name."""
    return keys.SCHEMA_VERSION if name == keys.FILENAME else sql.schema_version()


def pictures(path: Path) -> list[str]:
    """The names of the pictures that a job database knows."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
        try:
            return [name for (name,) in db.execute("SELECT filename FROM image ORDER BY filename")]
        except sqlite3.OperationalError:
            return []  # one that has no pictures, such as that of the keys


def waiting(path: Path) -> tuple[int, int]:
    """Jobs of a database that a service would draw when it starts, and how many of them in a cloud."""
    query = (
        "SELECT count(*), coalesce(sum(json_extract(request, '$.backend') = 'flux-api'), 0) FROM job "
        "WHERE status IN ('queued', 'running')"
    )
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
        try:
            all_of_them, clouds = db.execute(query).fetchone()
        except sqlite3.OperationalError:
            return 0, 0
    return all_of_them, clouds


def cancel_waiting(path: Path, now: str) -> None:
    """End the jobs that wait or run, in a database that no service has."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "UPDATE job SET status = 'cancelled', finished_at = ? WHERE status IN ('queued', 'running')",
            (now,),
        )
