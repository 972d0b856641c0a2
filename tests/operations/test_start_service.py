"""start_bf16_api.sh and start_fp4_api.sh: flags to settings, wrong flags, signals."""

import json
import os
import socket
import subprocess
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models.precision import known_precisions, profile_of
from tests.operations.checkout import clean_environment, copy_checkout, set_loader
from tests.service import free_port

# In place of the service: says what it was given, and whether this is the process that was started.
STAND_IN = """
import json, os, sys
settings = {k: v for k, v in os.environ.items() if k.startswith("FLUX_")}
print(json.dumps({"settings": settings, "prefix": sys.prefix, "pid": os.getpid()}))
"""

# In place of nvidia-ml-py: one card.
NVML = """
from types import SimpleNamespace
NVMLError = OSError
nvmlInit = nvmlShutdown = lambda: None
nvmlDeviceGetCount = lambda: 1
nvmlDeviceGetHandleByIndex = nvmlDeviceGetHandleByUUID = lambda which: 0
nvmlDeviceGetUUID = lambda handle: "GPU-0"
nvmlDeviceGetName = lambda handle: "NVIDIA Card"
nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(total=2**35, used=0, free=2**35)
nvmlDeviceGetUtilizationRates = lambda handle: SimpleNamespace(gpu=0)
NVML_TEMPERATURE_GPU = 0
nvmlDeviceGetTemperature = lambda handle, sensor: 40
nvmlDeviceGetPowerUsage = lambda handle: 1000
nvmlDeviceGetCudaComputeCapability = lambda handle: (CAPABILITY)
nvmlSystemGetCudaDriverVersion_v2 = lambda: 13000
"""

Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = copy_checkout(tmp_path_factory.mktemp("start") / "flux")
    (copy / "main_bf16.py").write_text(STAND_IN)
    return copy


