"""A backup is looked at whole before it is trusted."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from utils import sql
from utils.backup import manifest, reading
from utils.backup.manifest import BackupError


def test_read_of_a_whole_one_gives_what_it_holds(backup: Path) -> None:
    found = reading.read(backup)
    assert found.schemas["data/bf16.sqlite3"] == sql.schema_version()


def cut(backup: Path) -> None:
    path = backup / "data" / "bf16.sqlite3"
    os.truncate(path, path.stat().st_size - 1)


def turn_a_bit(backup: Path) -> None:
    path = next((backup / "loras").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def remove(backup: Path) -> None:
    (backup / "settings" / ".env").unlink()


def replace_by_a_link(backup: Path) -> None:
    path = backup / "data" / "keys.sqlite3"
    path.rename(backup.parent / "elsewhere")
    path.symlink_to(backup.parent / "elsewhere")


def put_the_folder_behind_a_link(backup: Path) -> None:
    (backup / "data").rename(backup.parent / "elsewhere")
    (backup / "data").symlink_to(backup.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (cut, "data/bf16.sqlite3 has"),
        (turn_a_bit, "other content"),
        (remove, "settings/.env is missing"),
        (replace_by_a_link, "data/keys.sqlite3 is a link"),
        (put_the_folder_behind_a_link, "is a link"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_read_of_a_damaged_one_names_the_file(
    backup: Path, damage: Callable[[Path], None], named: str
) -> None:
    damage(backup)
    with pytest.raises(BackupError, match=named):
        reading.read(backup)


def changed(backup: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = backup / manifest.FILENAME
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "path", ["../outside", "/etc/passwd", "data/../../outside", "", "data/\0", 7]
)
def test_read_of_a_path_that_leads_outside_is_refused(backup: Path, path: Any) -> None:
    changed(backup, lambda values: values["files"][0].update(path=path))
    with pytest.raises(BackupError, match="damaged"):
        reading.read(backup)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("mode", value) for value in ("644", None, -1, 10**30)),
        *(("size_bytes", value) for value in (True, 9.0)),
        ("sha256", None),
        *(("path", path) for path in ("elsewhere/x", "data/bf16.lock", "data/.restoring.json")),
        *(("path", path) for path in ("data/x.json", "loras/.lock", "loras/a/b.safetensors")),
    ],
)
def test_read_of_a_file_that_no_backup_takes_is_refused(backup: Path, field: str, value) -> None:
    """What would break off in the middle, or put a lock or a journal where services look for theirs."""
    changed(backup, lambda values: values["files"][0].update({field: value}))
    with pytest.raises(BackupError, match="manifest.json is damaged"):
        reading.read(backup)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("services", value) for value in ([], [7], "bf16", None)),
        *(("kind", value) for value in ("other", None, ["data"])),
        *(("name", value) for value in ("../data", "loras", None)),
    ],
)
def test_read_of_a_folder_that_is_none_is_refused(backup: Path, field: str, value: Any) -> None:
    changed(backup, lambda values: values["folders"][0].update({field: value}))
    with pytest.raises(BackupError, match="manifest.json is damaged"):
        reading.read(backup)


@pytest.mark.parametrize(
    ("field", "value"), [("folders", []), ("schemas", {}), ("format", 0), ("format", True)]
)
def test_read_of_a_manifest_with_a_part_missing_is_refused(backup: Path, field, value) -> None:
    """Else nothing would be put back and called done, or a newer database taken for one of ours."""
    changed(backup, lambda values: values.update({field: value}))
    with pytest.raises(BackupError, match="manifest.json is damaged"):
        reading.read(backup)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": 1}', "null", "\x00", "[" * 100_000],
    ids=lambda text: ascii(text[:14]),
)
def test_read_of_a_manifest_that_is_none_is_refused(backup: Path, text: str) -> None:
    (backup / manifest.FILENAME).write_text(text)
    with pytest.raises(BackupError, match="manifest.json"):
        reading.read(backup)


def test_read_of_what_is_no_backup_says_so(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="is no backup"):
        reading.read(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BackupError, match="no folder"):
        reading.read(tmp_path / "file")


def test_read_of_a_newer_format_names_the_version(backup: Path) -> None:
    changed(backup, lambda values: values.update(format=2, version="9.0"))
    with pytest.raises(BackupError, match=r"newer version .*version 9\.0"):
        reading.read(backup)


def test_read_of_a_newer_schema_is_refused(backup: Path) -> None:
    """Whatever the manifest says of it."""
    path = backup / "data" / "bf16.sqlite3"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 999")
    size, digest = path.stat().st_size, manifest.sha256_of(path)
    changed(
        backup,
        lambda values: [
            file.update(size_bytes=size, sha256=digest)
            for file in values["files"]
            if file["path"] == "data/bf16.sqlite3"
        ],
    )
    with pytest.raises(BackupError, match="schema 999"):
        reading.read(backup)
