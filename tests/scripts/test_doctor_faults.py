"""Faults that users have, prepared for real: the doctor names each, says what to do, and ends with status 1."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from config.settings import ROOT
from scripts.diagnosis import databases, environment, graphics, packages, running
from scripts.diagnosis.machine import Card, Cards, Finding, State, Torch, look_at_folder
from tests.operations.checkout import clean_environment, copy_checkout
from tests.postgres import PASSWORD, PostgresServer
from tests.service import RunningService, free_port
from tests.utils.test_migrations import make_schema_1, upgrade
from utils import sql
from utils.database.postgres import PostgresDatabase
from utils.database.sqlite import RESTORING, take_lock

CARD = Card(
    index=0, uuid="GPU-aaaa", name="RTX 4090", memory_total_mib=24564, memory_free_mib=20000,
    capability=(8, 9),
)  # fmt: skip
ONE_CARD = Cards(cards=(CARD,), driver_cuda=(13, 0))
OLD_DRIVER = Cards(cards=(CARD,), driver_cuda=(12, 4))
NO_CARD = Cards(why_none="no NVIDIA driver answers")
CPU_TORCH = Torch(version="2.13.0+cpu")
CUDA_TORCH = Torch(version="2.13.0+cu130", cuda="13.0", architectures=("sm_89",), sees_gpu=True)
BLIND_TORCH = Torch(version="2.13.0+cu130", cuda="13.0", architectures=("sm_89",), sees_gpu=False)


def the(findings: list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


# The whole doctor, as the program that it is, in a copy of the checkout


class Patient:
    """A checkout of its own, with ports that are free and no GPU."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ports = {"BF16_PORT": free_port(), "FP4_PORT": free_port()}

    def see(self, **environ: str | int) -> tuple[int, dict[str, Any]]:
        """The exit status, and every finding by its section and name."""
        done = subprocess.run(
            [self.root / "flux", "doctor", "--json"],
            env=clean_environment(**{"FLUX_GPUS": "none", **self.ports, **environ}),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout)

    def wrong(self, **environ: str | int) -> list[dict[str, str]]:
        """What is not as it should be; the doctor ends with status 1 for it."""
        status, report = self.see(**environ)
        found = [
            finding
            for findings in report["sections"].values()
            for finding in findings
            if finding["state"] in ("wrong", "fault")
        ]
        assert status == int(bool(found)) and report["wrong"] == bool(found)
        return found


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Patient:
    return Patient(copy_checkout(tmp_path_factory.mktemp("doctor") / "flux", models=True))


def test_machine_in_health_has_no_findings(patient: Patient) -> None:
    status, report = patient.see()
    states = {finding["state"] for findings in report["sections"].values() for finding in findings}
    assert (status, report["ok"], report["wrong"]) == (0, True, False)
    assert states <= {"ok", "note", "no"}
    assert not (patient.root / "data").exists(), "the doctor makes nothing"


def quick_torch(folder: Path) -> str:
    """A torch that is as well as the real one, which takes seconds to ask, and is asked by the test above."""
    (folder / "torch.py").write_text(
        "from types import SimpleNamespace\n"
        "__version__, version = '2.13.0+cpu', SimpleNamespace(cuda=None)\n"
        "cuda = SimpleNamespace(get_arch_list=lambda: [], is_available=lambda: False)\n"
    )
    return str(folder)


