"""Z-Image on tiny weights: as diffusers' own pipelines draw."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import ZImageImg2ImgPipeline, ZImagePipeline
from PIL import Image

from models.families.flow_start import pixels_of
from models.types import Cancelled
from tests.models.flux1_drawing import threads
from tests.models.tiny_drawing import Tiny, generator, gradient, load_tiny

STEPS = 4
SIZE = {"width": 96, "height": 64}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return load_tiny("z-image-turbo", tmp_path_factory.mktemp("tiny"))


def draw(tiny: Tiny, **changes: Any) -> Image.Image:
    return tiny.draw(**{"num_inference_steps": STEPS} | changes)


def theirs(tiny: Tiny, kind: Any = ZImagePipeline, **arguments: Any) -> Image.Image:
    arguments = {
        "prompt": "a cat on a mat", "num_inference_steps": STEPS, "guidance_scale": 0.0,
        "max_sequence_length": 32, "generator": generator(),
    } | arguments  # fmt: skip
    return tiny.pipeline(kind)(**arguments).images[0]


def test_text_is_drawn_as_by_diffusers(tiny: Tiny) -> None:
    assert draw(tiny).tobytes() == theirs(tiny, **SIZE).tobytes()


def test_negative_prompt_acts_by_true_cfg_scale_as_diffusers_guides(tiny: Tiny) -> None:
    ours = draw(tiny, negative_prompt="a dog", true_cfg_scale=3.0)
    same = theirs(tiny, negative_prompt="a dog", guidance_scale=2.0, **SIZE)
    assert ours.tobytes() == same.tobytes()
    assert ours.tobytes() != draw(tiny).tobytes()


def test_without_a_negative_prompt_there_is_no_guidance(tiny: Tiny) -> None:
    assert draw(tiny, true_cfg_scale=3.0).tobytes() == draw(tiny).tobytes()


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.75])
def test_image_is_begun_with_as_by_diffusers(tiny: Tiny, strength: float) -> None:
    image = gradient()
    vae, scheduler = tiny.model._image.vae, tiny.pipeline(ZImagePipeline).scheduler
    with torch.no_grad():
        latents = vae.encode(pixels_of(image)).latent_dist.mode()
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=generator())
    sigmas = torch.linspace(1.0, 1 / STEPS, STEPS)
    scheduler.set_timesteps(sigmas=sigmas.tolist())
    first = scheduler.timesteps[round(STEPS * (1 - strength))]
    noisy = scheduler.scale_noise(latents, first[None], noise)
    same = theirs(
        tiny, ZImageImg2ImgPipeline, image=image, strength=strength, latents=noisy, **SIZE
    )
    assert draw(tiny, image=image, strength=strength).tobytes() == same.tobytes()


def test_mask_leaves_what_is_black_as_it_was(tiny: Tiny) -> None:
    image, mask = gradient(), Image.new("L", (96, 64), 0)
    mask.paste(255, (0, 0, 48, 64))
    picture = draw(tiny, image=image, mask=mask, strength=1.0)
    right, left = (48, 0, 96, 64), (0, 0, 48, 64)
    assert picture.crop(right).tobytes() == image.crop(right).tobytes()
    assert picture.crop(left).tobytes() != image.crop(left).tobytes()


def test_same_request_has_the_same_bytes_whatever_was_drawn_between(tiny: Tiny) -> None:
    before = draw(tiny).tobytes()
    draw(tiny, image=gradient(), strength=0.5, seed=8)
    draw(tiny, negative_prompt="a dog", width=64)
    assert draw(tiny).tobytes() == before
    assert draw(tiny, seed=9).tobytes() != before


def test_text_of_other_lengths_are_drawn_together_as_alone(tiny: Tiny) -> None:
    drawings = [tiny.drawing(prompt=words) for words in ("a cat", "a cat on a mat by the door")]
    pictures, _ = tiny.model.generate(
        drawings, on_stage=lambda stage: None, on_step=lambda *_: None
    )
    for drawing, picture in zip(drawings, pictures, strict=True):
        alone = tiny.draw(prompt=drawing.request.prompt)
        difference = torch.subtract(*(pixels_of(each) for each in (picture, alone)))
        assert difference.abs().max() <= 2 / 127.5


def test_cancelled_after_a_step_leaves_and_the_next_draws_as_ever(tiny: Tiny) -> None:
    before = draw(tiny).tobytes()

    def on_step(*_: Any) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        tiny.model.generate([tiny.drawing()], on_stage=lambda stage: None, on_step=on_step)
    assert draw(tiny).tobytes() == before
