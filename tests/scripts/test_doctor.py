"""The doctor on machines that are made up, and on copies of the checkout in which something is broken."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from config.catalog import load_catalog
from config.settings import ROOT
from models.hub import on_disk
from models.precision import known_precisions, profile_of
from scripts import doctor
from scripts.diagnosis import engines, machine, running
from scripts.diagnosis.machine import State, Torch
from scripts.diagnosis.services import Checkup
from tests.operations.checkout import clean_environment, copy_checkout
from tests.service import free_port
from tests.utils.test_gpu_manager import Driver, NVMLError

GIB_IN_MIB = 1024
STAND_IN = ROOT / "tests" / "models" / "fp4" / "nunchaku_standin"
CUDA_TORCH = Torch(
    version="2.13.0+cu130",
    cuda="13.0",
    architectures=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
    sees_gpu=True,
)
CPU_TORCH = Torch(version="2.13.0+cpu")


class NvmlDriver(Driver):
    """A driver that also says the compute capability of its cards, and its own CUDA."""

    def __init__(self, *names: str, capability: tuple[int, int] | None, cuda: int, **rest: Any):
        super().__init__(*names, **rest)
        self._capability = capability
        self._cuda = cuda

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        if self._capability is None:
            raise NVMLError("Not Supported")
        return self._capability

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self._cuda


@pytest.fixture
def make_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """A machine with these GPUs, and settings that lead into an empty folder and to free ports."""

    def make(
        *names: str,
        capability: tuple[int, int] | None = (8, 9),
        cuda: int = 13000,
        torch: Torch = CUDA_TORCH,
        memory_gib: int = 141,
        **settings: Any,
    ) -> None:
        for name in [name for name in os.environ if name.startswith("FLUX_")]:
            monkeypatch.delenv(name)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.delenv("HF_HOME", raising=False)
        driver = NvmlDriver(
            *names,
            capability=capability,
            cuda=cuda,
            memory_mib=memory_gib * GIB_IN_MIB,
            answers=bool(names),
        )
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        monkeypatch.setattr(machine, "look_at_torch", lambda: torch)
        monkeypatch.setattr("config.settings._dotenv", lambda: {})
        own = {
            "FLUX_OUTPUT_DIR": tmp_path / "generated_images",
            "FLUX_DATA_DIR": tmp_path / "data",
            "FLUX_MODELS_DIR": tmp_path / "models",
            "FLUX_MIN_FREE_MIB": 0,
            "BF16_PORT": free_port(),
            "FP4_PORT": free_port(),
        }
        for name, value in {**own, **settings}.items():
            monkeypatch.setenv(name, str(value))

    return make


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    """The exit status and the report, as JSON."""

    def run(*flags: str) -> tuple[int, dict[str, Any]]:
        status = doctor.main([*flags, "--json"])
        return status, json.loads(capsys.readouterr().out)

    return run


def line(report: dict[str, Any], section: str, name: str) -> dict[str, str]:
    (found,) = [item for item in report["sections"][section] if item["name"] == name]
    return found


def bf16(report: dict[str, Any]) -> dict[str, Any]:
    (found,) = [service for service in report["services"] if service["precision"] == "bf16"]
    return found


# As it is started


def test_doctor_says_what_this_machine_runs_and_exits_with_it() -> None:
    environ = clean_environment(
        FLUX_GPUS="none", FLUX_MIN_FREE_MIB=0, BF16_PORT=free_port(), FLUX_MODEL="embedded"
    )
    code = "import sys; from scripts import doctor; status = doctor.main([]); print('torch' in sys.modules); sys.exit(status)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("\nFalse\n"), "torch is asked in another process"
    for said in (
        "BF16 can draw with embedded",
        f"torch: {torch.__version__}, ",
        "engine diffusers: runs here",
        "nunchaku-1.2.1+cu13.0torch2.11-cp3",
        "model embedded (default)",
        "model flux-schnell",
        "GiB free",
        f"{environ['BF16_PORT']} on 127.0.0.1: free",
    ):
        assert said in done.stdout
    assert done.stderr == ""


def test_doctor_without_the_services_packages_says_what_to_run() -> None:
    """The system's Python, as someone has it who has not set anything up."""
    blocked = "fastapi pydantic psutil pynvml torch PIL dotenv".split()
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "from scripts import doctor\n"
        "from scripts.diagnosis import machine\n"
        "machine.look_at_torch = lambda: machine.Torch(why_not='torch does not load')\n"
        "sys.exit(doctor.main([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "BF16 cannot draw" in done.stdout
    assert "run scripts/setup_env.sh" in done.stdout
    assert "Traceback" not in done.stderr


