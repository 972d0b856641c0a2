"""The job database as a file: SQLite, one connection for writing and one for reading.

Only one process may open the file (`flock`): two writers on one SQLite file are two queues that
believe they are one.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from config.errors import ConfigurationError
from utils import sql
from utils.database import NewRow

log = logging.getLogger(__name__)

# A larger file is checked for damage while the service runs already: a year's jobs take longer than a start may.
CHECKED_FIRST_BYTES = 64 * 2**20
CLEANUP = "cleanup"  # who holds the lock, when it is no service
# A restore writes down here what it does: while this lies beside a database, it was cut off half-way.
RESTORING = "restore.json"
LET_GO_SECONDS = 15.0  # within which a cleanup gives a database to a service that starts


class SqliteConnection(sqlite3.Connection):
    """What a change of the store is given: queries by their names, beside SQLite's own way."""

    def rows(self, query: str, values: Mapping[str, Any]) -> list[sqlite3.Row]:
        # All rows are fetched: a RETURNING statement is only done when it has been read to its end.
        return self.execute(sql.queries()[query], values).fetchall()

    def select(self, words: str, values: Mapping[str, Any]) -> list[sqlite3.Row]:
        return self.execute(words, values).fetchall()

    def append(self, new: Sequence[NewRow]) -> list[int]:
        last = self.execute(
            sql.queries()["insert_jobs"], {"rows": sql.as_json([each.row for each in new])}
        ).lastrowid
        assert last is not None
        return list(range(last - len(new) + 1, last + 1))

    def begin(self) -> None:
        if self.in_transaction:  # an earlier rollback was refused
            self.execute("ROLLBACK")
        self.execute("BEGIN IMMEDIATE")

    def transaction(self) -> contextlib.AbstractContextManager[Any]:
        """What was begun is committed at the end, or rolled back on an exception."""
        return self

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        self.execute("SAVEPOINT change")
        try:
            yield
        except Exception:
            if (
                self.in_transaction
            ):  # else SQLite gave the whole transaction up (a full disk, an I/O error)
                self.execute("ROLLBACK TO change")
                self.execute("RELEASE change")
            raise
        self.execute("RELEASE change")


class SqliteDatabase:
    """A file. Made, then `prepare`d in the writer's thread; `close` lets go of it."""

    readers = 1

    def __init__(self, path: Path, holder: str = "") -> None:
        self.path = path
        self.damage: str | None = None  # what is wrong with the file, found after the start
        self._holder = holder
        self._is_closed = False
        self._lock_file: Any = None

    def prepare(self) -> SqliteConnection:
        """The connection for writing, of a database with this version's schema.

        Raises ConfigurationError when the file is another process's (StoreInUse), is damaged or is from a newer version.
        """
        path = self.path
        db: SqliteConnection | None = None
        try:
            self._lock_file = take_lock(path, self._holder)
            _refuse_half_restored(path)
            db = _connect(path)
            _prepare(db, path)
            if path.stat().st_size > CHECKED_FIRST_BYTES:
                threading.Thread(target=self._check, name="store-check", daemon=True).start()
        except ConfigurationError:
            self._let_go(db)
            raise
        except (sqlite3.Error, OSError) as error:
            self._let_go(db)
            if type(error) is sqlite3.DatabaseError:  # not one of its kinds: the file is at fault
                raise _damaged(path, str(error)) from error
            raise ConfigurationError(
                f"{path}: the job database cannot be opened ({error}). Check the folder's permissions and free space; "
                "to begin with an empty queue, move the file away"
            ) from error
        return db

    def reader(self) -> SqliteConnection:
        return _connect(self.path, read_only=True)

    def is_refusal(self, error: BaseException) -> bool:
        """Whether the disk or the database refused, and not what it was asked for."""
        return isinstance(error, sqlite3.Error | OSError) and not isinstance(
            error, sqlite3.IntegrityError
        )

    def in_words(self, error: BaseException) -> str:
        return (
            f"the job database or the output folder cannot be written ({error}); "
            "free some disk space or check its permissions, then try again"
        )

    @property
    def is_wanted(self) -> bool:
        """Whether a service waits for a database that a cleanup has."""
        return _wanted(self.path).exists()

    def close(self) -> None:
        """After the connections."""
        self._is_closed = True
        if self._lock_file is not None:
            self._lock_file.close()

    def _let_go(self, db: SqliteConnection | None) -> None:
        if db is not None:
            db.close()
        self.close()

    def _check(self) -> None:
        """Look for damage in a large file, beside all other work."""
        try:
            with contextlib.closing(_connect(self.path, read_only=True)) as db:
                db.set_progress_handler(lambda: self._is_closed, 10_000)
                found = db.execute("PRAGMA quick_check").fetchone()[0]
                if found == "ok":
                    found = _damaged_row(db) or found
        except sqlite3.OperationalError:
            return  # closed meanwhile, or the disk refuses, which others notice
        except sqlite3.DatabaseError as error:
            found = str(error)
        if found != "ok":
            self.damage = str(_damaged(self.path, found))
            log.error("%s", self.damage, extra={"action": "store_damaged"})


class StoreInUse(ConfigurationError):
    """Another process has the database."""


