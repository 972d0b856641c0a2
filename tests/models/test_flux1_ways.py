"""A picture as the start of another, and a mask: what is kept, what is drawn anew, and that it is exact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline
from PIL import Image

from models import fp4_flux_model
from models.families.flow_start import sigmas_of
from models.types import Cancelled, Drawing, LoadOptions, PreviewOf
from scripts.embedded.judge import judge, read_postcard
from scripts.embedded.scene import Scene
from tests.models.flux1_drawing import EMBEDDED, draw, drawing, load, pixels, threads

BALLOON = "a red balloon on the left over green hills at noon"
HOUSE = "a blue house on the right in a desert at sunset"
STAR = "a yellow star on the left over green hills at noon"
BALLOON_SCENE = Scene(
    subject="balloon", colour="red", number=1, place="left", ground="hills", time="noon"
)
HOUSE_SCENE = Scene(
    subject="house", colour="blue", number=1, place="right", ground="desert", time="sunset"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with threads(1):
        yield load(EMBEDDED, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def fp4_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    options = LoadOptions(
        devices=("cpu",), models_dir=tmp_path_factory.mktemp("fp4"), allow_download=False
    )
    return fp4_flux_model.load(EMBEDDED, options)


@pytest.fixture(scope="module")
def postcard(model: Any) -> Image.Image:
    [picture] = draw(model, drawing(BALLOON, seed=3, width=256, height=256, num_inference_steps=4))
    assert read_postcard(picture) == BALLOON_SCENE
    return picture


def begun(
    prompt: str,
    image: Image.Image,
    mask: Image.Image | None = None,
    *,
    strength: float,
    num_inference_steps: int = 4,
    **changes: Any,
) -> Drawing:
    """A drawing of the image's size that begins with it."""
    plain = drawing(
        prompt,
        width=image.width,
        height=image.height,
        num_inference_steps=num_inference_steps,
        image="ab" * 32,
        mask=None if mask is None else "cd" * 32,
        strength=strength,
        **changes,
    )
    return replace(plain, image=image, mask=mask)


def small(postcard: Image.Image, size: tuple[int, int] = (128, 128)) -> Image.Image:
    return postcard.resize(size, Image.Resampling.LANCZOS)