# GPUs and engines


def test_card_is_shown_with_memory_capability_and_generation(make_machine, say) -> None:
    make_machine("NVIDIA H200", capability=(9, 0))
    _, report = say()
    text = line(report, "GPUs", "GPU 0")["text"]
    assert text == "NVIDIA H200, 141.0 GiB (105.8 free), compute capability 9.0 (Hopper)"


@pytest.mark.parametrize(
    ("name", "capability", "reason"),
    [
        ("NVIDIA H200", (9, 0), "Hopper"),
        ("NVIDIA B200", (10, 0), "datacenter Blackwell"),
        ("Tesla V100", (7, 0), "Volta"),
    ],
)
def test_nunchaku_is_refused_by_the_name_of_the_generation(
    make_machine, say, name: str, capability: tuple[int, int], reason: str
) -> None:
    make_machine(name, capability=capability)
    _, report = say()
    install = line(report, "nunchaku", "install")
    assert install["state"] == State.NO
    assert reason in install["text"]
    status, answer = say("--engine", "nunchaku")
    assert (status, answer["ok"]) == (1, False)
    assert reason in answer["text"] and name in answer["text"]


@pytest.mark.parametrize("capability", [(7, 5), (8, 6), (8, 9), (12, 0)], ids=str)
def test_nunchaku_where_it_can_run_comes_with_its_commands(
    make_machine, say, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engines, "ROOT", tmp_path)
    make_machine("NVIDIA GeForce", capability=capability)
    _, report = say()
    install = line(report, "nunchaku", "install")
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"python{python} -m venv .venv-nunchaku" in install["text"]
    assert "pip install -r requirements/fp4-nunchaku.txt" in install["text"]
    tag = f"cp{python.replace('.', '')}"
    assert line(report, "nunchaku", "wheel")["text"].endswith(
        f"nunchaku-1.2.1+cu13.0torch2.11-{tag}-{tag}-linux_x86_64.whl"
    )
    assert say("--engine", "nunchaku")[0] == 0


def test_nunchaku_with_a_driver_that_stops_at_cuda_12_needs_other_builds(
    make_machine, say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engines, "ROOT", tmp_path)
    make_machine("NVIDIA GeForce RTX 4090", cuda=12080)
    _, report = say()
    assert "cu12.8torch2.11" in line(report, "nunchaku", "install")["text"]
    assert "cu12.8torch2.11" in line(report, "nunchaku", "wheel")["text"]
    status, answer = say("--engine", "nunchaku")
    assert status == 1
    assert "CUDA 12.8" in answer["text"] and "Update the driver" in answer["text"]


@pytest.mark.parametrize(
    ("which", "state", "said"),
    [("right", State.OK, "done"), ("wrong", State.NOTE, "unrelated package")],
)
def test_nunchaku_in_its_own_environment_is_found_and_the_wrong_one_too(
    make_machine, say, monkeypatch, tmp_path: Path, which: str, state: State, said: str
) -> None:
    packages = tmp_path / ".venv-nunchaku" / "lib" / "python3.11" / "site-packages"
    packages.parent.mkdir(parents=True)
    packages.mkdir()
    for item in (STAND_IN / which).iterdir():
        (packages / item.name).symlink_to(item)
    (packages / "torch-2.11.0.dist-info").mkdir()
    (packages / "torch-2.11.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.11.0\n")
    monkeypatch.setattr(engines, "ROOT", tmp_path)
    make_machine("NVIDIA GeForce RTX 4090")
    _, report = say()
    install = line(report, "nunchaku", "install")
    assert install["state"] == state
    assert said in install["text"]