def take_lock(path: Path, holder: str) -> Any:
    """Have a database alone, until the file that is returned is closed. Raises StoreInUse.

    A service waits for a cleanup, which ends as soon as it sees that; nobody waits for a service.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_path = path.with_suffix(".lock")
    lock_file = open(lock_path, "a")
    give_up_at = time.monotonic() + LET_GO_SECONDS
    is_waiting = False
    try:
        while True:
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                is_cleanup = lock_path.read_text(encoding="ascii").startswith(CLEANUP)
                if holder or not is_cleanup or time.monotonic() > give_up_at:
                    lock_file.close()
                    whose = "a cleanup that does not end" if is_cleanup else "another instance"
                    raise StoreInUse(
                        f"{path} is in use by {whose} of this service; stop it, or give this one its own FLUX_DATA_DIR"
                    ) from error
                is_waiting = True
                _wanted(path).touch()
                time.sleep(0.05)
    finally:
        if is_waiting:
            _wanted(path).unlink(missing_ok=True)
    lock_file.truncate(0)
    lock_file.write(f"{holder} {os.getpid()}".strip())
    lock_file.flush()
    return lock_file


def _refuse_half_restored(path: Path) -> None:
    journal = path.with_name(RESTORING)
    if journal.exists():
        raise ConfigurationError(
            f"{journal}: a restore was cut off half-way. `./flux restore --undo` puts back what was there before it, "
            "`./flux restore FOLDER` does that and begins anew"
        )


def _wanted(path: Path) -> Path:
    """The file that a service lays down while it waits for a cleanup."""
    return path.with_suffix(".wanted")


def _connect(path: Path, *, read_only: bool = False) -> SqliteConnection:
    # One thread opens and closes the writing connection, another commits; never both at once.
    db = sqlite3.connect(
        path,
        isolation_level=None,
        timeout=5.0,
        check_same_thread=read_only,
        factory=SqliteConnection,
    )
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA synchronous = FULL")
    # Some systems' SQLite writes zeros over every page that becomes free, and so a year's cleanup twice.
    db.execute("PRAGMA secure_delete = FAST")
    if read_only:
        db.execute("PRAGMA query_only = ON")
    return db


def _damaged(path: Path, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{path}: the job database is damaged ({what}). It was left as it is; move it away to begin with "
        "an empty queue (pictures in the output folder are not touched)"
    )


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    try:
        # A large one is only opened here, and checked beside the work.
        is_large = path.exists() and path.stat().st_size > CHECKED_FIRST_BYTES
        look = "PRAGMA schema_version" if is_large else "PRAGMA quick_check"
        damage = db.execute(look).fetchone()[0]
    except sqlite3.DatabaseError as error:
        damage = str(error)
    if is_large and isinstance(damage, int):
        damage = "ok"
    if damage != "ok":
        raise _damaged(path, damage)
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > sql.schema_version():
        raise ConfigurationError(
            f"{path}: written by a newer version (schema {version}, this one knows {sql.schema_version()}); "
            f"use that version, or another FLUX_DATA_DIR{_copy_to_go_back_to(path)}"
        )
    if version > 0 and not is_large and (damage := _damaged_row(db)):
        raise _damaged(path, damage)
    db.execute("PRAGMA journal_mode = WAL")
    if version < sql.schema_version():
        _migrate(db, path, version)


def _damaged_row(db: sqlite3.Connection) -> str | None:
    """A job whose text is none any more: SQLite looks at the shape of its pages alone."""
    found = db.execute(
        "SELECT id FROM job WHERE NOT json_valid(request)"
        " OR (result IS NOT NULL AND NOT json_valid(result)) LIMIT 1"
    ).fetchone()
    return None if found is None else f"the row of job {found[0]!r} holds no JSON"


def _copy_to_go_back_to(path: Path) -> str:
    """The newest of the copies that upgrades left here which this version reads, in words."""
    for number in range(sql.schema_version(), 0, -1):
        copy = _copy_of_schema(path, number)
        if copy.exists():
            return (
                f". To go back to what was there before the upgrade, without the jobs since: move {path.name} (with its "
                f"-wal and -shm) away and rename {copy.name} to {path.name}"
            )
    return ""


def _copy_of_schema(path: Path, version: int) -> Path:
    return path.with_name(f"{path.name}.schema-{version}")


def _copy_whole(db: sqlite3.Connection, to: Path) -> None:
    """On disk when this returns; where it fails, as on a full disk, no half of it stays."""
    to.unlink(missing_ok=True)
    try:
        db.execute("VACUUM INTO ?", (str(to),))
        with open(to, "rb") as file:
            os.fsync(file.fileno())
    except BaseException:
        to.unlink(missing_ok=True)
        raise


def _migrate(db: sqlite3.Connection, path: Path, version: int) -> None:
    """Bring the schema up to this version in one transaction; a database with rows is copied first."""
    if version > 0:
        backup = _copy_of_schema(path, version)
        _copy_whole(db, backup)
        log.info("schema %s is kept in %s", version, backup, extra={"action": "migrating"})
    steps = "".join(text for number, text in sql.migrations().items() if number > version)
    # Rows of `image` point at rows of `job`, whose table may be made anew.
    db.execute("PRAGMA foreign_keys = OFF")
    try:
        db.executescript(f"BEGIN; {steps} PRAGMA user_version = {sql.schema_version()}; COMMIT;")
    except sqlite3.Error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    finally:
        db.execute("PRAGMA foreign_keys = ON")
