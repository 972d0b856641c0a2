"""Stable Diffusion 1.5, 2.1 and XL on tiny weights: as diffusers' own pipelines draw, step by step."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from models.families import stable_diffusion
from models.types import Cancelled, Stage
from tests.models.flux1_drawing import threads
from tests.models.tiny_drawing import Tiny, generator, gradient, load_tiny

ROWS = ("stable-diffusion-2-1", "sdxl-base")  # 1.5 is `first`, with a scheduler of its own
STEPS = 4
SIZE = {"width": 96, "height": 64}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


@pytest.fixture(scope="module", params=ROWS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return load_tiny(request.param, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return load_tiny("stable-diffusion-v1-5", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plain(tiny: Tiny) -> Image.Image:
    """The picture of the text alone, as it was at first."""
    return draw(tiny)


def draw(tiny: Tiny, **changes: Any) -> Image.Image:
    return tiny.draw(**{"num_inference_steps": STEPS, "guidance_scale": 4.0} | changes)


@functools.cache
def diffusers(row_id: str, folder: Path, way: str) -> Any:
    """diffusers' pipeline for a way, over the same weights."""
    kinds = {
        False: (
            StableDiffusionPipeline,
            StableDiffusionImg2ImgPipeline,
            StableDiffusionInpaintPipeline,
        ),
        True: (
            StableDiffusionXLPipeline,
            StableDiffusionXLImg2ImgPipeline,
            StableDiffusionXLInpaintPipeline,
        ),
    }[row_id == "sdxl-base"]
    kind = kinds[("text", "image", "mask").index(way)]
    pipeline = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(tiny: Tiny, way: str = "text", **arguments: Any) -> Image.Image:
    arguments = {
        "prompt": "a cat on a mat", "num_inference_steps": STEPS, "guidance_scale": 4.0,
        "generator": generator(),
    } | arguments  # fmt: skip
    return diffusers(tiny.row.id, tiny.folder, way)(**arguments).images[0]


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest of a colour, of 255. Pixels become numbers of -1 to 1 in other ways in diffusers."""
    return int(abs(numpy.subtract(one, other, dtype=int)).max())


def half_mask() -> Image.Image:
    """White on the left."""
    mask = Image.new("L", (96, 64), 0)
    mask.paste(255, (0, 0, 48, 64))
    return mask


# As diffusers


def test_text_is_drawn_as_by_diffusers(tiny: Tiny, plain: Image.Image) -> None:
    assert plain.tobytes() == theirs(tiny, **SIZE).tobytes()


@pytest.mark.usefixtures("no_samples")
def test_pndm_draws_as_in_diffusers_though_it_has_a_step_more(first: Tiny) -> None:
    more, white = {"image": gradient(), "strength": 0.5}, (0, 0, 48, 64)
    assert draw(first).tobytes() == theirs(first, **SIZE).tobytes()
    assert difference(draw(first, **more), theirs(first, "image", **more)) <= 1
    same = theirs(first, "mask", mask_image=half_mask(), **more, **SIZE)
    ours = draw(first, mask=half_mask(), **more)
    assert difference(ours.crop(white), same.crop(white)) <= 1


def test_sides_that_do_not_halve_evenly_are_drawn_as_by_diffusers(tiny: Tiny) -> None:
    size = {
        "width": 80,
        "height": 112,
        "num_inference_steps": 2,
    }  # 10 and 14 latents, of which the network halves some to 3
    assert draw(tiny, **size).tobytes() == theirs(tiny, **size).tobytes()


def test_negative_prompt_is_what_guidance_goes_away_from_as_in_diffusers(
    tiny: Tiny, plain: Image.Image
) -> None:
    ours = draw(tiny, negative_prompt="a dog")
    assert ours.tobytes() == theirs(tiny, negative_prompt="a dog", **SIZE).tobytes()
    assert ours.tobytes() != plain.tobytes()


def test_true_cfg_scale_is_the_scale_where_there_is_a_negative_prompt(
    tiny: Tiny, plain: Image.Image
) -> None:
    ours = draw(tiny, negative_prompt="a dog", true_cfg_scale=6.0)
    same = theirs(tiny, negative_prompt="a dog", guidance_scale=6.0, **SIZE)
    assert ours.tobytes() == same.tobytes()
    assert draw(tiny, true_cfg_scale=6.0).tobytes() == plain.tobytes()


def test_guidance_scale_of_1_is_no_guidance_as_in_diffusers(tiny: Tiny) -> None:
    same = theirs(tiny, guidance_scale=1.0, **SIZE)
    assert draw(tiny, guidance_scale=1.0).tobytes() == same.tobytes()


@pytest.fixture
def no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers draws a picture's latents from the encoder's distribution; ours are its mode."""
    kind = "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution"
    monkeypatch.setattr(f"{kind}.sample", lambda self, generator=None: self.mode())