def test_driver_that_fails_half_way_is_a_reason_and_no_crash(
    make_machine, say, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_machine("NVIDIA L4", FLUX_MODEL="embedded")
    driver = sys.modules["pynvml"]

    def lost(*_: Any) -> None:
        raise NVMLError("GPU is lost")

    opened: list[int] = []
    monkeypatch.setattr(driver, "nvmlInit", lambda: opened.append(1) or len(opened) < 2 or lost())
    monkeypatch.setattr(driver, "nvmlShutdown", lambda: None)
    assert "GPU is lost" in machine.look_at_cards().why_none


def test_card_whose_capability_the_driver_keeps_to_itself_is_said_so(make_machine, say) -> None:
    make_machine("NVIDIA Something", capability=None)
    _, report = say()
    assert "compute capability not known" in line(report, "GPUs", "GPU 0")["text"]
    assert "does not say the compute capability" in say("--engine", "nunchaku")[1]["text"]


@pytest.mark.parametrize(
    ("torch", "capability", "said"),
    [
        (CPU_TORCH, (8, 9), "a build without CUDA"),
        (replace(CUDA_TORCH, sees_gpu=False), (8, 9), "may be newer than the driver"),
        (CUDA_TORCH, (6, 1), "no kernels for compute capability 6.1"),
        (Torch(why_not="torch does not load: libcudart.so.13"), (8, 9), "libcudart.so.13"),
    ],
)
def test_card_that_torch_cannot_use_stops_the_service(
    make_machine, say, torch: Torch, capability: tuple[int, int], said: str
) -> None:
    make_machine("NVIDIA GPU", capability=capability, torch=torch)
    _, report = say()
    assert any(said in reason for reason in bf16(report)["reasons"])


def test_card_is_used_by_torch_with_kernels_for_an_earlier_minor_version() -> None:
    card = machine.Card(
        index=0, uuid="a", name="a", memory_total_mib=1, memory_free_mib=1, capability=(8, 9)
    )
    assert machine.why_torch_cannot_use(CUDA_TORCH, card) is None


def test_torch_that_does_not_load_is_reported_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch_cpu.so: no such file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "libtorch_cpu.so: no such file" in machine.look_at_torch().why_not


def test_engine_that_no_service_has_is_refused_with_those_there_are(make_machine, say) -> None:
    make_machine()
    status, answer = say("--engine", "tensorrt")
    assert status == 1
    for name in known_precisions():
        assert all(engine in answer["text"] for engine in profile_of(name).engines)


def test_engine_that_is_asked_for_and_cannot_run_stops_the_service(make_machine) -> None:
    make_machine("NVIDIA H200", capability=(9, 0), FLUX_ENGINE="nunchaku", FLUX_MODEL="embedded")
    profile = replace(profile_of("fp4"), loader="models.bf16_flux_model:load")
    checkup = Checkup(profile, machine.look_at_cards(), CUDA_TORCH)
    states = {finding.name: finding.state for finding in checkup.findings}
    assert states["engine nunchaku"] is State.FAULT
    assert states["engine nvfp4"] is State.OK
    assert any("Hopper" in reason for reason in checkup.verdict([]).reasons)


def test_engine_that_has_no_checkpoint_of_the_default_model_stops_the_service(
    make_machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "why_no_nunchaku", lambda: None)
    make_machine("NVIDIA L40S", FLUX_ENGINE="nunchaku", FLUX_MODEL="embedded")
    profile = replace(profile_of("fp4"), loader="models.bf16_flux_model:load")
    checkup = Checkup(profile, machine.look_at_cards(), CUDA_TORCH)
    findings = {finding.name: finding for finding in checkup.findings}
    assert findings["engine nunchaku"].state is State.OK
    assert not checkup.verdict([]).can_draw
    assert findings["model embedded (default)"].state is State.FAULT


def test_engine_auto_goes_on_without_nunchaku_and_says_why(make_machine) -> None:
    make_machine("NVIDIA H200", capability=(9, 0), FLUX_MODEL="embedded")
    profile = replace(profile_of("fp4"), loader="models.bf16_flux_model:load")
    findings = {f.name: f for f in Checkup(profile, machine.look_at_cards(), CUDA_TORCH).findings}
    assert findings["engine nunchaku"].state is State.NO
    assert "Hopper" in findings["engine nunchaku"].text
    assert findings["engine nvfp4"].state is State.OK


# Models


def test_default_model_that_has_to_be_fetched_is_a_note(make_machine, say, monkeypatch) -> None:
    monkeypatch.setattr(machine, "free_gib", lambda folder: 500.0)
    make_machine("NVIDIA H200", capability=(9, 0))
    status, report = say()
    assert status == 0 and bf16(report)["ok"], bf16(report)
    assert bf16(report)["default_model"].startswith("flux-schnell: ")
    found = line(report, "BF16 service", "model flux-schnell (default)")
    assert found["state"] == State.NOTE
    assert "is fetched at the first use" in found["text"]


@pytest.mark.parametrize(
    ("settings", "free_gib", "said"),
    [({"FLUX_ALLOW_DOWNLOAD": "false"}, 500.0, "FLUX_ALLOW_DOWNLOAD"), ({}, 5.0, "5 GiB are free")],
)
def test_default_model_that_cannot_be_fetched_stops_the_service(
    make_machine, say, monkeypatch, settings: dict[str, str], free_gib: float, said: str
) -> None:
    monkeypatch.setattr(machine, "free_gib", lambda folder: free_gib)
    make_machine("NVIDIA H200", capability=(9, 0), **settings)
    _, report = say()
    assert any(said in reason for reason in bf16(report)["reasons"])


@pytest.fixture
def hub_model(tmp_path: Path) -> Path:
    """A snapshot of FLUX.1-schnell in a Hub cache, as to its files."""
    repository = tmp_path / "models" / "models--black-forest-labs--FLUX.1-schnell"
    folder = repository / "snapshots" / "abc"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (folder / "transformer").mkdir(parents=True)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    index = {
        "_class_name": "FluxPipeline",
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "image_encoder": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "transformer" / "config.json").write_text("{}")
    names = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    (folder / "transformer" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(enumerate(names))})
    )
    for name in names:
        save_file({"weight": torch.zeros(8, 8)}, folder / "transformer" / name)
    return folder


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def test_model_in_the_hubs_cache_is_found(make_machine, say, hub_model: Path) -> None:
    make_machine("NVIDIA H200", capability=(9, 0), FLUX_ALLOW_DOWNLOAD="false")
    status, report = say()
    assert status == 0 and bf16(report)["ok"], bf16(report)
    found = line(report, "BF16 service", "model flux-schnell (default)")
    assert (found["state"], str(hub_model) in found["text"]) == (State.OK, True)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "transformer" / "model-2-of-2.safetensors").unlink(),
        lambda folder: (folder / "transformer" / "model-2-of-2.safetensors").write_text("lfs pointer"),
        lambda folder: (folder / "transformer" / "model-1-of-2.safetensors").write_bytes(b""),
        lambda folder: cut_off(folder / "transformer" / "model-1-of-2.safetensors"),
        lambda folder: (folder / "transformer" / "config.json").unlink(),
        lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
        lambda folder: (folder / "model_index.json").write_text("{"),
    ],
)  # fmt: skip
def test_model_of_which_a_part_is_missing_is_not_there(
    make_machine, say, hub_model: Path, spoil: Callable[[Path], Any]
) -> None:
    spoil(hub_model)
    make_machine("NVIDIA H200", capability=(9, 0), FLUX_ALLOW_DOWNLOAD="false")
    _, report = say()
    assert not bf16(report)["ok"]
    assert str(hub_model) in line(report, "BF16 service", "model flux-schnell (default)")["text"]


