"""The keys as one service knows them: those of its settings and those of the machine's file.

The file is looked at when a request comes, at most once in `LOOK_SECONDS`, and read again when
somebody has changed it. A key that is not known is looked for before it is refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable
from datetime import datetime
from hmac import compare_digest
from typing import TypeVar

from config.errors import ConfigurationError, InvalidRequest, StorageUnavailable
from config.settings import Settings, is_loopback
from utils.clock import Chance, rfc3339
from utils.keys import Key, Limits, Scope, digest_of, id_of, key_file, read_all

log = logging.getLogger(__name__)

T = TypeVar("T")

# Each look lets other threads of the process go first, which a busy service would feel.
LOOK_SECONDS = 0.02
FLUSH_SECONDS = 30.0  # between notes of when keys were used last
SETTINGS_NAME = "FLUX_API_KEYS"  # what the keys of the settings are called


class Keyring:
    """`open` before use; `close` at the end. All calls from the event loop's thread."""

    def __init__(self, settings: Settings, chance: Chance) -> None:
        self.file = key_file(settings.storage.data_dir)
        self._chance = chance
        self._host = settings.server.host
        self._is_loopback = is_loopback(settings.server.host)
        self._fixed = tuple(
            _fixed(key.get_secret_value(), number)
            for number, key in enumerate(settings.server.api_keys, 1)
        )
        self._keys: tuple[Key, ...] = self._fixed
        self._in_use = self._fixed  # those that were not revoked
        self._by_id: dict[str, Key] = {key.id: key for key in self._fixed}
        self._db: sqlite3.Connection | None = None
        self._next_look = 0.0  # monotonic
        self._seen: tuple[int, int] | None = (
            None  # the file's inode and version as of the last look
        )
        self._used: dict[str, datetime] = (
            {}
        )  # not as text yet: with every request that would take its time
        self._flushing: asyncio.Task[None] | None = None

    def require(self) -> None:
        """Raises ConfigurationError when other machines could use the service without a key."""
        if self._is_loopback or self._fixed:
            return
        now = self.now()
        if any(_is_in_use(key, now) for key in self.file.all()):
            return
        raise ConfigurationError(
            f"FLUX_HOST = {self._host!r} can be reached from other machines, and there is no key. Make one with "
            "`python -m scripts.keys make NAME`, or set FLUX_API_KEYS (for example to the output of "
            "`openssl rand -hex 32`), or use 127.0.0.1"
        )

    async def open(self) -> None:
        """Raises ConfigurationError when the file cannot be used."""
        self.file.create()
        self._reopen()
        self._flushing = asyncio.create_task(self._keep_noting(), name="key times")

    async def close(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.gather(self._flushing, return_exceptions=True)
            await self._note_used()
        if self._db is not None:
            self._db.close()
            self._db = None

    def now(self) -> str:
        return rfc3339(self._chance.now())

    # Who

    @property
    def are_needed(self) -> bool:
        """Whether requests must come with a key. Once there was one they must, also after it was revoked."""
        self._look()
        return bool(self._keys) or not self._is_loopback

    def find(self, secrets: Iterable[str]) -> Key | None:
        """The key that one of the secrets is, unless it was revoked."""
        sent = [digest_of(secret) for secret in secrets]
        self._look()
        found = self._among_those_in_use(sent)
        if found is None and self._look(now=True):
            found = self._among_those_in_use(sent)
        return found

    def _among_those_in_use(self, sent: list[bytes]) -> Key | None:
        # Every pair is compared to its end, so that the time says nothing about which was near.
        found = [
            key for digest in sent for key in self._in_use if compare_digest(digest, key.digest)
        ]
        return found[0] if found else None

    def is_in_use(self, key_id: str) -> bool:
        """Whether the key with this id still works."""
        self._look()
        key = self._by_id.get(key_id)
        return key is not None and _is_in_use(key, self.now())

    def has_expired(self, key: Key) -> bool:
        return key.expires_at is not None and self.now() >= key.expires_at

    def note_use(self, key: Key) -> None:
        self._used[key.id] = self._chance.now()

    # By owner: a key's id, or empty where nobody sent one

    def limits_of(self, owner: str) -> Limits:
        key = self._by_id.get(owner)
        return Limits() if key is None else key.limits

    def name_of(self, owner: str) -> str | None:
        key = self._by_id.get(owner)
        return None if key is None else key.name

    def all(self) -> list[tuple[Key, str | None]]:
        """Every key and when it was used last, those of the settings first."""
        self._look(now=True)
        return [(key, self._last_use(key)) for key in self._keys]

    def _last_use(self, key: Key) -> str | None:
        used = self._used.get(key.id)
        return key.last_used_at if used is None else rfc3339(used)

    async def make(
        self, *, name: str, scopes: frozenset[Scope], limits: Limits, expires_at: str | None
    ) -> tuple[Key, str]:
        """A new key and its secret; see `KeyFile.make`."""
        now = self.now()
        return await self._change(
            lambda: self.file.make(
                name=name, scopes=scopes, limits=limits, now=now, expires_at=expires_at
            )
        )

    async def revoke(self, key_id: str) -> Key:
        """Raises NotFound; InvalidRequest for a key of the settings."""
        if any(key.id == key_id for key in self._fixed):
            raise InvalidRequest.of(
                "key_id", "is a key of FLUX_API_KEYS; take it out there and restart the service"
            )
        now = self.now()
        return await self._change(lambda: self.file.revoke(key_id, now))

    async def _change(self, change: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(change)
        except ConfigurationError as error:
            raise _refused(error) from error
        finally:
            self._next_look = 0.0

    # The file

    def _look(self, *, now: bool = False) -> bool:
        """Read the file again if somebody has changed it; returns whether it was read."""
        at = self._chance.monotonic()
        if self._db is None or (at < self._next_look and not now):
            return False
        self._next_look = at + LOOK_SECONDS
        try:
            version = self._db.execute("PRAGMA data_version").fetchone()[0]
            if self._seen == (os.stat(self.file.path).st_ino, version):
                return False
            self._read()
        except (sqlite3.Error, OSError):
            # Another file in its place, or none.
            try:
                self.file.create()
                self._reopen()
            except ConfigurationError as error:
                self._next_look = 0.0  # nobody is let in on what was read before
                raise _refused(error) from error
        return True

    def _reopen(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db, self._seen = self.file.reading(), None
        self._read()

    def _read(self) -> None:
        assert self._db is not None
        inode = os.stat(self.file.path).st_ino
        if self._seen is not None and self._seen[0] != inode:
            raise FileNotFoundError(self.file.path)  # the connection is to a file that is gone
        # The version first: what is written meanwhile is seen with the next request.
        version = self._db.execute("PRAGMA data_version").fetchone()[0]
        self._keys = (*self._fixed, *read_all(self._db))
        self._in_use = tuple(key for key in self._keys if key.revoked_at is None)
        self._by_id = {key.id: key for key in self._keys}
        self._seen = (inode, version)

    async def _keep_noting(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self._note_used()

    async def _note_used(self) -> None:
        used, self._used = self._used, {}
        if not used:
            return
        try:
            times = {key_id: rfc3339(at) for key_id, at in used.items()}
            await asyncio.to_thread(self.file.note_used, times)
        except ConfigurationError as error:
            log.error("%s", error, extra={"action": "keys_refused"})
            self._used = used | self._used


def _fixed(secret: str, number: int) -> Key:
    digest = digest_of(secret)
    return Key(
        id=id_of(digest),
        digest=digest,
        shown="",
        name=f"{SETTINGS_NAME} {number}",
        scopes=frozenset({Scope.ADMIN}),
    )


def _refused(error: ConfigurationError) -> StorageUnavailable:
    log.error("%s", error, extra={"action": "keys_refused"})
    return StorageUnavailable(
        "the keys cannot be read or written now; the service's log has the reason",
        retry_after_seconds=5,
    )


def _is_in_use(key: Key, now: str) -> bool:
    return key.revoked_at is None and (key.expires_at is None or now < key.expires_at)
