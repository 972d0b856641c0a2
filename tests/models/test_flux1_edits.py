"""FLUX.1 Kontext, Fill and Krea on tiny weights: the pictures are those of diffusers' own call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from diffusers import FluxFillPipeline, FluxKontextPipeline, FluxPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.flux import pipeline_flux_kontext
from PIL import Image

from models.families import flux1_kontext
from tests.models.flux1_drawing import pixels, threads
from tests.models.tiny_drawing import Tiny, generator, gradient, load_tiny

CALL = {"prompt": "a cat on a mat", "width": 96, "height": 64, "num_inference_steps": 2}
ONE_STEP = {"num_inference_steps": 1}  # Kontext looks at a picture of a megapixel in each


@pytest.fixture(scope="module")
def kontext(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    with threads(1):
        yield load_tiny("flux-kontext-dev", tmp_path_factory.mktemp("kontext"))


@pytest.fixture(scope="module")
def fill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    with threads(1):
        yield load_tiny("flux-fill-dev", tmp_path_factory.mktemp("fill"))


def right_half(value: int = 255) -> Image.Image:
    mask = Image.new("L", (96, 64), 0)
    mask.paste(value, (48, 0, 96, 64))
    return mask


def test_krea_is_diffusers_own_picture(tmp_path_factory: pytest.TempPathFactory) -> None:
    krea = load_tiny("flux-krea-dev", tmp_path_factory.mktemp("krea"))
    theirs = krea.pipeline(FluxPipeline)(
        **CALL, guidance_scale=4.5, generator=generator(), max_sequence_length=32
    ).images[0]
    assert krea.draw().tobytes() == theirs.tobytes()


# Kontext


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of those it was trained with, all of a megapixel; diffusers looks them up elsewhere."""
    for module in (flux1_kontext, pipeline_flux_kontext):
        monkeypatch.setattr(module, "PREFERRED_KONTEXT_RESOLUTIONS", [(64, 128), (96, 80)])


def test_kontext_edit_is_diffusers_own_picture(kontext: Tiny) -> None:
    is_diffusers_own_edit(kontext, gradient(40, 200))


@pytest.mark.usefixtures("small_sizes")
def test_kontext_edit_of_another_shape_is_diffusers_own_picture(kontext: Tiny) -> None:
    is_diffusers_own_edit(kontext, gradient(96, 64))


def is_diffusers_own_edit(kontext: Tiny, picture: Image.Image) -> None:
    theirs = kontext.pipeline(FluxKontextPipeline)(
        **CALL | ONE_STEP, image=picture, guidance_scale=2.5, generator=generator(), max_sequence_length=32,
        max_area=96 * 64,
    ).images[0]  # fmt: skip
    drawn = kontext.draw(references=(picture,), **ONE_STEP)
    assert drawn.tobytes() == theirs.tobytes() != kontext.draw(**ONE_STEP).tobytes()


@pytest.mark.parametrize(("width", "height"), [(64, 1024), (336, 80), (256, 256)])
def test_kontext_draws_the_size_that_was_asked_for(kontext: Tiny, width: int, height: int) -> None:
    drawn = kontext.draw(width=width, height=height, num_inference_steps=1)
    assert drawn.size == (width, height)


def test_kontext_with_a_negative_prompt_is_another_picture(kontext: Tiny) -> None:
    guided = kontext.draw(negative_prompt="a dog", true_cfg_scale=3.0)
    assert guided.tobytes() != kontext.draw().tobytes()


@pytest.mark.usefixtures("small_sizes")
def test_kontext_drawn_together_has_the_bits_it_has_alone(kontext: Tiny) -> None:
    picture = gradient()
    several = [kontext.drawing(seed=seed, references=(picture,), **ONE_STEP) for seed in (1, 2)]
    assert pixels(kontext.model, *several) == [pixels(kontext.model, each)[0] for each in several]


# Fill


def theirs_filled(fill: Tiny, picture: Image.Image, mask: Image.Image, **call: Any) -> Image.Image:
    """diffusers' with our noise, from which it would draw other noise, and no noise in the autoencoder."""
    noise = fill.model._noise([fill.drawing(image=picture, mask=mask)], fill.model._image.vae.dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()
        )
        return fill.pipeline(FluxFillPipeline)(
            **CALL | call, image=picture, mask_image=mask, latents=noise, guidance_scale=30.0,
            max_sequence_length=32,
        ).images[0]  # fmt: skip


def test_fill_is_diffusers_own_picture_inside_of_the_mask(fill: Tiny) -> None:
    picture, mask = gradient(), right_half()
    ours = numpy.array(fill.draw(image=picture, mask=mask))
    theirs = numpy.array(theirs_filled(fill, picture, mask))
    assert (ours[:, 48:] == theirs[:, 48:]).all()


def test_fill_keeps_every_pixel_outside_of_the_mask(fill: Tiny) -> None:
    picture = gradient()
    drawn = numpy.array(fill.draw(image=picture, mask=right_half()))
    assert (drawn[:, :48] == numpy.array(picture)[:, :48]).all()


def test_fill_sees_what_lies_outside_of_the_mask(fill: Tiny) -> None:
    one, other = (
        numpy.array(fill.draw(image=picture, mask=right_half()))
        for picture in (gradient(), gradient(turned=True))
    )
    assert (one[:, 48:] != other[:, 48:]).any()


def test_fill_of_less_strength_keeps_more_of_the_picture(fill: Tiny) -> None:
    drawn = [
        fill.draw(image=gradient(), mask=right_half(), strength=strength, num_inference_steps=4)
        for strength in (0.25, 1.0)
    ]
    assert drawn[0].tobytes() != drawn[1].tobytes()


def test_fill_drawn_together_has_the_bits_it_has_alone(fill: Tiny) -> None:
    masks = [right_half(), Image.new("L", (96, 64), 255)]
    several = [
        fill.drawing(seed=seed, image=gradient(turned=bool(seed)), mask=mask)
        for seed, mask in enumerate(masks)
    ]
    assert pixels(fill.model, *several) == [pixels(fill.model, each)[0] for each in several]