@pytest.mark.parametrize("token", [True, False])
def test_gated_model_without_a_token_says_how_to_get_one(make_machine, say, token: bool) -> None:
    extra = {"FLUX_HF_TOKEN": "hf_0123456789"} if token else {}
    make_machine("NVIDIA H200", capability=(9, 0), FLUX_MODEL="flux-dev", **extra)
    _, report = say()
    found = line(report, "BF16 service", "model flux-dev (default)")
    assert ("FLUX_HF_TOKEN" in found["fix"]) != token
    assert (found["state"] == State.FAULT) != token


def test_model_that_was_cut_off_says_how_to_fetch_the_rest(
    make_machine, say, hub_model: Path
) -> None:
    file = hub_model / "transformer" / "model-1-of-2.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    make_machine("NVIDIA H200", capability=(9, 0))
    _, report = say()
    assert report["wrong"]
    found = line(report, "BF16 service", "model flux-schnell (default)")
    assert found["fix"] == "./flux models download flux-schnell fetches what is missing"


def put_copy(models_dir: Path) -> Path:
    """A four-bit copy of flux-schnell, which is the one that ships under another name."""
    return shutil.copytree(ROOT / "models" / "embedded-fp4", models_dir / "fp4" / "flux-schnell")


def test_copy_in_another_precision_is_found_by_its_manifest(tmp_path: Path) -> None:
    row = load_catalog()["flux-schnell"]
    assert on_disk.copy_of(row, "fp4", tmp_path) is None
    folder = put_copy(tmp_path)
    found = on_disk.copy_of(row, "fp4", tmp_path)
    assert found is not None
    assert f"FP4 copy in {folder}" in found.text and not found.fault


