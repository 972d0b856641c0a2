"""Keys: who may use the services of a machine, for what, and how much.

A key is 32 random bytes, so nobody guesses it and its SHA-256 is all that need be kept: a slow hash
would protect nothing more. The keys of a machine lie in one small database in the data folder, which
its services and `python -m scripts.keys` share; a service looks for changes with every request, so a
key works, or stops working, everywhere at once. A key that was revoked stays as a row: what it used
keeps its name, and revoking the last one opens no door.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from config.errors import ConfigurationError, InvalidRequest, NotFound

FILENAME = "keys.sqlite3"
PREFIX = "flux_"
SECRET_BYTES = 32
SHOWN_CHARACTERS = 10  # of a key, to tell it from others in a list
# Of a key's SHA-256 in hex: enough to tell keys apart, not enough to guess one.
ID_DIGITS = 16
MAX_KEYS = 1000  # in use: with every request each is compared
MAX_NAME_CHARACTERS = 64
BUSY_SECONDS = 5.0
AGAIN_SECONDS = 0.02

_SCHEMA = """
CREATE TABLE IF NOT EXISTS key (
    id                  TEXT PRIMARY KEY,
    digest              TEXT NOT NULL UNIQUE,
    shown               TEXT NOT NULL,
    name                TEXT NOT NULL,
    scopes              TEXT NOT NULL,
    requests_per_minute INTEGER,
    max_queued          INTEGER,
    daily_images        INTEGER,
    daily_usd           REAL,
    created_at          TEXT NOT NULL,
    expires_at          TEXT,
    revoked_at          TEXT,
    last_used_at        TEXT
) STRICT;
"""
SCHEMA_VERSION = 1


class Scope(StrEnum):
    GENERATE = "generate"  # draw, and read and delete what the key drew
    LORAS = "loras"  # change the library and the default LoRAs
    ADMIN = "admin"  # everything, and everybody's jobs and pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one key may have; None: no limit of its own. Days are UTC's."""

    requests_per_minute: int | None = None
    max_queued: int | None = None  # jobs that may wait at once
    daily_images: int | None = None
    daily_usd: float | None = None  # of what clouds charge; 0: none of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key without its secret. Times are RFC 3339 UTC."""

    id: str
    digest: bytes = field(repr=False)
    shown: str
    name: str
    scopes: frozenset[Scope]
    limits: Limits = Limits()
    created_at: str = ""
    expires_at: str | None = None
    revoked_at: str | None = None
    last_used_at: str | None = None

    def may(self, scope: Scope | None) -> bool:
        """Whether the key has a scope; None is what every key may."""
        return scope is None or scope in self.scopes or Scope.ADMIN in self.scopes


def checked_name(name: str) -> str:
    """A name for people. Raises InvalidRequest for one that a table or a log could not show."""
    name = name.strip()
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise InvalidRequest.of(
            "name", f"must be 1 to {MAX_NAME_CHARACTERS} printable characters, such as `laptop`"
        )
    return name


def digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def id_of(digest: bytes) -> str:
    """A key's name in rows and answers; it tells nothing about the key."""
    return digest.hex()[:ID_DIGITS]


def key_file(data_dir: Path) -> KeyFile:
    return KeyFile(data_dir / FILENAME)


