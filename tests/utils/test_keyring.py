"""The keys as a service knows them: who is found, when keys are needed, what others change meanwhile."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from config.errors import ConfigurationError, InvalidRequest, StorageUnavailable
from config.settings import ROOT, Settings, load_settings
from tests.utils.soak.bench import in_loop
from utils import keyring
from utils.clock import Chance, rfc3339
from utils.keyring import Keyring
from utils.keys import Limits, Scope, key_file

FIXED = "key-of-the-settings-0123456789"
START = datetime(2026, 11, 26, 12, tzinfo=UTC)
SCOPES = frozenset({Scope.GENERATE})


class Clock:
    def __init__(self) -> None:
        self.now = START
        # Always later than the pause between two looks at the file.
        self.chance = Chance(now=lambda: self.now, monotonic=itertools.count().__next__)


def settings(folder: Path, **environ: str) -> Settings:
    return load_settings("bf16", {"FLUX_DATA_DIR": str(folder), **environ})


def make(folder: Path, name: str = "laptop", expires_at: str | None = None) -> tuple[str, str]:
    """As the script does, in the file: id and secret."""
    key, secret = key_file(folder).make(
        name=name, scopes=SCOPES, limits=Limits(), now=rfc3339(START), expires_at=expires_at
    )
    return key.id, secret


@in_loop
async def test_keyring_without_keys_on_loopback_needs_none(tmp_path: Path) -> None:
    ring = Keyring(settings(tmp_path), Clock().chance)
    ring.require()
    await ring.open()
    assert not ring.are_needed
    await ring.close()


@in_loop
async def test_keyring_finds_keys_of_settings_and_file(tmp_path: Path) -> None:
    _, secret = make(tmp_path)
    ring = Keyring(settings(tmp_path, FLUX_API_KEYS=FIXED), Clock().chance)
    await ring.open()
    assert ring.are_needed
    fixed, made = ring.find([FIXED]), ring.find([secret])
    assert fixed is not None and fixed.scopes == {Scope.ADMIN}
    assert made is not None and made.name == "laptop"
    assert ring.find(["wrong", secret]) == made
    for wrong in ("", secret[:-1], secret + "x", secret.upper(), made.digest.hex(), "\ud800"):
        assert ring.find([wrong]) is None
    await ring.close()


@in_loop
async def test_keyring_key_made_meanwhile_works_at_once_and_closes_the_door(tmp_path: Path) -> None:
    ring = Keyring(settings(tmp_path), Clock().chance)
    await ring.open()
    assert not ring.are_needed
    _, secret = make(tmp_path)
    assert ring.are_needed
    assert ring.find([secret]) is not None
    await ring.close()


@in_loop
async def test_keyring_key_revoked_meanwhile_ends_at_once_and_opens_no_door(tmp_path: Path) -> None:
    key_id, secret = make(tmp_path)
    ring = Keyring(settings(tmp_path), Clock().chance)
    await ring.open()
    assert ring.find([secret]) is not None
    key_file(tmp_path).revoke(key_id, rfc3339(START))
    assert ring.find([secret]) is None
    assert ring.are_needed
    assert ring.name_of(key_id) == "laptop", "what it used keeps its name"
    await ring.close()


@in_loop
async def test_keyring_looks_at_the_file_now_and_then_and_before_it_refuses(tmp_path: Path) -> None:
    key_id, secret = make(tmp_path)
    now = [0.0]
    ring = Keyring(settings(tmp_path), Chance(monotonic=lambda: now[0]))
    await ring.open()
    assert ring.find([secret]) is not None
    key_file(tmp_path).revoke(key_id, rfc3339(START))
    _, other = make(tmp_path, "made meanwhile")
    assert ring.find([secret]) is not None, "not looked at yet"
    assert ring.find([other]) is not None, "looked at, because it was not known"
    assert ring.find([secret]) is None
    now[0] += keyring.LOOK_SECONDS
    key_file(tmp_path).revoke("made meanwhile", rfc3339(START))
    assert ring.find([other]) is None
    await ring.close()


@in_loop
async def test_keyring_own_change_is_seen_at_once(tmp_path: Path) -> None:
    ring = Keyring(settings(tmp_path), Chance(monotonic=lambda: 0.0))
    await ring.open()
    key, secret = await ring.make(name="own", scopes=SCOPES, limits=Limits(), expires_at=None)
    assert ring.are_needed and ring.find([secret]) == key
    await ring.revoke(key.id)
    assert ring.find([secret]) is None
    await ring.close()


@in_loop
async def test_keyring_sees_changes_of_other_processes_after_its_own(tmp_path: Path) -> None:
    """A process that opened the file by hand would lose its locks, and the next one to leave took the log away."""
    _, secret = make(tmp_path)
    ring = Keyring(settings(tmp_path), Clock().chance)
    await ring.open()
    key = ring.find([secret])
    assert key is not None
    await ring.make(name="own change", scopes=SCOPES, limits=Limits(), expires_at=None)
    for number in range(3):
        code = f"from scripts import keys; keys.main(['make', 'other process {number}'])"
        environ = {**os.environ, "FLUX_DATA_DIR": str(tmp_path)}
        subprocess.run(
            [sys.executable, "-c", code], env=environ, cwd=ROOT, check=True, capture_output=True
        )
        assert len(ring.all()) == 3 + number
    await ring.close()


@in_loop
async def test_keyring_key_expires_with_the_clock(tmp_path: Path) -> None:
    clock = Clock()
    _, secret = make(tmp_path, expires_at="2026-11-26T13:00:00.000Z")
    ring = Keyring(settings(tmp_path), clock.chance)
    await ring.open()
    key = ring.find([secret])
    assert key is not None and not ring.has_expired(key)
    clock.now = START.replace(hour=13)
    assert ring.has_expired(key)
    await ring.close()


@in_loop
async def test_keyring_file_moved_away_is_made_anew(tmp_path: Path) -> None:
    _, secret = make(tmp_path)
    ring = Keyring(settings(tmp_path), Clock().chance)
    await ring.open()
    for path in tmp_path.glob("keys.sqlite3*"):
        path.rename(tmp_path / f"old-{path.name}")
    assert not ring.are_needed and ring.find([secret]) is None
    _, other = make(tmp_path)
    assert ring.find([other]) is not None
    await ring.close()


@in_loop
async def test_keyring_file_that_breaks_lets_nobody_in(tmp_path: Path) -> None:
    _, secret = make(tmp_path)
    ring = Keyring(settings(tmp_path), Clock().chance)
    await ring.open()
    for path in tmp_path.glob("keys.sqlite3*"):
        path.rename(tmp_path / f"old-{path.name}")
    (tmp_path / "keys.sqlite3").write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageUnavailable):
        ring.find([secret])
    with pytest.raises(StorageUnavailable):
        assert ring.are_needed
    await ring.close()


@in_loop
async def test_keyring_use_is_noted_in_the_file_at_the_end(tmp_path: Path) -> None:
    _, secret = make(tmp_path)
    ring = Keyring(settings(tmp_path), Clock().chance)
    await ring.open()
    key = ring.find([secret])
    assert key is not None
    ring.note_use(key)
    assert [used for _, used in ring.all()] == [rfc3339(START)]
    await ring.close()
    assert [each.last_used_at for each in key_file(tmp_path).all()] == [rfc3339(START)]


@in_loop
async def test_keyring_key_of_the_settings_is_not_revoked_here(tmp_path: Path) -> None:
    ring = Keyring(settings(tmp_path, FLUX_API_KEYS=FIXED), Clock().chance)
    await ring.open()
    ((key, _),) = ring.all()
    with pytest.raises(InvalidRequest, match="FLUX_API_KEYS"):
        await ring.revoke(key.id)
    await ring.close()


def test_keyring_compares_digests_in_constant_time_and_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By construction: every key that is sent is compared with every key there is, to the end, by its hash."""
    compared: list[tuple[bytes, bytes]] = []

    def spy(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return left == right

    monkeypatch.setattr(keyring, "compare_digest", spy)
    fixed = [f"{FIXED}{number}" for number in range(3)]
    ring = Keyring(settings(tmp_path, FLUX_API_KEYS=",".join(fixed)), Clock().chance)
    ring.find([fixed[0]])
    ring.find(["wrong"])
    assert len(compared) == 6
    assert all(len(left) == len(right) == 32 for left, right in compared)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "127.evil.example"]
)
def test_keyring_open_address_without_a_key_is_refused(tmp_path: Path, host: str) -> None:
    ring = Keyring(settings(tmp_path, FLUX_HOST=host), Clock().chance)
    with pytest.raises(ConfigurationError, match="scripts.keys make") as refused:
        ring.require()
    assert "FLUX_HOST" in str(refused.value) and "FLUX_API_KEYS" in str(refused.value)


def test_keyring_open_address_with_a_key_of_the_file_is_taken(tmp_path: Path) -> None:
    make(tmp_path)
    Keyring(settings(tmp_path, FLUX_HOST="0.0.0.0"), Clock().chance).require()


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_keyring_open_address_with_no_key_in_use_is_refused(tmp_path: Path, end: str) -> None:
    key_id, _ = make(tmp_path, expires_at="2026-11-26T11:00:00.000Z" if end == "expired" else None)
    if end == "revoked":
        key_file(tmp_path).revoke(key_id, rfc3339(START))
    with pytest.raises(ConfigurationError):
        Keyring(settings(tmp_path, FLUX_HOST="0.0.0.0"), Clock().chance).require()


@in_loop
async def test_keyring_open_address_whose_keys_are_gone_lets_nobody_in(tmp_path: Path) -> None:
    make(tmp_path)
    ring = Keyring(settings(tmp_path, FLUX_HOST="0.0.0.0"), Clock().chance)
    await ring.open()
    for path in tmp_path.glob("keys.sqlite3*"):
        path.unlink()
    assert ring.are_needed
    await ring.close()