@pytest.mark.parametrize(
    ("file", "length", "said"),
    [
        ("fp4.json", 0, "fp4.json is damaged"),
        ("fp4.json", 900, "fp4.json is damaged"),
        ("transformer/config.json", 20, "config.json is cut short"),
        ("transformer/rest.safetensors", 1000, "rest.safetensors is cut short"),
        ("transformer/rest.safetensors", None, "rest.safetensors is missing"),
    ],
)
def test_copy_that_is_damaged_stops_the_service_that_would_take_it(
    make_machine, say, tmp_path: Path, file: str, length: int | None, said: str
) -> None:
    """The same file that the service would refuse; BF16 has no use for the copy."""
    damaged = put_copy(tmp_path / "models") / file
    if length is None:
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:length])
    make_machine("NVIDIA H200", capability=(9, 0), FLUX_MODEL="flux-schnell")
    _, report = say()
    found = line(report, "FP4 service", "model flux-schnell (default)")
    assert found["state"] == "fault"
    assert said in found["text"] and "delete" in found["text"]
    (fp4,) = [service for service in report["services"] if service["precision"] == "fp4"]
    assert not fp4["ok"]
    assert said not in line(report, "BF16 service", "model flux-schnell (default)")["text"]


def test_copy_of_the_embedded_model_lies_beside_it(tmp_path: Path) -> None:
    found = on_disk.copy_of(load_catalog()["embedded"], "fp4", tmp_path)
    assert found is not None
    assert str(ROOT / "models" / "embedded-fp4") in found.text and not found.fault


# Folders and ports


