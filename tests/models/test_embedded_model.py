"""The shipped model draws what it is asked for, and its training goes on where it was cut off."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file

from models.cpu_decoder import make_quick
from scripts import train_embedded_model
from scripts.embedded.captions import plain_caption
from scripts.embedded.examination import Prompt, draw_prompts, examine, generate
from scripts.embedded.model_folder import MAX_BYTES, folder_bytes
from scripts.embedded.scene import Scene
from tests.models.flux1_drawing import threads

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models/embedded"
PROMPT = "a red balloon on the left over green hills at noon"
SCENE = Scene(subject="balloon", colour="red", number=1, place="left", ground="hills", time="noon")


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    loaded = FluxPipeline.from_pretrained(MODEL)
    loaded.set_progress_bar_config(disable=True)
    make_quick(loaded.vae.decoder)  # as a worker has it on a CPU
    return loaded


def _draw(pipeline: FluxPipeline, text: str, seed: int = 0, **options: object) -> numpy.ndarray:
    prompt = Prompt(text=text, scene=SCENE)
    picture = next(generate(pipeline, [prompt], seed=seed, **options))
    return numpy.asarray(picture).astype(int)


def test_folder_size_fits_the_repository() -> None:
    assert 1_000_000 < folder_bytes(MODEL) <= MAX_BYTES


def test_pipeline_canonical_prompts_are_mostly_right(pipeline: FluxPipeline) -> None:
    prompts = draw_prompts(8, seed=3)
    score = examine(prompts, generate(pipeline, prompts, seed=3))

    shares = {name: score.share(name) for name in score.asked}
    assert {name: share for name, share in shares.items() if share < 0.75} == {}


def test_pipeline_unknown_words_around_keep_the_picture_right(pipeline: FluxPipeline) -> None:
    text = f"a beautiful photo of {PROMPT}, 8k, zrkulip, trending on artstation"
    prompts = [Prompt(text=text, scene=SCENE)] * 4
    score = examine(prompts, generate(pipeline, prompts, seed=11))

    assert all(score.share(name) >= 0.75 for name in ("colour", "place", "ground", "time"))


def test_pipeline_same_seed_same_picture_other_seed_another(pipeline: FluxPipeline) -> None:
    first, again, other = (_draw(pipeline, PROMPT, seed=seed) for seed in (1, 1, 2))

    assert (first == again).all()
    assert numpy.abs(first - other).mean() > 1


@pytest.mark.parametrize("size", [(128, 128), (512, 256), (192, 320), (512, 512)])
def test_pipeline_other_sizes_have_the_landscape_asked_for(
    pipeline: FluxPipeline, size: tuple[int, int]
) -> None:
    scene = replace(SCENE, subject="car", place="middle", ground="sea")
    prompts = [Prompt(text=plain_caption(scene), scene=scene)]
    pictures = list(generate(pipeline, prompts, seed=5, size=size))
    score = examine(prompts, pictures)

    assert pictures[0].size == size
    assert score.right["ground"] == score.right["time"] == 1


def test_pipeline_negative_prompt_moves_the_picture_and_keeps_it_right(
    pipeline: FluxPipeline,
) -> None:
    prompts = [Prompt(text=PROMPT, scene=SCENE)]
    guided = generate(pipeline, prompts, seed=6, true_cfg_scale=2.0, negative_prompt="at night")
    score = examine(prompts, guided)

    assert score.right["time"] == score.right["colour"] == 1


def test_pipeline_long_prompt_is_cut_without_an_error(pipeline: FluxPipeline) -> None:
    picture = _draw(pipeline, PROMPT + ", and then some more" * 60)

    assert picture.shape == (256, 256, 3)


def _arguments(work: Path, output: Path) -> list[str]:
    options = ["--recipe", "tiny", "--device", "cpu", "--threads", "1"]
    return [*options, "--work", str(work), "--output", str(output)]


# At a step whose weights no file has, while it is under way.
_KILLED_AT_ITS_THIRD_STEP = """
import os, signal
from utils.worker.quick_import import quick_import

train_embedded_model = quick_import("scripts.train_embedded_model")
from scripts.embedded import flow_training

loss, steps = flow_training._flow_loss, []

def killed(*arguments):
    steps.append(1)
    if len(steps) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(*arguments)

flow_training._flow_loss = killed
train_embedded_model.main()
"""


@pytest.mark.filterwarnings("ignore")  # as a process of its own does
def test_training_killed_and_resumed_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    victim = subprocess.run(
        [sys.executable, "-c", _KILLED_AT_ITS_THIRD_STEP, *_arguments(tmp_path / "work-2", cut)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=240,
    )
    assert victim.returncode == -signal.SIGKILL
    assert torch.load(tmp_path / "work-2/layout.pt")["step"] == 2, "of four"

    with threads(1):
        for arguments in (
            _arguments(tmp_path / "work-2", cut),
            _arguments(tmp_path / "work-1", straight),
        ):
            monkeypatch.setattr(sys, "argv", ["train_embedded_model", *arguments])
            train_embedded_model.main()

    for part in ("transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model"):
        expected = load_file(straight / f"{part}.safetensors")
        resumed = load_file(cut / f"{part}.safetensors")
        assert expected.keys() == resumed.keys()
        assert all(torch.equal(expected[name], resumed[name]) for name in expected)