def left_half(size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def array(picture: Image.Image) -> numpy.ndarray:
    return numpy.asarray(picture).astype(int)


# What is seen


def test_image_at_strength_0_3_keeps_its_scene(model: Any, postcard: Image.Image) -> None:
    for seed in (4, 5):
        [picture] = draw(model, begun(HOUSE, postcard, strength=0.3, seed=seed))
        assert read_postcard(picture) == BALLOON_SCENE


def test_image_at_strength_0_9_follows_the_prompt(model: Any, postcard: Image.Image) -> None:
    for seed in (4, 5):
        [picture] = draw(model, begun(HOUSE, postcard, strength=0.9, seed=seed))
        right = judge(picture, HOUSE_SCENE)
        assert sum(right.values()) >= len(right) - 1 and right["time"] and right["ground"]


def test_image_changes_more_with_more_strength(model: Any, postcard: Image.Image) -> None:
    image = small(postcard)
    moved = [
        numpy.abs(array(draw(model, begun(HOUSE, image, strength=s, seed=4))[0]) - array(image)).mean()
        for s in (0.1, 0.35, 0.6, 0.85)
    ]  # fmt: skip
    assert moved == sorted(moved) and moved[-1] > 4 * moved[0]


def test_image_at_strength_0_is_itself(model: Any, postcard: Image.Image) -> None:
    [picture] = draw(model, begun(HOUSE, postcard, strength=0.0))
    error = numpy.abs(array(picture) - array(postcard))
    assert error.mean() < 4  # what the autoencoder loses


def test_image_at_strength_1_leaves_no_trace(model: Any, postcard: Image.Image) -> None:
    """The bytes are those of the text alone."""
    image = small(postcard)
    alone = drawing(HOUSE, seed=7, width=128, height=128, num_inference_steps=4)
    assert pixels(model, begun(HOUSE, image, strength=1.0, seed=7)) == pixels(model, alone)


def test_mask_is_drawn_anew_and_nothing_else(model: Any, postcard: Image.Image) -> None:
    mask = Image.new("L", postcard.size, 0)
    mask.paste(255, (0, 13, 121, 211))
    [picture] = draw(model, begun(STAR, postcard, mask, strength=1.0, seed=5))
    seen = read_postcard(picture)
    assert seen is not None and (seen.subject, seen.colour, seen.place) == (
        "star",
        "yellow",
        "left",
    )
    kept = numpy.asarray(mask) == 0
    assert (array(picture)[kept] == array(postcard)[kept]).all()


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_mask_of_one_pixel_changes_no_other(
    model: Any, postcard: Image.Image, strength: float
) -> None:
    image, mask = small(postcard), Image.new("L", (128, 128), 0)
    mask.putpixel((50, 70), 255)
    [picture] = draw(model, begun(STAR, image, mask, strength=strength))
    assert set(zip(*numpy.where((array(picture) != array(image)).any(-1)), strict=True)) <= {
        (70, 50)
    }


def test_mask_of_nothing_gives_the_image_back(model: Any, postcard: Image.Image) -> None:
    image = small(postcard)
    [picture] = draw(model, begun(STAR, image, Image.new("L", image.size, 0), strength=1.0))
    assert picture.tobytes() == image.tobytes()


def test_mask_of_everything_is_no_mask(model: Any, postcard: Image.Image) -> None:
    image = small(postcard)
    whole = Image.new("L", image.size, 255)
    assert pixels(model, begun(STAR, image, whole, strength=0.8)) == pixels(
        model, begun(STAR, image, strength=0.8)
    )


def test_mask_that_is_soft_blends(model: Any, postcard: Image.Image) -> None:
    ramp = numpy.tile(numpy.linspace(255, 0, 256).round().astype(numpy.uint8), (256, 1))
    drawn = begun(HOUSE.replace("right", "left"), postcard, Image.fromarray(ramp), strength=1.0)
    [picture] = draw(model, drawn)
    changed = numpy.abs(array(picture) - array(postcard)).mean(axis=(0, 2))  # by column
    assert changed[-1] == 0
    assert changed[:32].mean() > changed[112:144].mean() > changed[-32:].mean() > 0
    assert numpy.abs(numpy.diff(changed)).max() < 25  # no edge


def test_negative_prompt_acts_on_an_image(model: Any, postcard: Image.Image) -> None:
    """Away from the night it grows lighter, with more scale more so."""
    light = []
    for scale in (1.0, 2.0, 4.0):
        [picture] = draw(
            model,
            begun(
                "a blue house",
                small(postcard),
                strength=0.8,
                seed=2,
                negative_prompt="a blue house at night",
                true_cfg_scale=scale,
            ),
        )
        light.append(array(picture).mean())
    assert light[0] + 3 < light[1] < light[2]


@pytest.mark.parametrize("size", [(64, 256), (256, 64), (80, 176), (144, 96)])
def test_image_of_any_shape_keeps_pixels_outside_of_the_mask(
    model: Any, postcard: Image.Image, size: tuple[int, int]
) -> None:
    image, mask = small(postcard, size), left_half(size)
    [picture] = draw(model, begun(STAR, image, mask, strength=0.7, num_inference_steps=2))
    assert picture.size == size
    right = numpy.asarray(mask) == 0
    assert (array(picture)[right] == array(image)[right]).all()
    assert (array(picture)[~right] != array(image)[~right]).any()


# As diffusers has it


@pytest.mark.parametrize(("steps", "strength"), [(4, 0.5), (4, 0.75), (5, 0.6), (2, 1.0)])
@pytest.mark.parametrize("masked", [False, True], ids=["image", "mask"])
def test_image_is_what_diffusers_draws(
    model: Any, postcard: Image.Image, steps: int, strength: float, masked: bool
) -> None:
    image = small(postcard, (64, 80))
    mask = left_half(image.size) if masked else None
    [ours] = draw(
        model, begun(HOUSE, image, mask, strength=strength, num_inference_steps=steps, seed=9)
    )
    parts = dict(model._image.components) | {
        name: part for name, part in model._text.components.items() if part is not None
    }
    kind = FluxInpaintPipeline if masked else FluxImg2ImgPipeline
    pipeline = kind(**parts)
    pipeline.set_progress_bar_config(disable=True)
    pixels = pipeline.image_processor.preprocess(image)
    latents = pipeline.vae.encode(pixels).latent_dist.mode()
    latents = (latents - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
    extra = {"mask_image": mask, "masked_image_latents": latents} if masked else {}
    [theirs] = pipeline(
        prompt=HOUSE,
        image=latents.detach(),
        **extra,
        width=image.width,
        height=image.height,
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=0.0,
        max_sequence_length=EMBEDDED.max_sequence_length,
        generator=torch.Generator().manual_seed(9),
    ).images
    error = numpy.abs(array(ours) - array(theirs))
    inside = error if mask is None else error[numpy.asarray(mask) == 255]
    assert inside.max() <= 1  # rounding: the levels are added up in another order


@pytest.mark.parametrize(
    ("steps", "strength", "run"),
    [(4, 0.0, 1), (4, 0.01, 1), (4, 0.25, 1), (4, 0.3, 2), (4, 0.9, 4), (4, 1.0, 4), (100, 0.07, 7), (1, 0.5, 1)],
)  # fmt: skip
def test_steps_that_are_run_are_the_share_of_the_strength(
    steps: int, strength: float, run: int
) -> None:
    request = drawing(num_inference_steps=steps, strength=strength, image="ab" * 32).request
    levels = sigmas_of(request, 1000)
    assert request.steps_to_run == len(levels) == run
    assert levels[0] == max(strength, 0.001) and levels == sorted(levels, reverse=True)


# Exact, told, left


def test_image_batch_has_the_bytes_of_each_alone(model: Any, postcard: Image.Image) -> None:
    first = small(postcard, (64, 80))
    second = first.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    several = [
        begun(HOUSE, first, strength=0.6, seed=1),
        begun(STAR, second, strength=0.6, seed=2),
        begun(BALLOON, first, strength=0.6, seed=3),
    ]
    assert pixels(model, *several) == [pixels(model, one)[0] for one in several]


def test_mask_batch_has_the_bytes_of_each_alone(model: Any, postcard: Image.Image) -> None:
    image = small(postcard, (64, 80))
    masks = [left_half(image.size), left_half(image.size).transpose(Image.Transpose.ROTATE_180)]
    several = [begun(HOUSE, image, mask, strength=0.9, seed=1) for mask in masks]
    assert pixels(model, *several) == [pixels(model, one)[0] for one in several]


def test_image_and_text_alone_are_not_drawn_together(model: Any, postcard: Image.Image) -> None:
    image = small(postcard)
    plain = drawing(HOUSE, width=128, height=128, num_inference_steps=4)
    for one in (begun(HOUSE, image, strength=1.0), begun(HOUSE, image, strength=0.5)):
        assert one.request.batch_key != plain.request.batch_key
    masked = begun(HOUSE, image, left_half(image.size), strength=0.5)
    assert masked.request.batch_key != begun(HOUSE, image, strength=0.5).request.batch_key


def test_image_steps_are_told_with_previews(model: Any, postcard: Image.Image) -> None:
    told: list[tuple[int, int, bytes]] = []

    def note(step: int, steps: int, preview: PreviewOf) -> None:
        told.append((step, steps, preview(0)))

    draw(model, begun(HOUSE, small(postcard), strength=0.0), on_step=note)
    draw(model, begun(HOUSE, small(postcard), strength=0.6), on_step=note)
    assert [one[:2] for one in told] == [(1, 1), (1, 3), (2, 3), (3, 3)]
    assert all(jpeg.startswith(b"\xff\xd8") for *_, jpeg in told)


def test_image_is_left_at_a_step_when_it_is_cancelled(model: Any, postcard: Image.Image) -> None:
    steps: list[int] = []

    def leave(step: int, _steps: int, _preview: PreviewOf) -> None:
        steps.append(step)
        raise Cancelled

    with pytest.raises(Cancelled):
        draw(model, begun(HOUSE, small(postcard), strength=0.9), on_step=leave)
    assert steps == [1]


def test_image_frugally_keeps_pixels_outside_of_the_mask(model: Any, postcard: Image.Image) -> None:
    image = small(postcard, (144, 160))  # a tile has 128 pixels a side
    mask = left_half(image.size)
    drawn = begun(STAR, image, mask, strength=0.9)
    [whole], [tiled] = draw(model, drawn), draw(model, drawn, frugal=True)
    kept = numpy.asarray(mask) == 0
    assert (array(tiled)[kept] == array(image)[kept]).all()
    assert (array(tiled)[~kept] != array(whole)[~kept]).any()
    assert numpy.abs(array(tiled) - array(whole)).mean() < 8


def test_fp4_image_keeps_and_follows_as_bf16_does(fp4_model: Any, postcard: Image.Image) -> None:
    with threads(1):
        [kept] = draw(fp4_model, begun(HOUSE, postcard, strength=0.3, seed=4))
        [followed] = draw(fp4_model, begun(HOUSE, postcard, strength=0.9, seed=4))
    assert read_postcard(kept) == BALLOON_SCENE
    assert read_postcard(followed) == HOUSE_SCENE


def test_fp4_mask_changes_nothing_outside(fp4_model: Any, postcard: Image.Image) -> None:
    image = small(postcard)
    mask = left_half(image.size)
    with threads(1):
        [picture] = draw(fp4_model, begun(STAR, image, mask, strength=1.0, seed=5))
    kept = numpy.asarray(mask) == 0
    assert (array(picture)[kept] == array(image)[kept]).all()
    assert (array(picture)[~kept] != array(image)[~kept]).mean() > 0.5
