"""start_bf16_api.sh and start_fp4_api.sh: flags to settings, wrong flags, signals."""

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.operations.checkout import clean_environment, copy_checkout
from tests.service import free_port

# In place of the service: says what it was given, and whether this is the process that was started.
STAND_IN = """
import json, os, sys
settings = {k: v for k, v in os.environ.items() if k.startswith("FLUX_")}
print(json.dumps({"settings": settings, "arguments": sys.argv, "pid": os.getpid()}))
"""

Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = copy_checkout(tmp_path_factory.mktemp("start") / "flux")
    (copy / "main_bf16.py").write_text(STAND_IN)
    return copy


@pytest.fixture
def start(checkout: Path) -> Start:
    def run(*flags: str, script: str = "start_bf16_api.sh", **environ: str | int):
        return subprocess.run(
            [checkout / script, *flags],
            cwd="/",  # from anywhere
            env=clean_environment(**{"BF16_PORT": free_port(), **environ}),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def settings(start: Start) -> Callable[..., dict[str, str]]:
    def run(*flags: str, **environ: str | int) -> dict[str, str]:
        done = start(*flags, **environ)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["settings"]

    return run


@pytest.fixture
def held_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("script", ["start_bf16_api.sh", "start_fp4_api.sh", "start.sh"])
def test_help_names_every_option(start: Start, script: str) -> None:
    done = start("--help", script=script)
    assert done.returncode == 0
    assert f"Usage: ./{script}" in done.stdout
    if script != "start.sh":
        for option in ("-g", "--gpus", "-p", "--port", "--host", "--model", "--preload", "auto"):
            assert option in done.stdout


@pytest.mark.parametrize(
    ("flags", "named", "accepted"),
    [
        (["-g"], "-g", "needs a value"),
        (["-g", ""], "-g", "0 or 1,2"),
        (["-g", "0,0"], "-g", "each once"),
        (["-g", "1,01"], "-g", "each once"),
        (["-g", "-1"], "-g", "0 or 1,2"),
        (["-g", "0,"], "-g", "0 or 1,2"),
        (["-g", "all"], "-g", "0 or 1,2"),
        (["--gpus=0, 1"], "--gpus", "0 or 1,2"),
        (["-p", "0"], "-p", "1 to 65535"),
        (["-p", "65536"], "-p", "1 to 65535"),
        (["--port=http"], "--port", "auto"),
        (["--port"], "--port", "needs a value"),
        (["--host", ""], "--host", "127.0.0.1"),
        (["--host", "--preload"], "--host", "127.0.0.1"),
        (["--model", "--preload"], "--model", "config/models.toml"),
        (["--preload=yes"], "--preload=yes", "Accepted"),
        (["--gpu", "0"], "--gpu", "Accepted"),
        (["0"], "0", "Accepted"),
    ],
)
def test_wrong_flag_is_named_with_what_is_accepted(start: Start, flags, named, accepted) -> None:
    done = start(*flags)
    assert done.returncode == 2
    assert done.stdout == ""
    assert named in done.stderr
    assert accepted in done.stderr


def test_start_sh_refuses_an_unknown_option(start: Start) -> None:
    done = start("-g", "0", script="start.sh")
    assert done.returncode == 2
    assert "'-g'" in done.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-g", "0"], {"FLUX_GPUS": "0"}),
        (["--gpus", "1,2"], {"FLUX_GPUS": "1,2"}),
        (["--gpus=3"], {"FLUX_GPUS": "3"}),
        (["--host", "localhost"], {"FLUX_HOST": "localhost"}),
        (["--model", "embedded"], {"FLUX_MODEL": "embedded"}),
        (["--preload"], {"FLUX_PRELOAD": "true"}),
    ],
)
def test_flag_becomes_its_setting(settings, flags, expected) -> None:
    given = settings(*flags)
    assert given.items() >= expected.items()
    assert given.keys() == {"FLUX_PORT", *expected}


def test_port_from_the_environment_is_used(settings) -> None:
    port = free_port()
    assert settings(BF16_PORT=port)["FLUX_PORT"] == str(port)


def test_flag_wins_over_the_environment(settings) -> None:
    port = free_port()
    given = settings("-p", str(port), "--model", "embedded", FLUX_PORT=1, FLUX_MODEL="flux-dev")
    assert given["FLUX_PORT"] == str(port)
    assert given["FLUX_MODEL"] == "embedded"


def test_port_auto_takes_and_names_the_next_free_one(start: Start, held_port: int) -> None:
    done = start("--port", "auto", BF16_PORT=held_port)
    chosen = int(json.loads(done.stdout)["settings"]["FLUX_PORT"])
    assert chosen > held_port
    assert f"using port {chosen}" in done.stderr


def test_port_held_by_another_program_is_left_alone(start: Start, held_port: int) -> None:
    done = start(BF16_PORT=held_port)
    assert done.returncode == 3
    assert f"port {held_port}" in done.stderr
    assert f"pid {os.getpid()}" in done.stderr
    assert done.stdout == ""


def test_wrong_setting_ends_with_the_services_own_message(start: Start) -> None:
    done = start(BF16_PORT="many")
    assert done.returncode == 78
    assert "BF16_PORT" in done.stderr
    assert "many" in done.stderr


def test_service_that_is_not_built_says_so(start: Start, held_port: int) -> None:
    done = start(script="start_fp4_api.sh", FP4_PORT=held_port)
    assert done.returncode == 69
    assert "not built yet" in done.stderr


def test_python_replaces_the_script_so_that_signals_reach_it(checkout: Path) -> None:
    with subprocess.Popen(
        [checkout / "start_bf16_api.sh"],
        env=clean_environment(BF16_PORT=free_port()),
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        assert started.stdout is not None
        assert json.loads(started.stdout.readline())["pid"] == started.pid