class KeyFile:
    """The keys of a machine on disk. Every call opens the file for itself, so processes may share it.

    Raises ConfigurationError when it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        """Make the file if there is none, readable by its owner alone."""
        with self._open():
            pass

    def all(self) -> list[Key]:
        """Every key, oldest first; none where there is no file."""
        if not self.path.exists():
            return []
        with self._open() as db:
            return read_all(db)

    def make(
        self,
        *,
        name: str,
        scopes: frozenset[Scope],
        limits: Limits,
        now: str,
        expires_at: str | None = None,
    ) -> tuple[Key, str]:
        """A new key and its secret, which is told this once. Raises InvalidRequest for a name in use."""
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        digest = digest_of(secret)
        key = Key(
            id=id_of(digest),
            digest=digest,
            shown=secret[:SHOWN_CHARACTERS],
            name=name,
            scopes=scopes,
            limits=limits,
            created_at=now,
            expires_at=expires_at,
        )
        with self._open() as db:
            there = [other for other in read_all(db) if other.revoked_at is None]
            if any(other.name == name for other in there):
                raise InvalidRequest.of(
                    "name", f"there is a key {name!r} already; revoke it or choose another name"
                )
            if len(there) >= MAX_KEYS:
                raise InvalidRequest.of(
                    "name", f"there are {MAX_KEYS} keys in use, and no more are kept; revoke some"
                )
            db.execute(
                "INSERT INTO key VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
                (
                    key.id,
                    digest.hex(),
                    key.shown,
                    name,
                    " ".join(sorted(scopes)),
                    limits.requests_per_minute,
                    limits.max_queued,
                    limits.daily_images,
                    limits.daily_usd,
                    now,
                    expires_at,
                ),
            )
        return key, secret

    def revoke(self, wanted: str, now: str) -> Key:
        """End the key with this id, or the one in use with this name. Raises NotFound."""
        with self._open() as db:
            found = [
                key
                for key in read_all(db)
                if key.id == wanted or (key.name == wanted and key.revoked_at is None)
            ]
            if not found:
                raise NotFound(f"there is no key {wanted[:64]!r}")
            db.execute(
                "UPDATE key SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?",
                (now, found[0].id),
            )
            (ended,) = (key for key in read_all(db) if key.id == found[0].id)
            return ended

    def note_used(self, times: Mapping[str, str]) -> None:
        """When keys were used last, by id; an earlier time than the file's changes nothing."""
        with self._open() as db:
            db.executemany(
                "UPDATE key SET last_used_at = ? WHERE id = ? AND coalesce(last_used_at, '') < ?",
                [(at, key_id, at) for key_id, at in times.items()],
            )

    def reading(self) -> sqlite3.Connection:
        """A connection that only reads; its `PRAGMA data_version` changes when another one has written."""
        with self._refusals():
            db = _connect(self.path)
            db.execute("PRAGMA query_only = ON")
            return db

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction, committed when the block ends well."""
        with self._refusals():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Made by hand, because SQLite would leave it readable by everybody. Never opened by hand once it
            # is there: closing it would end the locks of every connection that this process has to it.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            with closing(_connect(self.path)) as db:
                _log_ahead(db)
                db.execute("BEGIN IMMEDIATE")
                try:
                    _prepare(db, self.path)
                    yield db
                except BaseException:
                    db.execute("ROLLBACK")
                    raise
                db.execute("COMMIT")

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ConfigurationError(
                f"{self.path}: the keys cannot be read or written ({error}). Check the file's owner, its "
                "permissions and free space; moved away, it is made anew and all its keys are gone"
            ) from error


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA synchronous = FULL")
    return db


def _log_ahead(db: sqlite3.Connection) -> None:
    """Into WAL mode, which stays. SQLite waits for nobody here, and services may start at the same moment."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(AGAIN_SECONDS)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise ConfigurationError(
            f"{path}: written by a newer version (schema {version}, this one knows {SCHEMA_VERSION}); use that version"
        )
    if version < SCHEMA_VERSION:
        db.execute(_SCHEMA)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def read_all(db: sqlite3.Connection) -> list[Key]:
    return [_key(row) for row in db.execute("SELECT * FROM key ORDER BY created_at, id")]


def _key(row: sqlite3.Row) -> Key:
    return Key(
        id=row["id"],
        digest=bytes.fromhex(row["digest"]),
        shown=row["shown"],
        name=row["name"],
        scopes=frozenset(map(Scope, row["scopes"].split())),
        limits=Limits(
            requests_per_minute=row["requests_per_minute"],
            max_queued=row["max_queued"],
            daily_images=row["daily_images"],
            daily_usd=row["daily_usd"],
        ),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        last_used_at=row["last_used_at"],
    )