@pytest.mark.usefixtures("no_samples")
@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_image_is_begun_with_as_by_diffusers(tiny: Tiny, strength: float) -> None:
    image = gradient()
    same = theirs(tiny, "image", image=image, strength=strength)
    assert difference(draw(tiny, image=image, strength=strength), same) <= 1


@pytest.mark.usefixtures("no_samples")
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_mask_is_drawn_anew_as_by_diffusers(tiny: Tiny, strength: float) -> None:
    image = gradient()
    same = theirs(tiny, "mask", image=image, mask_image=half_mask(), strength=strength, **SIZE)
    ours = draw(tiny, image=image, mask=half_mask(), strength=strength)
    white = (0, 0, 48, 64)
    assert difference(ours.crop(white), same.crop(white)) <= 1


@pytest.mark.parametrize(
    "kind",
    [
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler,
    ],
)
def test_any_scheduler_of_a_checkpoint_draws_as_in_diffusers(first: Tiny, kind: Any) -> None:
    own = first.model._image.scheduler
    pipeline = first.pipeline(StableDiffusionPipeline)
    pipeline.scheduler = kind.from_config(own.config)
    first.model._image.scheduler = kind.from_config(own.config)
    try:
        steps: list[tuple[int, int]] = []
        [picture], _ = first.model.generate(
            [first.drawing(num_inference_steps=STEPS, guidance_scale=4.0)],
            on_stage=lambda stage: None,
            on_step=lambda step, of, _: steps.append((step, of)),
        )
    finally:
        first.model._image.scheduler = own
    same = pipeline(
        "a cat on a mat",
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        generator=generator(),
        **SIZE,
    )
    assert picture.tobytes() == same.images[0].tobytes()
    assert sorted(set(steps)) == [(1, 4), (2, 4), (3, 4), (4, 4)] and steps == sorted(steps)


# Of ours


def test_mask_leaves_what_is_black_as_it_was(tiny: Tiny) -> None:
    image = gradient()
    picture = draw(tiny, image=image, mask=half_mask(), strength=0.75)
    right, left = (48, 0, 96, 64), (0, 0, 48, 64)
    assert picture.crop(right).tobytes() == image.crop(right).tobytes()
    assert picture.crop(left).tobytes() != image.crop(left).tobytes()


def test_mask_of_white_alone_draws_as_if_there_were_no_picture(
    tiny: Tiny, plain: Image.Image
) -> None:
    white = Image.new("L", (96, 64), 255)
    assert draw(tiny, image=gradient(), mask=white, strength=1.0).tobytes() == plain.tobytes()


def test_mask_that_is_thinner_than_a_latent_is_not_lost(tiny: Tiny) -> None:
    line = Image.new("L", (96, 64), 0)
    line.paste(255, (50, 0, 51, 64))
    image = gradient()
    assert draw(tiny, image=image, mask=line).tobytes() != image.tobytes()


def test_same_request_has_the_same_bytes_whatever_was_drawn_between(
    tiny: Tiny, plain: Image.Image
) -> None:
    before = plain.tobytes()
    draw(tiny, image=gradient(), strength=0.5, seed=8)
    draw(tiny, negative_prompt="a dog", num_inference_steps=2, width=64)
    assert draw(tiny).tobytes() == before
    assert draw(tiny, seed=9).tobytes() != before


@pytest.mark.parametrize(("strength", "steps"), [(0.0, 1), (0.1, 1), (0.5, 2), (0.6, 3), (1.0, 4)])
def test_steps_of_a_strength_are_those_of_the_request(
    first: Tiny, strength: float, steps: int
) -> None:
    told: list[tuple[int, int]] = []
    drawing = first.drawing(num_inference_steps=STEPS, image=gradient(), strength=strength)
    first.model.generate(
        [drawing], on_stage=lambda stage: None, on_step=lambda *step: told.append(step[:2])
    )
    assert drawing.request.steps_to_run == steps
    assert set(told) == {(step + 1, steps) for step in range(steps)}


