"""Restores: all of it or nothing, onto services that rest."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from config.errors import ConfigurationError
from config.settings import ROOT
from tests.utils.backup.conftest import PICTURES, STAMP, Machine
from tests.utils.test_migrations import make_schema_1, upgrade
from utils.backup import restoring, swap
from utils.backup.manifest import BackupError
from utils.database.sqlite import RESTORING, take_lock
from utils.job_store import JobStore


def use_on(machine: Machine) -> None:
    """What happens after the backup: other jobs, another LoRA, other settings."""
    with closing(sqlite3.connect(machine.jobs)) as db, db:
        db.execute("DELETE FROM image")
        db.execute("DELETE FROM job")
    (machine.loras / "new.safetensors").write_bytes(b"new")
    (machine.data / "inputs" / "bf16" / "new").write_bytes(b"new")
    (machine.output / PICTURES[0]).write_bytes(b"drawn over")
    with open(machine.root / ".env", "a") as file:
        file.write("FLUX_LOG_LEVEL=debug\n")


def without_asides(contents: dict[str, bytes]) -> dict[str, bytes]:
    return {path: content for path, content in contents.items() if "before-restore" not in path}


def test_restore_brings_back_what_was(machine: Machine, backup: Path) -> None:
    before = machine.contents()
    use_on(machine)
    machine.restore(backup)
    assert without_asides(machine.contents()) == before


def test_restore_onto_an_empty_machine_brings_back_what_was(machine: Machine, backup: Path) -> None:
    before = machine.contents()
    for folder in (machine.data, machine.loras, machine.output):
        shutil.rmtree(folder)
    (machine.root / ".env").unlink()
    machine.restore(backup)
    after = machine.contents()
    gone = set(before) - set(after)  # of no backup: half an upload, and a file that no job knows
    assert gone == {"loras/.incoming/half.safetensors", "out/mine.png"}
    assert all(after[path] == before[path] for path in after)


@pytest.mark.parametrize("name", [b"a\\b", b"a\nb", b"\xff", b"\x1b[2J", b"a b"], ids=ascii)
def test_restore_brings_back_a_lora_of_any_name(machine: Machine, tmp_path: Path, name) -> None:
    path = machine.loras / os.fsdecode(name + b".safetensors")
    path.write_bytes(b"of the user")
    machine.make(tmp_path / "odd")
    path.unlink()
    machine.restore(tmp_path / "odd")
    assert path.read_bytes() == b"of the user"


def test_restore_keeps_what_it_replaces(machine: Machine, backup: Path) -> None:
    use_on(machine)
    done = machine.restore(backup)
    data_aside = machine.data / f".before-restore-{STAMP}"
    assert str(data_aside) in done.asides
    assert (data_aside / "inputs" / "bf16" / "new").read_bytes() == b"new"
    with closing(sqlite3.connect(data_aside / "bf16.sqlite3")) as db:
        assert db.execute("SELECT count(*) FROM job").fetchone()[0] == 0
    assert (machine.loras / f".before-restore-{STAMP}" / "new.safetensors").exists()
    assert (machine.output / f".before-restore-{STAMP}" / PICTURES[0]).read_bytes() == b"drawn over"
    assert "debug" in (machine.root / f".env.before-restore-{STAMP}").read_text()


def test_restore_leaves_no_staging(machine: Machine, backup: Path) -> None:
    machine.restore(backup)
    assert not [path for path in machine.root.rglob("*") if ".restoring" in path.name]
    assert not (machine.data / RESTORING).exists()


def test_restore_gives_back_the_rights_of_files(machine: Machine, backup: Path) -> None:
    (machine.data / "keys.sqlite3").unlink()
    machine.restore(backup)
    assert (machine.data / "keys.sqlite3").stat().st_mode & 0o777 == 0o600


def test_restore_counts_the_jobs_that_will_be_drawn(machine: Machine, backup: Path) -> None:
    done = machine.restore(backup)
    assert (done.waiting, done.waiting_in_clouds) == (2 * count(machine, "queued", "running"), 0)
    assert done.waiting > 0


def test_restore_that_cancels_them_leaves_none(machine: Machine, backup: Path) -> None:
    assert machine.restore(backup, cancel_waiting=True).waiting == 0
    assert count(machine, "queued", "running") == 0
    assert count(machine, "succeeded") == 1


def count(machine: Machine, *statuses: str) -> int:
    with closing(sqlite3.connect(machine.jobs)) as db:
        rows = db.execute("SELECT status FROM job").fetchall()
    return len([status for (status,) in rows if status in statuses])


def test_restore_without_settings_leaves_them(machine: Machine, backup: Path) -> None:
    use_on(machine)
    machine.restore(backup, with_settings=False)
    assert "debug" in (machine.root / ".env").read_text()
    assert count(machine, "succeeded") == 1


def test_restore_goes_where_the_settings_of_the_backup_say(
    machine: Machine, backup: Path, tmp_path: Path
) -> None:
    elsewhere = Machine(tmp_path / "elsewhere")
    elsewhere.root.mkdir()
    (machine.root / ".env").write_text(f"FLUX_DATA_DIR={elsewhere.data}\n")
    before = elsewhere.contents()
    machine.restore(backup)
    assert str(machine.data) in (machine.root / ".env").read_text()
    assert elsewhere.contents() == before


def test_restore_by_the_environment_goes_elsewhere(
    machine: Machine, backup: Path, tmp_path: Path
) -> None:
    """As the services will have it: the environment wins over .env."""
    new = tmp_path / "new"
    before = machine.contents()
    machine.restore(backup, environ={"FLUX_DATA_DIR": str(new), "FLUX_LORA_DIR": str(new / "l")})
    assert (new / "bf16.sqlite3").exists() and list((new / "l").glob("*.safetensors"))
    assert without_asides(machine.contents()) == before


def test_restore_dry_changes_nothing(machine: Machine, backup: Path) -> None:
    use_on(machine)
    before, names = machine.contents(), sorted(machine.root.rglob("*"))
    done = machine.restore(backup, dry_run=True)
    assert machine.contents() == before and done.asides == ()
    assert sorted(machine.root.rglob("*")) == names


def test_restore_of_an_older_schema_is_upgraded_at_the_start(
    machine: Machine, tmp_path: Path
) -> None:
    machine.jobs.unlink()
    make_schema_1(machine.jobs)
    machine.make(tmp_path / "old")
    machine.restore(tmp_path / "old")
    upgrade(machine.jobs)
    assert count(machine, "succeeded") == 1
    assert (machine.data / "bf16.sqlite3.schema-1").exists()


def test_restore_where_loras_and_data_share_a_folder(machine: Machine, tmp_path: Path) -> None:
    """Each has its own files in it, and neither takes the other's away."""
    for path in machine.loras.glob("*.*"):
        if path.is_file():
            path.rename(machine.data / path.name)
    text = (machine.root / ".env").read_text()
    (machine.root / ".env").write_text(text.replace(str(machine.loras), str(machine.data)))
    made = machine.make(tmp_path / "shared")
    assert not [file.path for file in made.files if "sqlite3" in file.path and "loras" in file.path]
    before = machine.contents()
    (machine.data / "new.safetensors").write_bytes(b"new")
    with closing(sqlite3.connect(machine.jobs)) as db, db:
        db.execute("DELETE FROM job WHERE status = 'failed'")
    machine.restore(tmp_path / "shared")
    assert without_asides(machine.contents()) == before


