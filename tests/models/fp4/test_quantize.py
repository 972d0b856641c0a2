"""Making an FP4 folder: the right inputs, memory of one block, whole or not at all, once."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline

from config.errors import ModelUnavailable
from config.settings import ROOT
from models.fingerprint import file_sha256
from models.fp4 import block_fit, calibration, lowrank, quantize, text_encoding
from models.fp4.checkpoint import MANIFEST, Manifest
from models.fp4.quantize import quantize_folder
from models.fp4.streaming import StreamedFlux
from models.fp4.work import locked
from tests.models.fp4.conftest import PROMPTS, TINY, one_thread, tiny_job

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("quick_fit")


class Interrupted(Exception):
    pass


def contents(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): file_sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def stop_at(fraction: float) -> Any:
    def on_progress(_what: str, done: float) -> None:
        if done >= fraction:
            raise Interrupted

    return on_progress


@pytest.fixture(scope="module")
def half_made(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that is cut off between two blocks of the transformer."""
    out = tmp_path_factory.mktemp("half") / "tiny-fp4"
    with pytest.MonkeyPatch.context() as patch, one_thread(), pytest.raises(Interrupted):
        patch.setattr(lowrank, "ROUNDS", 1)
        quantize_folder(tiny_job(tiny_source, out, on_progress=stop_at(0.7)))
    return out.with_name("tiny-fp4.partial")


@pytest.fixture
def cut_off(half_made: Path, tmp_path: Path) -> Path:
    """A copy of it, and the name of the folder that it is to become."""
    shutil.copytree(half_made, tmp_path / half_made.name)
    return tmp_path / "tiny-fp4"


