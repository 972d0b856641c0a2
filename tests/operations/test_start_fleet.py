"""start_fleet.sh: flags to settings, wrong flags, joining."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.operations.checkout import clean_environment, copy_checkout
from tests.operations.test_start_service import STAND_IN
from tests.service import free_port

Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = copy_checkout(tmp_path_factory.mktemp("fleet") / "flux")
    (copy / "main_fleet.py").write_text(STAND_IN)
    return copy


@pytest.fixture
def start(checkout: Path) -> Start:
    def run(*flags: str, **environ: str | int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [checkout / "start_fleet.sh", *flags],
            cwd="/",
            env=clean_environment(**{"FLEET_PORT": free_port(), **environ}),
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def settings_of(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["settings"]


def test_start_fleet_without_a_gpu_has_two_replicas(start: Start) -> None:
    assert settings_of(start())["FLUX_FAKE_GPUS"] == "2"


def test_start_fleet_flags_become_settings(start: Start) -> None:
    port = free_port()
    settings = settings_of(
        start(
            "--replicas=3", "--node", "studio", "--precision", "fp4", "-p", str(port), "--model", "embedded",
        )
    )  # fmt: skip
    assert settings == {
        "FLUX_FAKE_GPUS": "3",
        "FLUX_FLEET_NODE": "studio",
        "FLUX_FLEET_PRECISION": "fp4",
        "FLUX_PORT": str(port),
        "FLUX_MODEL": "embedded",
    }


def test_start_fleet_another_door_is_a_front_door_that_joins(start: Start) -> None:
    port = free_port()
    settings = settings_of(start("--door", "--join", "192.0.2.10", "-p", str(port)))
    assert (settings["FLUX_FLEET_JOIN"], settings["FLUX_PORT"]) == ("192.0.2.10", str(port))


def test_start_fleet_named_gpus_are_no_cpu_replicas(start: Start) -> None:
    settings = settings_of(start("-g", "0,1"))
    assert settings["FLUX_GPUS"] == "0,1" and "FLUX_FAKE_GPUS" not in settings


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--replicas", "0"), "takes a number from 1 to 8; not '0'"),
        (("-g", "1,1"), "GPU indices"),
        (("--port", "0"), "a port from 1 to 65535"),
        (("--join",), "needs a value"),
        (("--join", "10.0.0.1", "--port", "9"), "are the front door's"),
        (("--door",), "name its first machine with --join ADDRESS"),
        (("--nodes", "3"), "unknown option '--nodes'"),
        (("--precision", "FP4!"), "bf16, fp4"),
    ],
)
def test_start_fleet_wrong_flag_is_refused_in_words(
    start: Start, flags: tuple[str, ...], words: str
) -> None:
    done = start(*flags)
    assert done.returncode == 2 and words in done.stderr and "Accepted:" in done.stderr


def test_start_fleet_help_names_every_flag(start: Start) -> None:
    said = start("--help").stdout
    flags = (
        "--join",
        "--gpus",
        "--replicas",
        "--precision",
        "--node",
        "--port",
        "--host",
        "--model",
    )
    assert all(flag in said for flag in flags)


def test_start_fleet_join_without_a_token_says_where_it_is(start: Start, tmp_path: Path) -> None:
    done = start("--join", "127.0.0.1", FLUX_DATA_DIR=tmp_path)
    assert done.returncode == 78
    assert (
        f"copy data/fleet/token of the fleet's first machine to {tmp_path}/fleet/token"
        in done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_start_fleet_join_of_nobody_says_what_to_do(start: Start, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = start("--join", address, FLUX_DATA_DIR=tmp_path, FLUX_FLEET_TOKEN="0123456789abcdef")
    assert done.returncode == 78
    assert f"nothing answers at {address}: start ./start_fleet.sh there first" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_start_fleet_unknown_precision_is_refused(start: Start, tmp_path: Path) -> None:
    environ = {"FLUX_DATA_DIR": tmp_path, "FLUX_FLEET_TOKEN": "0123456789abcdef"}
    done = start("--join", "127.0.0.1", "--precision", "fp2", **environ)
    assert done.returncode == 78
    assert "FLUX_FLEET_PRECISION = 'fp2'" in done.stderr and "auto, bf16, fp4" in done.stderr


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "ctrl-c"]
)
def test_start_fleet_stop_during_setup_ends_the_setup(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    copy = copy_checkout(tmp_path / "flux")
    setup = copy / "scripts" / "setup_env.sh"
    setup.write_text("#!/bin/bash\nsleep 600 &\necho $! > installs\nwait\n")
    process = subprocess.Popen([copy / "start_fleet.sh"], env=clean_environment(), cwd=copy)
    noted = copy / "installs"
    deadline = time.monotonic() + 60
    while not (noted.exists() and noted.read_text().strip()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    installs = psutil.Process(int(noted.read_text()))
    process.send_signal(number)
    assert process.wait(120) == status
    installs.wait(120)