def test_many_faults_at_once_are_all_named(patient: Patient, tmp_path: Path) -> None:
    """One look, because a look takes seconds: each fault has its line, whatever else is wrong."""
    root = patient.root
    data = root / "data"
    data.mkdir()
    (data / "bf16.sqlite3").write_bytes(b"SQLite format 3\0" + random.Random(1).randbytes(8192))
    make_schema_1(data / "fp4.sqlite3")
    with closing(sqlite3.connect(data / "fp4.sqlite3")) as db:
        db.execute(f"PRAGMA user_version = {sql.schema_version() + 1}")
    (root / ".env").write_text("HF_TOKEN=hf_0123456789\n")
    (root / "generated_images").write_text("a file in the folder's place")
    toml = root / "config" / "fp4.toml"
    toml.write_text("[server]\nprot = 8000\n")
    weights = next((root / "models" / "embedded" / "transformer").glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with OtherProgram() as port:
        found = patient.wrong(
            BF16_PORT=port, CUDA_VISIBLE_DEVICES="7", PYTHONPATH=quick_torch(tmp_path)
        )
    said = "\n".join(f"{each['name']}: {each['text']} -> {each['fix']}" for each in found)
    shutil.rmtree(data)
    (root / ".env").unlink()
    (root / "generated_images").unlink()
    weights.write_bytes(content)
    shutil.copy(ROOT / "config" / "fp4.toml", toml)
    for words in (
        "unknown key server.prot (did you mean port?)",
        "bf16.sqlite3 is damaged",
        f"newer version (schema {sql.schema_version() + 1}",
        "call it FLUX_HF_TOKEN in .env",
        "generated_images is no folder",
        "is incomplete: transformer",
        "held by somebody else",
        "names 7, which is not there",
    ):
        assert words in said, said
    assert all(each["fix"] or each["name"].startswith("model ") for each in found)


class OtherProgram:
    """A port that another program has."""

    def __enter__(self) -> int:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", free_port()))
        self._socket.listen()
        return self._socket.getsockname()[1]

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def test_missing_environment_is_examined_with_the_systems_python(tmp_path: Path) -> None:
    """No .venv, and a Python without any package: the doctor runs and says what to do first."""
    for name in ("cli", "scripts", "models", "utils", "config", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "flux", tmp_path / "flux")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    done = subprocess.run(
        [tmp_path / "flux", "doctor"],
        env=clean_environment(PYTHON=tmp_path / "bare" / "bin" / "python"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "FAULT   packages: missing" in done.stdout and "scripts/setup_env.sh" in done.stdout


# Packages


def put_package(folder: Path, name: str, version: str, summary: str = "") -> None:
    """As pip leaves one: what the environment says of it is in its metadata."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {summary}\n"
    )


def test_redirecting_pynvml_is_told_from_ours(tmp_path: Path, monkeypatch) -> None:
    assert packages.look_at_impostors() == []
    put_package(tmp_path, "pynvml", "11.5.0")
    monkeypatch.syspath_prepend(tmp_path)
    found = the(packages.look_at_impostors(), "pynvml")
    assert found.state is State.WRONG and "11.5.0" in found.text
    assert "pip uninstall -y pynvml" in found.fix


def test_nunchaku_of_the_index_is_told_from_the_engine(tmp_path: Path, monkeypatch) -> None:
    put_package(tmp_path, "nunchaku", "0.15.4", "Statistics in Python")
    (tmp_path / "nunchaku").mkdir()
    (tmp_path / "nunchaku" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = the(packages.look_at_impostors(), "nunchaku")
    assert "Statistics in Python" in found.text and "pip uninstall -y nunchaku" in found.fix


def test_package_of_another_version_than_the_locks_is_named(tmp_path: Path, monkeypatch) -> None:
    put_package(tmp_path, "diffusers", "0.30.0")
    monkeypatch.syspath_prepend(tmp_path)
    found = packages.look_at_packages()
    assert found.state is State.WRONG and "diffusers 0.30.0 (wanted" in found.text
    assert "rm -rf .venv" in found.fix


# Cards


def test_torch_for_cpus_beside_a_card_says_how_to_make_it_anew() -> None:
    found = the(graphics.findings(ONE_CARD, CPU_TORCH, {}), "GPU 0")
    assert found.state is State.FAULT and "without CUDA" in found.text
    assert "rm -rf .venv && scripts/setup_env.sh" in found.fix


def test_driver_that_is_older_than_torchs_cuda_is_to_be_updated() -> None:
    found = the(graphics.findings(OLD_DRIVER, BLIND_TORCH, {}), "GPU 0")
    assert found.state is State.FAULT
    assert "CUDA 12.4" in found.fix and "580 or later" in found.fix


def test_card_without_a_driver_is_seen_on_the_bus(tmp_path: Path) -> None:
    for name, vendor, kind in (
        ("0000:01:00.0", "0x10de", "0x030000"),
        ("0000:01:00.1", "0x10de", "0x040300"),  # its sound
        ("0000:00:02.0", "0x8086", "0x030000"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    found = the(graphics.findings(NO_CARD, CUDA_TORCH, {}, tmp_path), "GPU")
    assert found.state is State.WRONG and "(PCI 0000:01:00.0)" in found.text
    assert "nvidia-smi" in found.fix


def test_machine_without_a_card_is_no_fault(tmp_path: Path) -> None:
    found = the(graphics.findings(NO_CARD, CPU_TORCH, {}, tmp_path), "GPU")
    assert found.state is State.NOTE


@pytest.mark.parametrize(
    ("visible", "state"),
    [("0", State.OK), ("GPU-aa", State.OK), ("3", State.WRONG), ("0,3", State.WRONG),
     ("", State.NOTE), ("-1", State.NOTE), ("GPU-ffff", State.WRONG)],
)  # fmt: skip
def test_visible_devices_are_held_against_the_cards(visible: str, state: State) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": visible}
    found = the(graphics.findings(ONE_CARD, CUDA_TORCH, environ), "CUDA_VISIBLE_DEVICES")
    assert found.state is state
    assert ("unset CUDA_VISIBLE_DEVICES" in found.fix) == (state is not State.OK)


# Databases


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a database in use."""
    make_schema_1(tmp_path / "bf16.sqlite3")
    upgrade(tmp_path / "bf16.sqlite3")
    return tmp_path


def test_folder_that_is_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    """A disk that is not mounted, as a rule."""
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    finding = look_at_folder("LoRAs", tmp_path / "link" / "loras")
    assert finding.state is State.FAULT
    assert f"{tmp_path}/link is a link to {tmp_path}/disk, which is not there" in finding.text
    (tmp_path / "disk").mkdir()
    assert look_at_folder("LoRAs", tmp_path / "link" / "loras").state is State.OK


def test_database_in_health_is_well_and_nothing_is_made(data: Path) -> None:
    before = sorted(path.name for path in data.iterdir())
    found = the(databases.look_at(data, "bf16"), "job database")
    assert found.state is State.OK and f"schema {sql.schema_version()}" in found.text
    assert sorted(path.name for path in data.iterdir()) == before


def test_database_that_is_damaged_is_to_be_moved_or_restored(data: Path) -> None:
    content = bytearray((data / "bf16.sqlite3").read_bytes())
    content[4096:8192] = random.Random(1).randbytes(4096)
    (data / "bf16.sqlite3").write_bytes(content)
    found = the(databases.look_at(data, "bf16"), "job database")
    assert found.state is State.FAULT and "./flux restore" in found.fix


def test_pipe_in_a_databases_place_is_named_and_not_waited_for(data: Path) -> None:
    (data / "bf16.sqlite3").unlink()
    os.mkfifo(data / "bf16.sqlite3")
    found = the(databases.look_at(data, "bf16"), "job database")
    assert found.state is State.FAULT and "no regular file" in found.text
    assert databases.look_at_clock([data], ROOT, datetime.now(UTC)).state is State.OK


def test_database_of_a_newer_version_names_the_copy_to_go_back_to(data: Path) -> None:
    with closing(sqlite3.connect(data / "bf16.sqlite3")) as db:
        db.execute("PRAGMA user_version = 99")
    found = the(databases.look_at(data, "bf16"), "job database")
    assert found.state is State.FAULT and "schema 99" in found.text
    assert "bf16.sqlite3.schema-1" in found.fix


def test_restore_that_was_cut_off_is_named(data: Path) -> None:
    (data / RESTORING).write_text("{}")
    assert "--undo" in the(databases.look_at(data, "bf16"), "restore").fix


def test_stale_file_of_a_service_that_is_gone_is_named(data: Path) -> None:
    (data / "bf16.wanted").touch()
    assert not [each for each in databases.look_at(data, "bf16") if each.name == "stale file"]
    os.utime(data / "bf16.wanted", (1, 1))
    found = the(databases.look_at(data, "bf16"), "stale file")
    assert found.state is State.WRONG and found.fix == f"rm {data / 'bf16.wanted'}"


def test_clock_that_is_behind_the_newest_job_is_named(data: Path) -> None:
    now = datetime.now(UTC)
    well = databases.look_at_clock([data], ROOT, now + timedelta(days=1))
    assert well.state is State.OK
    with closing(sqlite3.connect(data / "bf16.sqlite3")) as db, db:
        ahead = (now + timedelta(days=3)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        db.execute("UPDATE job SET created_at = ?", (ahead,))
    found = databases.look_at_clock([data], ROOT, now)
    assert found.state is State.WRONG and "bf16.sqlite3" in found.text and "clock" in found.fix


def test_second_service_on_one_database_is_named_with_the_first(data: Path) -> None:
    with closing(take_lock(data / "bf16.sqlite3", "")):
        (found,) = running.look_at("bf16", "127.0.0.1", free_port(), data)
    assert found.state is State.WRONG and f"pid {os.getpid()}" in found.text
    assert "FLUX_DATA_DIR" in found.fix
    assert running.look_at("bf16", "127.0.0.1", free_port(), data) == []


def test_cleanup_that_has_a_database_is_no_second_service(data: Path) -> None:
    with closing(take_lock(data / "bf16.sqlite3", "cleanup")):
        assert running.look_at("bf16", "127.0.0.1", free_port(), data) == []


# Services that run


def test_service_that_answers_is_well(service: RunningService, monkeypatch) -> None:
    monkeypatch.setattr(running, "ANSWER_SECONDS", 60.0)
    (found,) = running.look_at("bf16", "127.0.0.1", service.port, service.folder / "data")
    assert found.state is State.OK and "takes jobs" in found.text


def test_service_that_hangs_is_to_be_ended(service: RunningService, monkeypatch) -> None:
    monkeypatch.setattr(running, "ANSWER_SECONDS", 0.3)
    service.process.send_signal(signal.SIGSTOP)
    try:
        found = running.look_at("bf16", "127.0.0.1", service.port, service.folder / "data")[0]
    finally:
        service.process.send_signal(signal.SIGCONT)
    assert found.state is State.FAULT and "it hangs" in found.text
    assert f"kill {service.process.pid}" in found.fix


# The environment


def test_token_that_nobody_reads_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("HF_TOKEN=hf_0123456789\n")
    (tmp_path / ".env").chmod(0o600)
    found = the(environment.look_at(tmp_path, {}), ".env")
    assert found.state is State.WRONG and "FLUX_HF_TOKEN" in found.fix
    assert "hf_0123456789" not in found.text + found.fix
    assert environment.look_at(tmp_path, {"HF_TOKEN": "x"}) == []


def test_secrets_that_others_can_read_are_a_note(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("FLUX_API_KEYS=0123456789abcdef0123\n")
    (tmp_path / ".env").chmod(0o644)
    found = the(environment.look_at(tmp_path, {}), ".env")
    assert found.state is State.NOTE and found.fix.startswith("chmod 600")


def test_services_on_one_port_are_named(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLUX_PORT", "21999")
    found = the(environment.look_at(tmp_path, {}), "ports")
    assert found.state is State.FAULT and "21999" in found.text and "FP4_PORT" in found.fix


# A fleet's database on a server


def test_fleets_database_that_answers_is_told_with_its_schema(postgres: PostgresServer) -> None:
    with postgres.database() as url:
        before = databases.look_at_server(url)
        prepared = PostgresDatabase(url, "door")
        prepared.prepare()
        prepared.end()
        after = databases.look_at_server(url)
    assert before.state is after.state is State.OK
    assert f"schema {sql.schema_version(sql.POSTGRES)}" in after.text
    assert PASSWORD not in after.text and "flux:***@127.0.0.1" in after.text


def test_fleets_database_that_does_not_answer_is_a_fault(postgres: PostgresServer) -> None:
    found = databases.look_at_server(postgres.url("nowhere"))
    assert found.state is State.FAULT
    assert "there is no such database" in found.text and "createdb" in found.fix