# Refused


@pytest.mark.parametrize("service", ["bf16", "fp4"])
def test_restore_onto_a_service_that_runs_is_refused(
    machine: Machine, backup: Path, service: str
) -> None:
    use_on(machine)
    before = machine.contents()
    with closing(take_lock(machine.data / f"{service}.sqlite3", "")):
        with pytest.raises(BackupError, match=f"the service {service} runs"):
            machine.restore(backup)
    assert machine.contents() == before


def test_restore_holds_the_databases_meanwhile(machine: Machine, backup: Path) -> None:
    """A service that starts in the middle of it does not get one."""
    refused = []

    def tell(text: str) -> None:
        if text.startswith("copying"):
            with pytest.raises(ConfigurationError, match="in use"):
                take_lock(machine.jobs, "")
            refused.append(text)

    machine.restore(backup, tell=tell)
    assert refused
    take_lock(machine.jobs, "").close()  # and gets it afterwards


def test_restore_of_a_damaged_one_changes_nothing(machine: Machine, backup: Path) -> None:
    next((backup / "loras").glob("*.safetensors")).unlink()
    use_on(machine)
    before = machine.contents()
    with pytest.raises(BackupError, match="damaged"):
        machine.restore(backup)
    assert machine.contents() == before


def test_restore_of_settings_that_are_wrong_changes_nothing(
    machine: Machine, tmp_path: Path
) -> None:
    places = machine.places
    with open(machine.root / ".env", "a") as file:
        file.write("FLUX_PRT=8001\n")
    from utils.backup import making

    making.make(
        tmp_path / "bad", places, now="now", version="1", with_images=False, tell=lambda _: None
    )
    before = machine.contents()
    with pytest.raises(ConfigurationError, match="FLUX_PRT"):
        machine.restore(tmp_path / "bad")
    assert machine.contents() == before


