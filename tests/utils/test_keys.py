"""The file of keys: made, read by others at once, revoked, and what refuses to be one."""

from __future__ import annotations

import hashlib
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest

from config.errors import ConfigurationError, InvalidRequest, NotFound
from utils import keys
from utils.keys import Key, KeyFile, Limits, Scope, checked_name, id_of, key_file

NOW = "2026-11-26T12:00:00.000Z"
LATER = "2026-11-27T12:00:00.000Z"
GENERATE = frozenset({Scope.GENERATE})


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return key_file(tmp_path / "data")


def make(file: KeyFile, name: str = "laptop", **values) -> tuple[Key, str]:
    return file.make(**{"name": name, "scopes": GENERATE, "limits": Limits(), "now": NOW, **values})


def test_key_file_absent_has_no_keys_and_is_not_made_by_looking(file: KeyFile) -> None:
    assert file.all() == []
    assert not file.path.exists()


def test_key_made_is_read_back_as_it_was(file: KeyFile) -> None:
    limits = Limits(requests_per_minute=3, max_queued=4, daily_images=5, daily_usd=0.5)
    key, _ = make(file, scopes=frozenset(Scope), limits=limits, expires_at=LATER)
    assert file.all() == [key]
    assert (key.limits, key.expires_at, key.scopes) == (limits, LATER, frozenset(Scope))


def test_key_secret_is_256_random_bits_and_in_no_file(file: KeyFile) -> None:
    key, secret = make(file)
    _, other = make(file, "phone")
    assert secret != other
    assert secret.startswith("flux_") and len(secret) == 5 + 43
    written = b"".join(path.read_bytes() for path in file.path.parent.iterdir())
    assert secret.encode() not in written and secret[12:].encode() not in written
    assert hashlib.sha256(secret.encode()).hexdigest().encode() in written
    assert secret.startswith(key.shown) and len(key.shown) < 12


def test_key_shown_in_a_repr_tells_no_digest(file: KeyFile) -> None:
    key, secret = make(file)
    assert secret not in repr(key) and key.digest.hex() not in repr(key)
    assert key.id == id_of(key.digest)


def test_key_file_is_its_owners_alone(file: KeyFile) -> None:
    make(file)
    for path in file.path.parent.glob("keys.sqlite3*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_key_name_in_use_is_refused_and_free_again_when_revoked(file: KeyFile) -> None:
    key, _ = make(file)
    with pytest.raises(InvalidRequest, match="laptop"):
        make(file)
    file.revoke(key.id, NOW)
    make(file)
    assert len(file.all()) == 2


@pytest.mark.parametrize("by", ["id", "name"])
def test_key_revoked_stays_as_a_row_with_the_first_time(file: KeyFile, by: str) -> None:
    key, _ = make(file)
    assert file.revoke(getattr(key, by), NOW).revoked_at == NOW
    assert file.revoke(key.id, LATER).revoked_at == NOW


@pytest.mark.parametrize("wanted", ["nobody", "", "'; DROP TABLE key; --", "flux_"])
def test_key_that_is_not_there_is_not_revoked(file: KeyFile, wanted: str) -> None:
    make(file)
    with pytest.raises(NotFound):
        file.revoke(wanted, NOW)
    assert [key.revoked_at for key in file.all()] == [None]


def test_keys_made_at_once_are_all_there(file: KeyFile) -> None:
    threads = [threading.Thread(target=make, args=(file, f"key {n}")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(file.all()) == 8


def test_key_file_that_another_service_is_making_is_waited_for(file: KeyFile) -> None:
    file.path.parent.mkdir(parents=True)
    with closing(
        sqlite3.connect(file.path, isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.2, other.execute, ("COMMIT",))
        release.start()
        key, _ = make(file)
        release.join()
    assert file.all() == [key]


def test_key_file_that_stays_locked_is_refused(
    file: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "BUSY_SECONDS", 0.05)
    file.path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(file.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConfigurationError, match="database is locked"):
            make(file)


def test_keys_in_use_are_limited(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MAX_KEYS", 2)
    first, _ = make(file, "1")
    make(file, "2")
    with pytest.raises(InvalidRequest, match="2 keys"):
        make(file, "3")
    file.revoke(first.id, NOW)
    make(file, "3")


def test_key_use_is_noted_and_never_goes_back(file: KeyFile) -> None:
    key, _ = make(file)
    file.note_used({key.id: LATER, "gone": LATER})
    file.note_used({key.id: NOW})
    assert [each.last_used_at for each in file.all()] == [LATER]


def test_key_file_that_is_none_is_refused_with_its_path(file: KeyFile) -> None:
    file.path.parent.mkdir()
    file.path.write_bytes(b"no database at all" * 100)
    with pytest.raises(ConfigurationError, match=str(file.path)):
        file.all()
    assert file.path.read_bytes().startswith(b"no database")


def test_key_file_of_a_newer_version_is_left_alone(file: KeyFile) -> None:
    make(file)
    with closing(sqlite3.connect(file.path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigurationError, match="newer version"):
        make(file, "phone")


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x00b", "a\x1b[31m", "x" * 65])
def test_key_name_that_no_table_could_show_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="name"):
        checked_name(name)


@pytest.mark.parametrize("scope", [*Scope, None])
def test_key_may_do_what_its_scopes_say(scope: Scope | None) -> None:
    def key(*scopes: Scope) -> Key:
        return Key(id="", digest=b"", shown="", name="", scopes=frozenset(scopes))

    assert key(Scope.ADMIN).may(scope)
    assert key().may(scope) == (scope is None)
    assert key(Scope.GENERATE).may(scope) == (scope in (None, Scope.GENERATE))
