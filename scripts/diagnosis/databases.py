"""The databases of a service: whole, of a schema that this version reads, and nobody else's."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

from config.errors import ConfigurationError
from scripts.diagnosis.machine import Finding, State

CHECKED_WHOLE_BYTES = 64 * 2**20  # a larger one is checked by the service, beside its work
STALE_SECONDS = 120.0
CLOCK_TOLERANCE = timedelta(minutes=2)


def look_at(data_dir: Path, service: str) -> list[Finding]:
    """The jobs' and the keys' database. Opens what is there, makes nothing."""
    from utils import keys, sql

    jobs, key_file = data_dir / f"{service}.sqlite3", data_dir / keys.FILENAME
    findings = [
        _look_at_one("job database", jobs, sql.schema_version()),
        _look_at_one("keys", key_file, keys.SCHEMA_VERSION),
    ]
    journal = data_dir / _restoring()
    if journal.exists():
        findings.append(
            Finding(
                name="restore",
                state=State.FAULT,
                text=f"a restore was cut off half-way ({journal}), and the services do not start on it",
                fix="./flux restore --undo puts back what was there before; ./flux restore FOLDER begins anew",
            )
        )
    wanted = jobs.with_suffix(".wanted")
    if _age_seconds(wanted) > STALE_SECONDS:
        findings.append(
            Finding(
                name="stale file",
                state=State.WRONG,
                text=f"{wanted} says that a service waits for its database, and was left by one that is gone: cleanups "
                "end at once for it",
                fix=f"rm {wanted}",
            )
        )
    return [finding for finding in findings if finding is not None]


def _look_at_one(name: str, path: Path, known: int) -> Finding | None:
    """None where there is none yet."""
    if not path.exists():
        return None
    try:
        size = path.stat().st_size
        with closing(_connect(path)) as db:
            look = "PRAGMA quick_check" if size <= CHECKED_WHOLE_BYTES else "PRAGMA schema_version"
            found = db.execute(look).fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
    except (sqlite3.Error, OSError) as error:
        found, version = str(error), 0
    if found != "ok" and not isinstance(found, int):
        kept = "a backup (./flux restore FOLDER) brings back what was in it"
        return Finding(
            name=name,
            state=State.FAULT,
            text=f"{path} is damaged or cannot be read ({found})",
            fix=f"check its owner and permissions; else move it away with its -wal and -shm, and the service begins "
            f"with an empty one; {kept}",
        )
    if version > known:
        copies = sorted(path.parent.glob(f"{path.name}.schema-*"))
        copy = f", or go back to a copy of before the upgrade ({copies[-1]})" if copies else ""
        return Finding(
            name=name,
            state=State.FAULT,
            text=f"{path} was written by a newer version (schema {version}, this one knows {known})",
            fix=f"use that version (git pull){copy}, or set another FLUX_DATA_DIR",
        )
    whole = "whole" if size <= CHECKED_WHOLE_BYTES else "opens; the service checks large ones"
    text = f"{path}: {whole}, schema {version}"
    return Finding(name=name, state=State.OK, text=text)


def look_at_server(url: str) -> Finding:
    """The database that a fleet's front doors share (FLUX_DATABASE_URL), as it answers now."""
    from utils import sql
    from utils.database.postgres import PostgresDatabase, shown

    name = "fleet's database"
    try:
        version, schema = PostgresDatabase(url, "doctor").look()
        where = shown(url)
    except ConfigurationError as error:
        said, _, fix = str(error).partition("; ")
        fix = fix or "correct FLUX_DATABASE_URL, which .env.example explains"
        return Finding(name=name, state=State.FAULT, text=said, fix=fix)
    known = sql.schema_version(sql.POSTGRES)
    if schema > known:
        return Finding(
            name=name,
            state=State.FAULT,
            text=f"{where} was written by a newer version (schema {schema}, this one knows {known})",
            fix="use that version (git pull), or another database",
        )
    there = f"schema {schema}" if schema else "its tables are made by the first front door"
    return Finding(name=name, state=State.OK, text=f"{where}: PostgreSQL {version}, {there}")


def look_at_clock(data_dirs: list[Path], checkout: Path, now: datetime) -> Finding:
    """Whether the clock is behind what is known to have been: the newest job, and the checkout's own files."""
    newest = datetime.fromtimestamp((checkout / "pyproject.toml").stat().st_mtime, now.tzinfo)
    what = "the files of this checkout are"
    for path in (path for data_dir in data_dirs for path in data_dir.glob("*.sqlite3")):
        created = _newest_job(path)
        if created is not None and created > newest:
            newest, what = created, f"a job in {path} is"
    if newest > now + CLOCK_TOLERANCE:
        return Finding(
            name="clock",
            state=State.WRONG,
            text=f"it is {now:%Y-%m-%d %H:%M} UTC by this machine, and {what} of {newest:%Y-%m-%d %H:%M}: the clock was "
            "set back, or was ahead then. Pictures and usage get wrong days, and the Hub's certificates may not be taken",
            fix="set the clock (timedatectl set-ntp true), or wait until it has passed that time",
        )
    return Finding(name="clock", state=State.OK, text=f"{now:%Y-%m-%d %H:%M:%S} UTC")


def holder_of(path: Path) -> int | None:
    """The pid of whoever has a database's lock; None where nobody has, or the system does not tell.

    Read from the system, never tried: a lock that is taken for a moment would keep a service from starting.
    """
    lock = path.with_suffix(".lock")
    try:
        inode = lock.stat().st_ino
        device = lock.stat().st_dev
        wanted = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[-3] == wanted and "->" not in fields:
                return int(fields[-4])
    except (OSError, ValueError, IndexError):
        return None
    return None


def is_cleanup(path: Path) -> bool:
    """Whether a cleanup has the lock, which ends by itself."""
    try:
        return path.with_suffix(".lock").read_text(encoding="ascii").startswith("cleanup")
    except (OSError, ValueError):
        return False


def _connect(path: Path) -> sqlite3.Connection:
    """To read alone. Without a log beside it the file is all there is, and nothing is made there.

    Raises OSError for what is no file: to open a pipe would wait for ever.
    """
    if not path.is_file():
        raise OSError(f"{path} is no regular file")
    has_log = path.with_name(f"{path.name}-wal").exists()
    mode = "mode=ro" if has_log else "mode=ro&immutable=1"
    return sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, timeout=5.0)


def _newest_job(path: Path) -> datetime | None:
    try:
        with closing(_connect(path)) as db:
            (text,) = db.execute("SELECT created_at FROM job ORDER BY seq DESC LIMIT 1").fetchone()
        return datetime.fromisoformat(text)
    except (sqlite3.Error, OSError, TypeError, ValueError):
        return None  # none, or not to be read, which has a line of its own


def _age_seconds(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _restoring() -> str:
    from utils.database.sqlite import RESTORING

    return RESTORING
