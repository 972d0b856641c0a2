"""`flux backup` and `flux restore` beside services that run, as somebody does it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.failures import Status
from tests.lora_files import lora
from tests.service import RunningService
from utils.database.sqlite import take_lock


def folders(folder: Path) -> dict[str, str]:
    return {
        "FLUX_DATA_DIR": str(folder / "data"),
        "FLUX_LORA_DIR": str(folder / "loras"),
        "FLUX_OUTPUT_DIR": str(folder / "generated_images"),
    }


def test_backup_of_a_running_service_brings_its_jobs_and_loras_back(
    start_engine, program, flux, tmp_path: Path
) -> None:
    running: RunningService = start_engine()
    environ = folders(running.folder)
    at = ("--url", running.url)
    Path("mine.safetensors").write_bytes(lora(0.25))
    name = flux("lora", "add", "mine.safetensors", "--json", *at).json["loras"][0]["name"]
    drawn = running.submit("drawn before")
    running.wait_for_job(drawn, "succeeded")
    running.client.post("/queue/pause")
    waiting = running.submit("waits", loras=[{"name": name, "weight": 0.5}])

    backup = str(tmp_path / "backup")
    made = program("backup", backup, "--with-images", "--json", **environ)
    out, err = made.communicate(timeout=180)
    assert made.returncode == 0, err
    assert json.loads(out)["files"] >= 4

    assert flux("lora", "rm", name, *at).status == 0  # everything is lost
    running.client.delete(f"/images/{drawn}-0")
    running.client.post(f"/jobs/{waiting}/cancel")

    refused = program("restore", backup, "--without-settings", **environ)
    _, err = refused.communicate(timeout=180)
    assert refused.returncode == Status.WRONG and "runs" in err
    running.stop()
    restored = program("restore", backup, "--without-settings", "--json", **environ)
    out, err = restored.communicate(timeout=180)
    assert restored.returncode == 0, err
    assert (json.loads(out)["waiting_jobs"], json.loads(out)["dry_run"]) == (1, False)

    running.start()
    running.wait_for_workers()
    running.client.post("/queue/resume")
    again = running.wait_for_job(waiting, "succeeded")
    assert again["request"]["loras"][0]["name"] == name
    assert running.client.get(f"/images/{drawn}-0").status_code == 200
    assert name in flux("lora", "list", *at).out


@pytest.fixture
def machine(flux, monkeypatch, tmp_path: Path) -> Path:
    """Services that were never started."""
    for key, value in folders(tmp_path).items():
        monkeypatch.setenv(key, value)
    return tmp_path


def test_backup_and_restore_say_what_they_did(flux, machine: Path) -> None:
    flux("keys", "create", "laptop")
    done = flux("backup", "backup")
    assert done.status == 0 and "files" in done.out and "keep it where only you" in done.err
    done = flux("restore", "backup", "--without-settings")
    assert done.status == 0 and "is back" in done.out and "what was there before" in done.err
    assert flux("keys", "list", "--json").json["keys"][0]["name"] == "laptop"


def test_backup_says_that_a_fleets_jobs_on_a_server_are_not_in_it(
    flux, machine: Path, monkeypatch
) -> None:
    monkeypatch.setenv("FLUX_DATABASE_URL", "postgresql://flux:geheim@db.example/flux")
    told = flux("backup", "backup", "--json").json["not_included"]
    assert told == "postgresql+psycopg://flux:***@db.example/flux"
    done = flux("backup", "another")
    assert done.status == 0 and "NOT in it" in done.err and "pg_dump" in done.err
    assert told in done.err and "geheim" not in done.err + done.out


def test_backup_without_a_database_says_where_it_looked(flux, machine: Path) -> None:
    done = flux("backup", "backup")
    assert done.status == 0 and f"no database was in {machine / 'data'}" in done.err
    told = flux("backup", "another", "--json").json
    assert (told["schemas"], told["data_folders"]) == ({}, [str(machine / "data")])


def test_restore_of_a_folder_whose_name_moves_the_cursor_only_tells_it(flux, machine: Path) -> None:
    flux("backup", "odd\x1b[2J")
    done = flux("restore", "odd\x1b[2J", "--without-settings")
    assert done.status == 0 and "checking odd [2J" in done.err and "\x1b" not in done.err


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (("backup", "."), Status.WRONG, "there already"),
        (("restore",), Status.USAGE, "--undo"),
        (("restore", "backup", "--undo"), Status.USAGE, "--undo"),
        (("restore", "nowhere"), Status.WRONG, "is no backup"),
    ],
)
def test_what_cannot_be_says_why(flux, machine: Path, arguments, status, word: str) -> None:
    Path("file").touch()
    done = flux(*arguments)
    assert (done.status, done.out) == (status, "") and word in done.err
    done = flux(*arguments, "--json")
    assert done.status == status and word in done.error["message"]


def test_undo_of_nothing_is_well(flux, machine: Path) -> None:
    assert flux("restore", "--undo", "--json").json == {"undone": 0}


def test_restore_while_a_service_runs_is_an_error_as_json(flux, machine: Path) -> None:
    assert flux("backup", "backup").status == 0
    with take_lock(machine / "data" / "fp4.sqlite3", ""):
        done = flux("restore", "backup", "--without-settings", "--json")
    assert (done.status, done.error["code"]) == (Status.WRONG, "backup")
    assert "service fp4 runs" in done.error["message"]
