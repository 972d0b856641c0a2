"""The command that makes FP4 folders."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from config.catalog import Catalog, load_catalog
from config.settings import ROOT
from models.fp4 import checkpoint, lowrank, quantize, work
from models.fp4.checkpoint import Manifest
from models.fp4.prompts import PROMPTS
from scripts import quantize_fp4
from scripts.quantize_fp4 import calibration_prompts, main
from tests.models.fp4.conftest import put_tiny_transformer

EMBEDDED, SCHNELL = load_catalog()["embedded"], load_catalog()["flux-schnell"]


SMALL = ["--model", "embedded", "--rank", "2", "--calibration", "8"]


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a machine that is shared, threads that wait for others cost most
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowrank, "ROUNDS", 1)
        yield
    torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A folder that the command made, and what it printed."""

    out: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the embedded model as if its transformer had three blocks."""
    folder = tmp_path_factory.mktemp("root")
    shutil.copytree(ROOT / "models" / "embedded", folder / "models" / "embedded")
    put_tiny_transformer(folder / "models" / "embedded" / "transformer")
    return folder


@contextlib.contextmanager
def small_model(root: Path) -> Iterator[None]:
    """Within it the command takes that model for the embedded one."""
    row = EMBEDDED.model_copy(update={"source": str(root / "models" / "embedded")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize_fp4, "ROOT", root)
        patch.setattr(quantize_fp4, "load_catalog", lambda: Catalog({"embedded": row}))
        yield


@pytest.fixture(scope="module")
def small(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    out = tmp_path_factory.mktemp("made") / "small"
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), small_model(root):
        assert main([*SMALL, "--out", str(out)]) == 0
    return Made(out=out, stdout=stdout.getvalue(), stderr=stderr.getvalue())


def test_the_embedded_model_with_another_rank(small: Made) -> None:
    out = small.out
    manifest = Manifest.read(out)
    assert manifest.rank == 2 and manifest.model == "embedded"
    assert sorted(p.name for p in out.iterdir()) == [
        "fp4.json", "prompts.txt", "quality.json", "transformer",
    ], "the rest stands in models/embedded"  # fmt: skip
    assert all(word in small.stdout for word in ("rank 2", "of BF16", "plain NVFP4"))
    assert "quantising the transformer" in small.stderr and "100%" in small.stderr
    assert json.loads((out / "quality.json").read_text())["calibration"]["prompts"] == 8


def test_two_runs_at_once_make_one_folder_and_make_it_once(
    root: Path, small: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making goes on until the other one waits for it; what is made was made before, to have it quickly."""
    made: list[Path] = []
    somebody_waits = threading.Event()
    locked = work.locked

    def make(job: quantize.Job) -> None:
        made.append(job.out)
        assert somebody_waits.wait(300)
        shutil.copytree(small.out, job.out)

    def locked_and_told(out: Path, on_wait: Callable[[], None]) -> Any:
        return locked(out, lambda: (somebody_waits.set(), on_wait()))

    monkeypatch.setattr(quantize, "quantize_folder", make)
    monkeypatch.setattr(work, "locked", locked_and_told)
    out, statuses = tmp_path / "small", []
    arguments = [*SMALL, "--out", str(out)]
    threads = [threading.Thread(target=lambda: statuses.append(main(arguments))) for _ in range(2)]
    with small_model(root):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
    assert statuses == [0, 0] and made == [out]
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_full_disk_is_a_sentence_and_what_is_finished_stays(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "single_transformer_blocks.1" in path.name:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    out = tmp_path / "small"
    with small_model(root):
        assert main([*SMALL, "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert "single_transformer_blocks.1.safetensors cannot be written" in printed.err
    assert "No space left" in printed.err and "Traceback" not in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["small.partial"]
    assert (
        tmp_path / "small.partial" / "transformer" / "transformer_blocks.0.safetensors"
    ).exists()
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nothing"], "no model 'nothing'; the catalog has embedded"),
        (["--model", "embedded", "--calibration", "3"], "3 calibration prompts are too few"),
        (["--model", "embedded", "--rank", "-1"], "rank -1 is negative"),
        (["--model", "embedded", "--rank", "97"], "rank 97 is too much for transformer_blocks.0"),
        (["--model", "flux-schnell", "--offline"], "FLUX.1-schnell is not on this machine"),
        (["--model", "flux-schnell", "--offline", "--calibration", "65"], "is not on this machine"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    out, models = tmp_path / "out", tmp_path / "models"
    assert main([*arguments, "--out", str(out), "--models-dir", str(models)]) == 1
    printed = capsys.readouterr()
    assert words in printed.err and "Traceback" not in printed.err
    assert not out.exists()


def test_the_embedded_model_is_calibrated_in_its_own_words() -> None:
    prompts = calibration_prompts(EMBEDDED, None)
    assert len(prompts) == 192 and len(set(prompts)) > 150


def test_other_models_are_calibrated_with_prompts_of_many_kinds() -> None:
    assert calibration_prompts(SCHNELL, None) == PROMPTS
    assert calibration_prompts(SCHNELL, 16) == PROMPTS[:16]
    with pytest.raises(ValueError, match="--calibration 65: there are 64 prompts"):
        calibration_prompts(SCHNELL, 65)


def test_the_file_can_be_run_by_its_path(tmp_path: Path) -> None:
    script = Path(quantize_fp4.__file__)
    answer = subprocess.run(
        [sys.executable, str(script), "--model", "nothing", "--out", "x"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (answer.returncode, "no model 'nothing'" in answer.stderr) == (1, True)


def test_help_needs_no_torch() -> None:
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "scripts.quantize_fp4", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert "--calibration" in answer.stdout and "| torch\n" not in answer.stderr
