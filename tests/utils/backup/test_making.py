"""Backups: whole and consistent while services write, or not there at all."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.utils.backup.conftest import PICTURES, Machine
from utils.backup import databases, manifest
from utils.backup.manifest import BackupError, Manifest


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_make_holds_what_the_services_keep(machine: Machine, tmp_path: Path) -> None:
    made = machine.make(tmp_path / "backup")
    found = names(tmp_path / "backup")
    assert {"data/bf16.sqlite3", "data/fp4.sqlite3", "data/keys.sqlite3"} <= found
    assert {"data/inputs/bf16/abc", "settings/.env", "settings/bf16.toml"} <= found
    assert len([name for name in found if name.startswith("loras/")]) == 2  # nothing half
    assert len([name for name in found if name.startswith("pins/bf16/")]) == 1
    assert not [name for name in found if name.startswith("images/")]
    assert found == {file.path for file in made.files} | {manifest.FILENAME}


def test_make_lists_every_file_as_it_is(machine: Machine, tmp_path: Path) -> None:
    made = machine.make(tmp_path / "backup")
    assert Manifest.read(tmp_path / "backup") == made
    for file in made.files:
        path = tmp_path / "backup" / file.path
        assert (path.stat().st_size, manifest.sha256_of(path)) == (file.size_bytes, file.sha256)


def test_make_with_images_takes_those_of_the_rows_alone(machine: Machine, tmp_path: Path) -> None:
    (machine.output / PICTURES[1]).unlink()
    made = machine.make(tmp_path / "backup", with_images=True)
    assert {name for name in names(tmp_path / "backup") if "images/" in name} == {
        f"images/{PICTURES[0]}"
    }
    assert set(made.gone) == {PICTURES[1]}


def test_make_is_for_its_owner_alone(machine: Machine, tmp_path: Path) -> None:
    machine.make(tmp_path / "backup")
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o700
    files = (path for path in (tmp_path / "backup" / "data").iterdir() if path.is_file())
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_make_has_what_is_in_the_log_of_a_database_alone(machine: Machine, tmp_path: Path) -> None:
    with closing(sqlite3.connect(machine.jobs)) as service:
        service.execute("PRAGMA journal_mode = WAL")
        service.execute("PRAGMA wal_autocheckpoint = 0")
        with service:
            service.execute("UPDATE job SET created_at = 'of the log' WHERE id = 'job1'")
        machine.make(tmp_path / "backup")
    with closing(sqlite3.connect(tmp_path / "backup" / "data" / "bf16.sqlite3")) as db:
        assert db.execute("SELECT created_at FROM job WHERE id = 'job1'").fetchone()[0] == (
            "of the log"
        )
    assert not (tmp_path / "backup" / "data" / "bf16.sqlite3-wal").exists()


def test_make_while_jobs_are_written_is_one_moment(machine: Machine, tmp_path: Path) -> None:
    """A writer moves one from job to job, two rows in a transaction: a torn copy would have two or none."""
    stop, began = threading.Event(), threading.Event()
    with closing(sqlite3.connect(machine.jobs)) as db, db:
        db.execute("CREATE TABLE moves (place INTEGER, here INTEGER)")
        db.executemany("INSERT INTO moves VALUES (?, ?)", [(n, int(n == 0)) for n in range(2000)])

    def write() -> None:
        with closing(sqlite3.connect(machine.jobs, timeout=30)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            place = 0
            while not stop.is_set():
                with db:
                    db.execute("UPDATE moves SET here = 0 WHERE place = ?", (place,))
                    place = (place + 777) % 2000
                    db.execute("UPDATE moves SET here = 1 WHERE place = ?", (place,))
                began.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert began.wait(30)
        for number in range(5):
            machine.make(tmp_path / f"backup{number}")
    finally:
        stop.set()
        writer.join()
    for number in range(5):
        copied = tmp_path / f"backup{number}" / "data" / "bf16.sqlite3"
        with closing(sqlite3.connect(copied)) as db:
            assert db.execute("SELECT sum(here) FROM moves").fetchone()[0] == 1
        assert databases.check(copied, copied) > 0


def test_make_into_an_empty_folder_is_taken(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    machine.make(tmp_path / "backup")
    assert (tmp_path / "backup" / manifest.FILENAME).exists()


def test_make_into_a_folder_that_is_not_empty_leaves_it_as_it_is(
    machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    with pytest.raises(BackupError, match="there already"):
        machine.make(tmp_path / "mine")
    assert names(tmp_path / "mine") == {"notes"}


@pytest.mark.parametrize("inside", ["data", "loras", "out"])
def test_make_inside_of_what_is_kept_is_refused(machine: Machine, inside: str) -> None:
    before = machine.contents()
    with pytest.raises(BackupError, match="another place"):
        machine.make(machine.root / inside / "backup")
    assert machine.contents() == before


def test_make_of_a_damaged_database_names_it_and_leaves_nothing(
    machine: Machine, tmp_path: Path
) -> None:
    content = bytearray(machine.jobs.read_bytes())
    content[4096:8192] = b"\xa5" * 4096
    machine.jobs.write_bytes(content)
    with pytest.raises(BackupError, match=r"bf16\.sqlite3"):
        machine.make(tmp_path / "backups" / "today")
    assert list((tmp_path / "backups").iterdir()) == []


def test_make_without_room_says_so_and_blames_no_database(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own bound on a file's pages stands for a disk that is full."""
    connect = sqlite3.connect

    def bounded(path: Path, **options: Any) -> sqlite3.Connection:
        db = connect(path, **options)
        if "partial" in str(path):
            db.execute("PRAGMA max_page_count = 1")
        return db

    monkeypatch.setattr(sqlite3, "connect", bounded)
    with pytest.raises(BackupError, match=r"no room .*bf16\.sqlite3") as raised:
        machine.make(tmp_path / "backups" / "today")
    assert "damaged" not in str(raised.value)
    assert list((tmp_path / "backups").iterdir()) == []


def test_make_that_is_interrupted_leaves_nothing(machine: Machine, tmp_path: Path) -> None:
    def tell(text: str) -> None:
        if "fp4" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        machine.make(tmp_path / "backups" / "today", tell=tell)
    assert list((tmp_path / "backups").iterdir()) == []


def test_make_removes_what_one_left_that_was_killed(machine: Machine, tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / f".today.{ended.pid}.partial" / "data").mkdir(parents=True)
    (tmp_path / f".today.{os.getppid()}.partial").mkdir()  # of one that runs
    machine.make(tmp_path / "today")
    left = [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")]
    assert left == [f".today.{os.getppid()}.partial"]


def test_make_follows_no_link(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_bytes(b"somebody else's")
    (machine.loras / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    machine.make(tmp_path / "backup")
    assert "loras/link.safetensors" not in names(tmp_path / "backup")


def test_make_of_services_that_were_never_started_is_well(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "flux")
    machine.root.mkdir()
    (machine.root / ".env").write_text(
        f"FLUX_DATA_DIR={machine.data}\nFLUX_LORA_DIR={machine.loras}\nFLUX_OUTPUT_DIR={machine.output}\n"
    )
    made = machine.make(tmp_path / "backup", with_images=True)
    assert [file.path for file in made.files] == ["settings/.env"]
    assert not machine.data.exists()