def run_script(path: Path, *flags: str, **environ: str | int) -> subprocess.CompletedProcess[str]:
    ports = {"BF16_PORT": free_port(), "FP4_PORT": free_port()}
    return subprocess.run(
        [path, *flags],
        cwd="/",  # from anywhere
        env=clean_environment(**{**ports, **environ}),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def start(checkout: Path) -> Start:
    def run(*flags: str, script: str = "start_bf16_api.sh", **environ: str | int):
        return run_script(checkout / script, *flags, **environ)

    return run


@pytest.fixture(scope="module")
def fp4_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a stand-in FP4 service, whatever this version has of it, and its two environments."""
    copy = copy_checkout(tmp_path_factory.mktemp("fp4") / "flux")
    (copy / "main_fp4.py").write_text(STAND_IN)
    set_loader(copy, "models.bf16_flux_model:load")
    venv.create(copy / ".venv-nunchaku", symlinks=True)
    (copy / "scripts" / "setup_env.sh").write_text('#!/bin/sh\necho "$@" >> setup.txt\n')
    return copy


@pytest.fixture
def fp4(fp4_checkout: Path) -> Path:
    (fp4_checkout / "setup.txt").unlink(missing_ok=True)
    return fp4_checkout


@pytest.fixture(scope="module")
def unbuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = copy_checkout(tmp_path_factory.mktemp("unbuilt") / "flux")
    set_loader(copy, None)
    return copy


@pytest.fixture
def gpu(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """An environment in which NVML shows one GPU of a compute capability."""

    def make(capability: str) -> dict[str, str]:
        (tmp_path / "pynvml.py").write_text(NVML.replace("CAPABILITY", capability))
        return {"PYTHONPATH": str(tmp_path), "FLUX_GPUS": "0"}

    return make


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
        options = (
            "-g",
            "--gpus",
            "--gpu-mode",
            "-p",
            "--port",
            "--host",
            "--model",
            "--engine",
            "--preload",
        )
        for option in (*options, "auto"):
            assert option in done.stdout


@pytest.mark.parametrize("precision", known_precisions())
def test_help_names_the_engines_of_the_service_and_no_other(start: Start, precision: str) -> None:
    said = start("--help", script=f"start_{precision}_api.sh").stdout
    (line,) = [line for line in said.splitlines() if "--engine" in line]
    for other in known_precisions():
        for engine in profile_of(other).engines:
            assert (engine in line) == (other == precision)
    assert ("runs in .venv-nunchaku" in said) == ("nunchaku" in profile_of(precision).engines)


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
        (["--gpu-mode"], "--gpu-mode", "needs a value"),
        (["--gpu-mode", "both"], "'both'", "each or split"),
        (["--engine"], "--engine", "needs a value"),
        (["--engine", ""], "--engine", "auto or an engine of this service, which are: diffusers"),
        (["--engine", "nunchaku"], "'nunchaku'", "diffusers"),
        (["--engine=nvfp4"], "'nvfp4'", "diffusers"),
        (["--engine", "diffusers, auto"], "--engine", "diffusers"),
        (["--engine", "fp8"], "'fp8'", "diffusers"),
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
        ("-g 0", {"FLUX_GPUS": "0"}),
        (
            "--gpus 1,2 --host localhost --model embedded --preload --engine auto --gpu-mode split",
            {
                "FLUX_GPUS": "1,2",
                "FLUX_HOST": "localhost",
                "FLUX_MODEL": "embedded",
                "FLUX_PRELOAD": "true",
                "FLUX_ENGINE": "auto",
                "FLUX_GPU_MODE": "split",
            },
        ),
        (
            "--gpus=3 --engine=diffusers --gpu-mode=each",
            {"FLUX_GPUS": "3", "FLUX_ENGINE": "diffusers", "FLUX_GPU_MODE": "each"},
        ),
    ],
)
def test_flag_becomes_its_setting(settings, flags: str, expected: dict[str, str]) -> None:
    """Each its own and nothing besides."""
    given = settings(*flags.split())
    assert given == expected | {"FLUX_PORT": given["FLUX_PORT"]}


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


def test_service_that_is_not_built_says_so(unbuilt: Path, held_port: int) -> None:
    done = run_script(unbuilt / "start_fp4_api.sh", FP4_PORT=held_port)
    assert done.returncode == 69
    assert "not built yet" in done.stderr


# The engine that has an environment of its own


@pytest.mark.parametrize("how", ["flag", "environment", ".env"])
def test_engine_with_an_environment_of_its_own_is_started_in_it(fp4: Path, gpu, how: str) -> None:
    flags = ["--engine", "nunchaku"] if how == "flag" else []
    environ = {"FLUX_ENGINE": "nunchaku"} if how == "environment" else {}
    (fp4 / ".env").write_text("FLUX_ENGINE=nunchaku\n" if how == ".env" else "")
    done = run_script(fp4 / "start_fp4_api.sh", *flags, **gpu("8, 9"), **environ)
    (fp4 / ".env").unlink()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prefix"] == str(fp4 / ".venv-nunchaku")
    assert (fp4 / "setup.txt").read_text().split("\n") == ["", "--nunchaku", ""]


@pytest.mark.parametrize("engine", ["auto", "nvfp4"])
def test_engine_of_the_common_environment_is_started_in_that(fp4: Path, gpu, engine: str) -> None:
    done = run_script(fp4 / "start_fp4_api.sh", "--engine", engine, **gpu("8, 9"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prefix"] == str(fp4 / ".venv")
    assert json.loads(done.stdout)["settings"]["FLUX_ENGINE"] == engine
    assert (fp4 / "setup.txt").read_text() == "\n"


@pytest.mark.parametrize(
    ("capability", "said"),
    [
        ("9, 0", "Hopper"),
        ("10, 0", "datacenter Blackwell"),
        (None, "does not run on the CPU"),
    ],
)
def test_engine_that_cannot_run_here_is_refused_before_anything_is_fetched(
    fp4: Path, gpu, capability: str | None, said: str
) -> None:
    environ = gpu(capability) if capability else {"FLUX_GPUS": "none"}
    done = run_script(fp4 / "start_fp4_api.sh", "--engine", "nunchaku", **environ)
    assert done.returncode == 78
    assert said in done.stderr
    assert "nvfp4" in done.stderr
    assert done.stdout == ""
    assert (fp4 / "setup.txt").read_text() == "\n", "the engine's environment was not asked for"


def test_engine_whose_environment_cannot_be_made_is_refused_with_the_reason(fp4: Path, gpu) -> None:
    setup = fp4 / "scripts" / "setup_env.sh"
    before = setup.read_text()
    setup.write_text('#!/bin/sh\n[ -z "$1" ] || { echo "setup: no wheel" >&2; exit 1; }\n')
    done = run_script(fp4 / "start_fp4_api.sh", "--engine", "nunchaku", **gpu("8, 9"))
    setup.write_text(before)
    assert done.returncode == 1
    assert "setup: no wheel" in done.stderr
    assert done.stdout == ""


def test_python_replaces_the_script_so_that_signals_reach_it(checkout: Path) -> None:
    with subprocess.Popen(
        [checkout / "start_bf16_api.sh"],
        env=clean_environment(BF16_PORT=free_port()),
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        assert started.stdout is not None
        assert json.loads(started.stdout.readline())["pid"] == started.pid