def test_pictures_drawn_together_are_those_drawn_alone(tiny: Tiny) -> None:
    more = {
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "image": gradient(),
        "strength": 0.5,
    }
    drawings = [
        tiny.drawing(prompt="a cat", **more),
        tiny.drawing(prompt="a dog on a sofa", seed=4, negative_prompt=None, **more),
    ]
    pictures, _ = tiny.model.generate(drawings, on_stage=lambda _: None, on_step=lambda *_: None)
    for drawing, picture in zip(drawings, pictures, strict=True):
        alone = draw(tiny, prompt=drawing.request.prompt, seed=drawing.seed, **more)
        assert difference(picture, alone) <= 2


def test_cancelled_after_a_step_leaves_and_the_next_draws_as_ever(
    tiny: Tiny, plain: Image.Image
) -> None:
    before, seen = plain.tobytes(), []

    def on_step(step: int, *_: Any) -> None:
        seen.append(step)
        raise Cancelled

    with pytest.raises(Cancelled):
        tiny.model.generate([tiny.drawing()], on_stage=lambda stage: None, on_step=on_step)
    assert seen == [1] and draw(tiny).tobytes() == before


def test_stages_come_in_their_order(first: Tiny) -> None:
    stages: list[Stage] = []
    first.model.generate([first.drawing()], on_stage=stages.append, on_step=lambda *_: None)
    assert stages == [Stage.ENCODING, Stage.DENOISING, Stage.DECODING]


def test_frugal_draws_in_tiles(tiny: Tiny) -> None:
    [picture], _ = tiny.model.generate(
        [tiny.drawing()], on_stage=lambda stage: None, on_step=lambda *_: None, frugal=True
    )
    assert picture.size == (96, 64)


def test_sampler_adds_up_in_fp32_also_where_the_network_computes_in_16_bits(
    tiny: Tiny, plain: Image.Image
) -> None:
    more = {"image": gradient(), "strength": 0.5}
    full, begun = plain, draw(tiny, **more)
    parts = (tiny.model._image.unet, tiny.model._text.text_encoder)
    kept = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in parts]
    seen: list[torch.dtype] = []
    step = type(tiny.model._image.scheduler).step

    def watched(self: Any, output: torch.Tensor, *args: Any, **more: Any) -> Any:
        result = step(self, output, *args, **more)
        seen.append(result[0].dtype)
        return result

    try:
        for part in parts:
            torch.nn.Module.to(part, torch.bfloat16)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(tiny.model._image.scheduler), "step", watched)
            pictures = (draw(tiny, seed=3), draw(tiny, **more))
    finally:
        for part, state in zip(parts, kept, strict=True):
            torch.nn.Module.to(part, torch.float32)
            part.load_state_dict(state)
    assert set(seen) == {torch.float32}
    assert all(difference(*pair) <= 24 for pair in zip(pictures, (full, begun), strict=True))
    assert draw(tiny).tobytes() == full.tobytes()


def test_autoencoder_that_is_not_made_for_16_bits_is_widened() -> None:
    class Vae(torch.nn.Linear):
        config = type("Config", (), {"force_upcast": True})

    pipeline = type("Pipeline", (), {"vae": Vae(2, 2).to(torch.bfloat16)})
    stable_diffusion.StableDiffusionModel.prepare(pipeline)
    assert pipeline.vae.weight.dtype == torch.float32


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
def test_preview_shows_the_picture_without_its_noise(first: Tiny, kind: Any) -> None:
    """Latents of one picture and one noise at two levels: what is taken for clean is that picture."""
    own, seen = first.model._image.scheduler, []
    scheduler = kind.from_config(own.config)

    class Map:
        def after_step(self, before, after, sigma, sigma_next, size):
            share = sigma_next / (sigma - sigma_next)
            seen.append(after + (after - before) * share)

    picture, noise = torch.randn(1, 4, 8, 12), torch.randn(1, 4, 8, 12)
    first.model._image.scheduler, first.model._preview_map = scheduler, Map()
    try:
        scheduler.set_timesteps(STEPS)
        times = scheduler.timesteps
        levels = [scheduler.add_noise(picture, noise, time.repeat(1)) for time in times]
        request = first.drawing(num_inference_steps=STEPS).request
        begin = stable_diffusion.Start(latents=levels[0], noise=noise, picture=picture, mask=None)
        callback = first.model._after_step(levels[0], begin, request, lambda *_: None)
        told = type("Pipeline", (), {"num_timesteps": STEPS})
        for step, after in enumerate([*levels[1:], picture]):
            callback(told, step, times[step], {"latents": after})
    finally:
        first.model._image.scheduler, first.model._preview_map = own, None
    assert all(torch.allclose(clean.float(), picture, atol=1e-2) for clean in seen)
