"""The example LoRAs that ship with the embedded model: what they are, and what they do to pictures."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.utils.logging import disable_progress_bar
from PIL import Image

from models.cpu_decoder import make_quick
from models.lora.convert import convert
from models.lora.inspect import inspect
from models.lora.merge import layer_shapes, match
from scripts.embedded.examination import Prompt, draw_prompts, generate
from scripts.embedded.scene import random_scene
from scripts.lora.application import applied
from scripts.lora.encoded import encode
from scripts.lora.examination import Verdict, examine_lora
from scripts.lora.picture_folder import read_folder
from scripts.lora.presets import PRESETS, draw_plain, redraw
from scripts.lora.styles import STYLES

FOLDER = Path("models/embedded-loras")
SEED = 70
MAX_BYTES = 1_000_000
PICTURES = 2
SMALL = (128, 128)  # where many are drawn

Examine = Callable[..., Verdict]


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    disable_progress_bar()
    pipeline = FluxPipeline.from_pretrained("models/embedded", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    make_quick(pipeline.vae.decoder)  # as a worker has it on a CPU
    return pipeline


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return draw_prompts(PICTURES, SEED)


@pytest.fixture(scope="module")
def plain(pipeline: FluxPipeline, prompts: list[Prompt]) -> list[Image.Image]:
    return list(generate(pipeline, prompts, seed=SEED, size=SMALL))


@pytest.fixture(scope="module")
def examined(pipeline: FluxPipeline, prompts: list[Prompt], plain: list[Image.Image]) -> Examine:
    """What a LoRA by name does at a weight, with its trigger word or without; each is drawn once."""

    @functools.cache
    def examine(name: str, *, weight: float, is_called: bool = False) -> Verdict:
        return examine_lora(
            pipeline,
            FOLDER / f"{name}.safetensors",
            prompts,
            plain,
            weight=weight,
            seed=SEED,
            size=SMALL,
            trigger_word=PRESETS[name].trigger_word if is_called else None,
        )

    return examine


def pixels(pictures: list[Image.Image]) -> numpy.ndarray:
    return numpy.stack([numpy.asarray(p, dtype=numpy.float32) for p in pictures])


@pytest.mark.parametrize("name", PRESETS)
def test_example_lora_fits_the_embedded_model_with_every_key(
    name: str, pipeline: FluxPipeline
) -> None:
    path = FOLDER / f"{name}.safetensors"
    info = inspect(path)
    found = match(convert(path), layer_shapes({"transformer": pipeline.transformer}))
    assert found.unmatched_keys == () and info.unknown_keys == ()
    assert info.format == PRESETS[name].form
    assert info.trigger_words == (PRESETS[name].trigger_word,)
    assert path.stat().st_size <= MAX_BYTES


def test_example_loras_have_a_format_each() -> None:
    assert len({preset.form for preset in PRESETS.values()}) == len(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_example_lora_goes_further_to_its_style_with_more_weight(
    name: str, examined: Examine
) -> None:
    ways = [examined(name, weight=weight).way for weight in (0.5, 1.0)]
    assert 0 < ways[0] < ways[1]


@pytest.mark.parametrize("is_called", [False, True], ids=["alone", "with its word"])
@pytest.mark.parametrize("name", PRESETS)
def test_example_lora_keeps_the_scene_with_and_without_its_trigger_word(
    name: str, is_called: bool, examined: Examine
) -> None:
    verdict = examined(name, weight=1.0, is_called=is_called)
    assert verdict.found >= 0.75  # by chance: one in four
    assert verdict.way > 0.3


def test_example_loras_together_differ_from_each_alone(
    pipeline: FluxPipeline, prompts: list[Prompt]
) -> None:
    paths = [FOLDER / f"{name}.safetensors" for name in PRESETS]
    drawn = []
    for chosen in ([paths[0]], [paths[1]], [paths[2]], paths):
        with applied(pipeline, dict.fromkeys(chosen, 1.0)):
            drawn.append(pixels(list(generate(pipeline, prompts[:1], seed=SEED))))
    for alone in drawn[:3]:
        assert numpy.abs(drawn[3] - alone).mean() > 8


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("size", [(256, 256), (208, 320)])
def test_style_changes_every_picture_and_keeps_its_size(name: str, size: tuple[int, int]) -> None:
    grey = Image.new("RGB", size, (120, 160, 90))
    styled = STYLES[name](grey)
    assert styled.size == size and styled.mode == "RGB"
    assert numpy.abs(pixels([styled]) - pixels([grey])).mean() > 8


def test_redraw_keeps_captions_and_seeds_and_gives_the_same_again(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    draw_plain("models/embedded", plain, {(64, 64): 2, (96, 64): 1})
    names = [f"{index:04}.{end}" for index in range(3) for end in ("png", "seed", "txt")]
    assert sorted(path.name for path in plain.iterdir()) == names
    for _ in range(2):  # in place of what was there
        redraw(PRESETS["sepia"], plain, tmp_path / "sepia")
    assert sorted(path.name for path in (tmp_path / "sepia").iterdir()) == names
    for name in names:
        same = (tmp_path / "sepia" / name).read_bytes() == (plain / name).read_bytes()
        assert same == (not name.endswith(".png"))


def test_draw_plain_picture_comes_from_its_seed_and_caption(
    pipeline: FluxPipeline, tmp_path: Path
) -> None:
    draw_plain("models/embedded", tmp_path / "plain", {(64, 64): 2})
    (example,) = read_folder(tmp_path / "plain", resolution_px=None)[1:]
    asked = Prompt(text=example.caption, scene=random_scene(random.Random(0)))
    (again,) = generate(pipeline, [asked], seed=example.seed, size=(64, 64))
    assert numpy.abs(pixels([again]) - pixels([example.open()])).max() <= 2


def test_encoded_noise_of_a_seed_is_what_the_pipeline_draws_from_it(
    pipeline: FluxPipeline, tmp_path: Path
) -> None:
    Image.new("RGB", (96, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a ball")
    (tmp_path / "a.seed").write_text("5\n")
    encoded = encode(
        "models/embedded", read_folder(tmp_path, resolution_px=None), trigger_word=None,
        device="cpu", dtype=torch.float32, max_text_tokens=None,
    )  # fmt: skip
    found = encoded.buckets[0].noise(torch.tensor([0]), torch.Generator().manual_seed(1))
    expected, ids = pipeline.prepare_latents(
        1, 16, 64, 96, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(5)
    )
    assert torch.equal(found, expected)
    assert torch.equal(encoded.buckets[0].ids, ids)