@pytest.mark.parametrize("name", ["FLUX_OUTPUT_DIR", "FLUX_DATA_DIR"])
def test_folder_that_is_a_file_stops_the_service_by_name(
    make_machine, say, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_text("")
    make_machine(torch=CPU_TORCH, **{name: tmp_path / "file" / "folder"})
    _, report = say()
    assert any(f"{tmp_path / 'file'} is no folder" in reason for reason in bf16(report)["reasons"])


def test_folder_that_cannot_be_written_stops_the_service(
    make_machine, say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != tmp_path / "closed" and access(path, mode)
    )
    make_machine(torch=CPU_TORCH, FLUX_OUTPUT_DIR=tmp_path / "closed")
    _, report = say()
    assert any("cannot be read and written" in reason for reason in bf16(report)["reasons"])


def test_folder_that_cannot_even_be_looked_at_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", denied)
    found = machine.look_at_folder("pictures", tmp_path / "a")
    assert found.state is State.FAULT
    assert "Permission denied" in found.text


def test_folder_with_too_little_room_stops_the_service(make_machine, say) -> None:
    make_machine(torch=CPU_TORCH, FLUX_MIN_FREE_MIB=10**9)
    _, report = say()
    assert any("FLUX_MIN_FREE_MIB" in reason for reason in bf16(report)["reasons"])


def test_folder_of_models_is_no_obstacle_to_a_model_that_is_here(
    make_machine, say, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    make_machine(torch=CPU_TORCH, FLUX_MODELS_DIR=tmp_path / "file")
    status, report = say()
    assert status == 0 and bf16(report)["ok"], bf16(report)
    assert line(report, "BF16 service", "models")["state"] == State.NOTE


@pytest.fixture
def held_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_port_of_somebody_else_stops_the_service_and_is_named(
    make_machine, say, held_port: int
) -> None:
    make_machine(torch=CPU_TORCH, BF16_PORT=held_port)
    _, report = say()
    (reason,) = bf16(report)["reasons"]
    assert f"{held_port} on 127.0.0.1: held by somebody else, pid {os.getpid()}" in reason


def test_port_that_is_ours_is_well(
    make_machine, say, service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "ANSWER_SECONDS", 60.0)
    make_machine(torch=CPU_TORCH, BF16_PORT=service.port)
    status, report = say()
    assert status == 0 and bf16(report)["ok"], bf16(report)
    found = line(report, "BF16 service", "port")
    assert found["text"] == (
        f"{service.port} on 127.0.0.1: ours, it is running (pid {service.process.pid})"
    )


def test_host_that_is_not_here_is_named(make_machine, say) -> None:
    make_machine(torch=CPU_TORCH, FLUX_HOST="192.0.2.1", FLUX_API_KEYS="0123456789abcdef")
    _, report = say()
    assert any("192.0.2.1" in reason for reason in bf16(report)["reasons"])


# Broken checkouts


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("doctor") / "flux")


# torch, which takes seconds to ask, is asked by the tests above.
DOCTOR = """
import sys
from scripts import doctor
from scripts.diagnosis import machine
machine.look_at_torch = lambda: machine.Torch(version="2.13.0+cpu")
sys.exit(doctor.main(sys.argv[1:]))
"""


def in_checkout(checkout: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [checkout / ".venv" / "bin" / "python", "-c", DOCTOR, *flags],
        cwd=checkout,
        env=clean_environment(FLUX_GPUS="none", BF16_PORT=free_port(), FP4_PORT=free_port()),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return done


def test_checkout_without_the_weights_cannot_draw_and_says_what_is_missing(checkout: Path) -> None:
    done = in_checkout(checkout)
    assert done.returncode == 1
    assert "transformer" in done.stdout
    assert "get the checkout's files again" in done.stdout


def test_checkout_without_the_models_folder_does_not_hope_to_fetch_it(checkout: Path) -> None:
    folder = checkout / "models" / "embedded"
    folder.rename(checkout / "elsewhere")
    try:
        done = in_checkout(checkout)
    finally:
        (checkout / "elsewhere").rename(folder)
    assert done.returncode == 1
    assert "get the checkout's files again" in done.stdout
    assert "fetched at the first use" not in done.stdout.partition("model flux-schnell")[0]


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        (".env", b"FLUX_GPU=0\n", "did you mean FLUX_GPUS?"),
        (".env", b"\xff\xfe\x00", "BF16 cannot draw"),
        ("config/models.toml", b"[embedded]\nid = 3\n", "models.toml"),
    ],
)
def test_checkout_with_a_broken_file_names_it(
    checkout: Path, path: str, content: bytes, said: str
) -> None:
    file = checkout / path
    before = file.read_bytes() if file.exists() else None
    file.write_bytes(content)
    try:
        done = in_checkout(checkout)
    finally:
        if before is None:
            file.unlink()
        else:
            file.write_bytes(before)
    assert done.returncode == 1
    assert said in done.stdout
    assert "in short" in done.stdout, "the rest is reported all the same"


@pytest.mark.parametrize("held", [("BF16_PORT",), ("BF16_PORT", "FP4_PORT")])
def test_exit_status_is_0_while_one_service_can_draw(
    make_machine, say, held_port: int, held
) -> None:
    make_machine(torch=CPU_TORCH, **{name: held_port for name in held})
    status, report = say()
    can_draw = [service["ok"] for service in report["services"]]
    assert report["ok"] == any(can_draw)
    assert status == (0 if any(can_draw) else 1)
    assert not bf16(report)["ok"]
    if len(held) == len(known_precisions()):
        assert status == 1


def test_report_for_people_ends_with_what_to_do(make_machine, held_port: int, capsys) -> None:
    make_machine(torch=CPU_TORCH, BF16_PORT=held_port, FP4_PORT=held_port)
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "no      BF16 cannot draw:" in said.partition("in short")[2]
    assert "end it yourself, or choose another port" in said.partition("in short")[2]