@torch.no_grad()
def test_calibration_passes_through_the_latents_that_the_pipeline_does(tiny_source: Path) -> None:
    prompt, pooled = text_encoding.encode_prompts(
        tiny_source, TINY, PROMPTS[:2], CPU, torch.float32, lambda done: None
    )
    flux = StreamedFlux(tiny_source, CPU, torch.float32)
    paths = calibration.draw_paths(flux, TINY, tiny_source, prompt, pooled, lambda done: None)

    pipeline = FluxPipeline.from_pretrained(tiny_source, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    seen: list[torch.Tensor] = []
    pipeline(
        list(PROMPTS[:2]),
        width=TINY.default_width,
        height=TINY.default_height,
        num_inference_steps=TINY.num_inference_steps,
        max_sequence_length=TINY.max_sequence_length,
        generator=[torch.Generator().manual_seed(calibration.SEED + n) for n in range(2)],
        output_type="latent",
        callback_on_step_end=lambda _p, _s, _t, values: seen.append(values["latents"]) or {},
    )
    wanted_prompt, wanted_pooled, _ = pipeline.encode_prompt(
        list(PROMPTS[:2]), None, max_sequence_length=TINY.max_sequence_length
    )
    torch.testing.assert_close(prompt, wanted_prompt)
    torch.testing.assert_close(pooled, wanted_pooled)
    torch.testing.assert_close(paths.latents[1], seen[0], rtol=1e-4, atol=1e-4)


def test_only_one_block_has_weights_at_a_time_and_progress_goes_up_to_one(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights counted in bytes when a block is run: its own and the embedders', nothing else."""
    told: list[float] = []
    seen: list[tuple[int, int]] = []
    step = StreamedFlux.step

    def counted(self: StreamedFlux, block: torch.nn.Module, *rest: Any) -> None:
        real = sum(p.nbytes for p in self.model.transformer_blocks.parameters() if not p.is_meta)
        real += sum(
            p.nbytes for p in self.model.single_transformer_blocks.parameters() if not p.is_meta
        )
        seen.append((real, sum(p.nbytes for p in block.parameters())))
        step(self, block, *rest)

    monkeypatch.setattr(StreamedFlux, "step", counted)
    tell = lambda _what, fraction: told.append(fraction)  # noqa: E731
    quantize_folder(tiny_job(tiny_source, tmp_path / "out", on_progress=tell))
    assert seen and all(real == own for real, own in seen)
    assert told == sorted(told) and told[-1] == 1.0 and len(told) > 8


def test_t5_is_read_one_block_at_a_time(tiny_source: Path) -> None:
    names: list[tuple[str, list[int]]] = []
    with text_encoding.streamed_t5(
        tiny_source,
        CPU,
        torch.float32,
        lambda name, _block: names.append((name, real_blocks(model))) or (lambda: None),
    ) as model:
        model(torch.ones(1, 4, dtype=torch.long))
        assert real_blocks(model) == []
    assert names == [("encoder.block.0", [0]), ("encoder.block.1", [1])]


def real_blocks(t5: torch.nn.Module) -> list[int]:
    return [
        number
        for number, block in enumerate(t5.encoder.block)
        if not any(p.is_meta for p in block.parameters())
    ]


def test_the_folder_stands_alone_and_says_what_it_cost(tiny_fp4: Path) -> None:
    manifest = Manifest.read(tiny_fp4)
    assert set(manifest.components) == {"transformer", "text_encoder_2"}
    for part in ("vae", "text_encoder", "tokenizer", "tokenizer_2", "scheduler"):
        assert (tiny_fp4 / part).is_dir()
    assert not list((tiny_fp4 / "text_encoder_2").glob("model*"))
    report = json.loads((tiny_fp4 / "quality.json").read_text())
    assert set(report["layers"]) == set(manifest.components["transformer"].layers)
    assert 0 < report["mean_error"] < report["mean_error_plain_nvfp4"]
    made = sum(file.stat().st_size for file in (tiny_fp4 / "transformer").glob("*.safetensors"))
    assert report["transformer_bytes"]["fp4"] == made
    assert (tiny_fp4 / "prompts.txt").read_text().splitlines() == list(PROMPTS)
    assert not (tiny_fp4 / "progress.json").exists()


def test_a_run_interrupted_in_every_part_goes_on_and_ends_with_the_same_bytes(
    tiny_source: Path, tiny_fp4: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tiny-fp4"
    for fraction in (0.02, 0.1, 0.31, 0.4, 0.6, 0.98):
        with pytest.raises(Interrupted):
            quantize_folder(tiny_job(tiny_source, out, on_progress=stop_at(fraction)))
        assert not out.exists(), "half-written, it has no name to be loaded by"
    quantize_folder(tiny_job(tiny_source, out))
    assert contents(out) == contents(tiny_fp4)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-fp4"]


def test_a_process_that_was_killed_leaves_work_that_another_ends(
    tiny_source: Path, tiny_fp4: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tiny-fp4"
    code = (
        "import sys, time; from pathlib import Path; from utils.worker.quick_import import quick_import;"
        "tiny_job = quick_import('tests.models.fp4.conftest').tiny_job;"
        "import torch; from models.fp4 import lowrank, quantize, work;"
        "torch.set_num_threads(1); lowrank.ROUNDS = 1;"
        "job = tiny_job(Path(sys.argv[1]), Path(sys.argv[2]),"
        " on_progress=lambda what, done: print(what, flush=True) or 'transformer' in what and time.sleep(600));"
        "lock = work.locked(job.out, lambda: None); lock.__enter__(); quantize.quantize_folder(job)"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(tiny_source), str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "transformer" in line:
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL and not out.exists()
    waited: list[int] = []
    with locked(out, lambda: waited.append(1)):
        quantize_folder(tiny_job(tiny_source, out))
    assert not waited, "a lock ends with its process"
    assert contents(out) == contents(tiny_fp4)


def test_what_is_finished_is_not_fitted_again(
    tiny_source: Path, cut_off: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = cut_off.with_name("tiny-fp4.partial") / "progress.json"
    done = set(json.loads(notes.read_text())["files"])
    fitted: list[int] = []
    fit_block = block_fit.fit_block
    monkeypatch.setattr(
        quantize, "fit_block", lambda *a, **k: fitted.append(1) or fit_block(*a, **k)
    )
    quantize_folder(tiny_job(tiny_source, cut_off))
    files = {f"transformer/{f}" for f in Manifest.read(cut_off).components["transformer"].files}
    missing = files - done - {"transformer/rest.safetensors"}
    assert len(fitted) == len(missing) < len(files) - 1


def test_a_finished_file_that_was_damaged_since_is_made_again(
    tiny_source: Path, tiny_fp4: Path, cut_off: Path
) -> None:
    partial = cut_off.with_name("tiny-fp4.partial")
    file = next((partial / "transformer").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])
    quantize_folder(tiny_job(tiny_source, cut_off))
    assert contents(cut_off) == contents(tiny_fp4)


def test_other_settings_do_not_go_on_with_the_work(tiny_source: Path, cut_off: Path) -> None:
    quantize_folder(tiny_job(tiny_source, cut_off, rank=2))
    layers = Manifest.read(cut_off).components["transformer"].layers
    assert max(plan.rank for plan in layers.values()) == 2


def test_a_finished_folder_is_replaced_only_by_a_finished_one(
    tiny_source: Path, tiny_fp4: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_fp4, tmp_path / "out")
    job = tiny_job(tiny_source, out, rank=2, text_encoder_from_bytes=2**30)
    with pytest.raises(Interrupted):
        quantize_folder(replace(job, on_progress=stop_at(0.9)))
    assert Manifest.read(out).rank == 4
    quantize_folder(job)
    assert Manifest.read(out).rank == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_smoothed_checkpoints_say_so_and_hold_the_factors(
    tiny_source: Path, tmp_path: Path
) -> None:
    job = tiny_job(tiny_source, tmp_path / "out", activations=4, text_encoder_from_bytes=2**30)
    manifest = quantize_folder(job)
    assert manifest.activations == 4
    report = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert report["mean_error"] < report["mean_error_plain_nvfp4"]


def test_one_process_works_and_the_other_waits(tmp_path: Path) -> None:
    out, waited, order = tmp_path / "out", threading.Event(), []

    def second() -> None:
        with locked(out, waited.set, poll_seconds=0.01):
            order.append("second")

    with locked(out, lambda: None):
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(60)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == [], "no lock file stays"


def test_a_lock_file_that_somebody_removed_is_no_fault(tmp_path: Path) -> None:
    with locked(tmp_path / "out", lambda: None):
        (tmp_path / "out.lock").unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ends_between_the_last_two_renames_loses_nothing(
    tiny_source: Path, tiny_fp4: Path, cut_off: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(tiny_fp4, cut_off)
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise Interrupted
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Path, "rename", interrupted)
        quantize_folder(tiny_job(tiny_source, out))
    assert not out.exists()
    monkeypatch.setattr(quantize, "fit_block", None)  # called again, it would fail
    monkeypatch.setattr(calibration, "draw_paths", None)
    quantize_folder(tiny_job(tiny_source, out))
    assert contents(out) == contents(tiny_fp4)
    assert [path.name for path in out.parent.iterdir()] == ["tiny-fp4"]


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({}, True), ({"rank": 2}, False), ({"rank": None}, False), ({"activations": 4}, False),
        ({"prompts": PROMPTS[::-1]}, False), ({"row": TINY.model_copy(update={"id": "x"})}, False),
    ],
)  # fmt: skip
def test_what_is_made_is_known_by_everything_that_decides_it(
    tiny_source: Path, tiny_fp4: Path, change: dict[str, Any], is_same: bool
) -> None:
    assert quantize.is_made(replace(tiny_job(tiny_source, tiny_fp4), **change)) == is_same
    assert not quantize.is_made(tiny_job(tiny_source, tiny_fp4.with_name("nothing")))


def test_too_few_prompts_are_refused(tiny_source: Path, tmp_path: Path) -> None:
    job = tiny_job(tiny_source, tmp_path / "out")
    few = type(job)(source=job.source, out=job.out, row=TINY, prompts=PROMPTS[:3])
    with pytest.raises(ValueError, match="3 calibration prompts are too few"):
        quantize_folder(few)


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ModelUnavailable, match="nothing/model_index.json is missing"):
        quantize_folder(tiny_job(tmp_path / "nothing", tmp_path / "out"))
    assert not (tmp_path / f"out/{MANIFEST}").exists()
