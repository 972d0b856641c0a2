"""The script that fetches models, against a stand-in of the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from config.catalog import load_catalog
from config.settings import ROOT
from models import safety
from models.hub import on_disk
from scripts import download_models
from tests import hub as stand_in
from tests.hub import Hub
from tests.safety_weights import classifier

SCHNELL = load_catalog()["flux-schnell"]
WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def _serving() -> Iterator[Hub]:
    with stand_in.serving() as hub:
        yield hub


@pytest.fixture
def hub(_serving: Hub) -> Iterator[Hub]:
    """With a small model in the place of FLUX.1 [schnell]."""
    stand_in.put_folder(_serving, SCHNELL.source, ROOT / "models" / "embedded")
    _serving.files[f"{SCHNELL.source}/flux1-schnell.safetensors"] = b"x" * 100
    try:
        with stand_in.asked_by_this_process(_serving):
            yield _serving
    finally:
        _serving.forget()


@pytest.fixture
def run(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the script on a models folder of its own; returns status, output and complaints."""

    def call(*arguments: str) -> tuple[int, str, str]:
        status = download_models.main(["--models-dir", str(tmp_path), *arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def test_model_is_fetched_and_what_was_done_is_said(run: Run, hub: Hub, tmp_path: Path) -> None:
    status, said, _ = run("flux-schnell")
    assert status == 0
    assert f"fetching {SCHNELL.source}: " in said and "(100%)" in said
    assert "flux-schnell: 1" in said and str(tmp_path) in said
    assert on_disk.look_at(SCHNELL, tmp_path)[0]
    assert "flux1-schnell.safetensors" not in {path.name for path in tmp_path.rglob("*")}


def test_model_that_is_here_is_fetched_no_second_time(run: Run, hub: Hub) -> None:
    run("flux-schnell")
    hub.got.clear()
    assert run("flux-schnell")[0] == 0
    assert hub.got == []


def test_list_says_what_is_here_and_asks_nobody(run: Run, hub: Hub) -> None:
    status, said, _ = run("--list")
    lines = {line.split()[0]: line for line in said.splitlines()}
    assert status == 0 and hub.asked == []
    assert " here " in lines["embedded"] and "not here" in lines["flux-schnell"]
    assert set(lines) == {row.id for row in load_catalog() if row.cloud is None}
    run("flux-schnell")
    assert "flux-schnell           here" in run("--list")[1]


def test_list_of_a_model_names_its_files_and_sizes(run: Run, hub: Hub) -> None:
    status, said, _ = run("--list", "flux-schnell")
    assert status == 0 and WEIGHTS in said and "flux1-schnell.safetensors" not in said
    assert "still to be fetched" in said.splitlines()[-1]
    assert [name for name, _ in hub.got if name.endswith("safetensors")] == []
    run("flux-schnell")
    assert "0 bytes still to be fetched" in run("--list", "flux-schnell")[1]


def test_model_that_does_not_exist_names_those_that_do(run: Run) -> None:
    status, _, complaint = run("flux-schnel")
    assert status == 1 and "flux-schnell" in complaint


def test_model_of_the_cloud_is_not_fetched(run: Run) -> None:
    cloud = next(row.id for row in load_catalog() if row.cloud is not None)
    assert "nothing to fetch" in run(cloud)[2]


def test_precision_without_weights_is_refused_by_name(run: Run) -> None:
    status, _, complaint = run("stable-diffusion-v1-5", "--precision", "fp4")
    assert status == 1 and "no FP4 weights; it has bf16" in complaint


def test_model_that_comes_with_the_project_says_so(run: Run, hub: Hub) -> None:
    assert run("embedded")[:2] == (0, "embedded comes with the project\n")
    assert hub.asked == []


def test_gated_model_says_how_to_get_it(run: Run, hub: Hub) -> None:
    hub.licensed.add(SCHNELL.source)
    status, _, complaint = run("flux-schnell")
    assert status == 1
    assert f"accept its licence at https://huggingface.co/{SCHNELL.source}" in complaint


@pytest.mark.parametrize("name", ["HF_TOKEN", "SD_HUGGINGFACE_TOKEN"])
def test_gated_model_comes_with_the_token_of_the_environment(
    run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hub.licensed.add(SCHNELL.source)
    monkeypatch.setenv(name, "hf_secret")
    assert run("flux-schnell")[0] == 0
    assert {headers["authorization"] for _, headers in hub.got} == {"Bearer hf_secret"}


def test_offline_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, _, complaint = run("flux-schnell")
    assert status == 1 and "HF_HUB_OFFLINE is set" in complaint


def test_offline_with_a_whole_model_is_fine(
    run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("flux-schnell")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, said, _ = run("flux-schnell")
    assert status == 0 and "is here and whole" in said


def test_ctrl_c_says_that_it_goes_on_next_time(
    run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download_models, "download", interrupted)
    status, _, complaint = run("flux-schnell")
    assert status == 130 and "run it again to go on" in complaint


def test_verify_finds_a_file_that_was_changed(run: Run, hub: Hub, tmp_path: Path) -> None:
    run("flux-schnell")
    assert run("--verify", "flux-schnell")[:2] == (0, "flux-schnell: all files are sound\n")
    blob = (on_disk.snapshot_of(tmp_path, SCHNELL.source) / WEIGHTS).resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    status, said, _ = run("--verify", "flux-schnell")
    assert (status, said) == (1, f"flux-schnell: damaged: {WEIGHTS}\n")


def test_safety_checker_is_fetched_and_found(run: Run, hub: Hub, tmp_path: Path) -> None:
    source = classifier(tmp_path / "judge")
    stand_in.put_folder(hub, safety.HUB_ID, source)
    hub.files[f"{safety.HUB_ID}/pytorch_model.bin"] = b"x"
    shutil.rmtree(source)
    assert run("--safety-checker")[0] == 0
    found, _ = safety.find("auto", tmp_path, load_catalog())
    assert found.name == safety.HUB_ID
    assert not (found.folder / "pytorch_model.bin").exists()


def test_safety_checker_of_the_settings_is_the_one_that_is_fetched(
    run: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = classifier(tmp_path / "judge")
    stand_in.put_folder(hub, "somebody/judge", source)
    shutil.rmtree(source)
    monkeypatch.setenv("FLUX_SAFETY_MODEL", "somebody/judge")
    assert run("--safety-checker")[0] == 0
    assert safety.find("somebody/judge", tmp_path, load_catalog())[0].name == "somebody/judge"


def test_safety_checker_that_is_a_folder_is_not_fetched(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUX_SAFETY_MODEL", str(tmp_path / "judge"))
    status, _, complaint = run("--safety-checker")
    assert status != 0 and "FLUX_SAFETY_MODEL" in complaint and "nothing to fetch" in complaint


def test_nothing_named_is_a_question(run: Run) -> None:
    with pytest.raises(SystemExit):
        run()