def test_restore_without_room_changes_nothing(
    machine: Machine, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = machine.contents()
    usage = shutil.disk_usage(machine.root)
    monkeypatch.setattr(
        restoring.shutil, "disk_usage", lambda _: usage._replace(free=restoring.SPARE_BYTES)
    )
    with pytest.raises(BackupError, match="make room"):
        machine.restore(backup)
    assert machine.contents() == before


# Cut off


def steps_of(machine: Machine, backup: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many renames a restore makes; it is made and undone by hand."""
    renamed = []
    real = os.rename

    def rename(source: str, target: str) -> None:
        renamed.append(source)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(swap.os, "rename", rename)
        machine.restore(backup)
    return len(renamed)


def copy_of(machine: Machine, to: Path) -> None:
    shutil.rmtree(machine.root)
    shutil.copytree(to, machine.root, symlinks=True)


def test_restore_that_fails_at_any_step_leaves_everything_as_it_was(
    machine: Machine, backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_on(machine)
    shutil.copytree(machine.root, tmp_path / "kept")
    before = machine.contents()
    count = steps_of(machine, backup, monkeypatch)
    assert count > 8
    real = os.rename
    for broken in range(count):
        copy_of(machine, tmp_path / "kept")
        calls = iter(range(10_000))

        def rename(source: str, target: str, calls=calls, broken=broken) -> None:
            if next(calls) == broken:
                raise OSError(28, "No space left on device", str(source))
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(swap.os, "rename", rename)
            with pytest.raises(BackupError, match="as it was before"):
                machine.restore(backup)
        assert machine.contents() == before, f"after a failure of step {broken}"


KILLED = """
import os, sys
from pathlib import Path
from tests.utils.backup.conftest import Machine
from utils.backup import swap

root, backup, at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
real, calls = os.rename, iter(range(10_000))
def rename(source, target):
    if next(calls) == at:
        os.kill(os.getpid(), 9)
    real(source, target)
swap.os.rename = rename
Machine(root).restore(backup)
"""


@pytest.mark.parametrize("at", [1, 6])
def test_restore_that_is_killed_keeps_services_away_and_can_be_undone(
    machine: Machine, backup: Path, at: int
) -> None:
    use_on(machine)
    before = machine.contents()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(machine.root), str(backup), str(at)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == -9
    with pytest.raises(ConfigurationError, match="--undo"):
        asyncio.run(JobStore.open(machine.jobs))
    with pytest.raises(BackupError, match="cut off"):
        machine.make(backup.parent / "another")
    assert restoring.undo_cut_off(machine.places, lambda _: None) == 1
    assert machine.contents() == before
    upgrade(machine.jobs)  # a service starts


def test_restore_after_one_that_was_killed_begins_anew(machine: Machine, backup: Path) -> None:
    before = machine.contents()
    use_on(machine)
    subprocess.run(
        [sys.executable, "-c", KILLED, str(machine.root), str(backup), "5"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (machine.data / RESTORING).exists()
    machine.restore(backup)
    assert without_asides(machine.contents()) == before


def test_restore_removes_what_one_left_that_was_killed_early(
    machine: Machine, backup: Path
) -> None:
    for folder in (machine.data, machine.loras):
        (folder / ".restoring-20250101T000000Z" / "half").mkdir(parents=True)
    machine.restore(backup)
    assert not list(machine.root.rglob(".restoring-*"))


def test_undo_where_nothing_was_cut_off_does_nothing(machine: Machine) -> None:
    before = machine.contents()
    assert restoring.undo_cut_off(machine.places, lambda _: None) == 0
    assert machine.contents() == before


def test_undo_of_a_journal_that_is_no_journal_says_so(machine: Machine) -> None:
    (machine.data / RESTORING).write_text(json.dumps({"steps": 7}))
    with pytest.raises(BackupError, match=r"restore\.json"):
        restoring.undo_cut_off(machine.places, lambda _: None)
