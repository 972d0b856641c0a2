"""Drawn postcards show their scene, and captions tell it."""

import random
from dataclasses import replace

import numpy
import pytest

from scripts.embedded.captions import plain_caption, random_caption
from scripts.embedded.postcards import draw_postcard
from scripts.embedded.scene import Scene, random_scene
from scripts.embedded.vocabulary import COLOURS, SUBJECTS, TIMES

SCENE = Scene(subject="ball", colour="red", number=1, place="left", ground="hills", time="noon")


def _pixels(scene: Scene, seed: int = 0, size: tuple[int, int] = (256, 256)) -> numpy.ndarray:
    return numpy.asarray(draw_postcard(scene, random.Random(seed), size).picture).astype(int)


def _share_near(pixels: numpy.ndarray, colour: tuple[float, ...]) -> float:
    return float((numpy.abs(pixels - numpy.array(colour)).max(axis=-1) <= 3).mean())


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("time", TIMES)
def test_draw_postcard_every_subject_covers_its_lit_colour(subject: str, time: str) -> None:
    scene = replace(SCENE, subject=subject, time=time)

    share = _share_near(
        _pixels(scene, size=(128, 128)), TIMES[time].lit(COLOURS["red"], subject=True)
    )

    assert 0.015 < share < 0.11


def test_draw_postcard_same_generator_same_picture() -> None:
    assert (_pixels(SCENE, seed=3) == _pixels(SCENE, seed=3)).all()
    assert (_pixels(SCENE, seed=3) != _pixels(SCENE, seed=4)).any()


@pytest.mark.parametrize(("place", "low", "high"), [("left", 0, 0.4), ("right", 0.6, 1)])
def test_draw_postcard_place_bounds_the_mask(place: str, low: float, high: float) -> None:
    mask = draw_postcard(replace(SCENE, place=place), random.Random(1)).mask
    columns = numpy.flatnonzero(numpy.asarray(mask).max(axis=0)) / mask.width

    assert low <= columns.min() and columns.max() <= high


@pytest.mark.parametrize("number", [1, 2, 3])
def test_draw_postcard_mask_has_one_run_of_columns_for_each_thing(number: int) -> None:
    scene = replace(SCENE, number=number, place="middle")
    mask = numpy.asarray(draw_postcard(scene, random.Random(2)).mask) > 0
    edges = numpy.diff(mask.any(axis=0).astype(int), prepend=0)

    assert (edges == 1).sum() == number


@pytest.mark.parametrize("size", [(128, 128), (512, 128), (128, 512), (208, 320)])
def test_draw_postcard_any_size_has_that_size_and_a_subject(size: tuple[int, int]) -> None:
    card = draw_postcard(SCENE, random.Random(5), size)

    assert card.picture.size == size and card.mask.size == size
    assert numpy.asarray(card.mask).max() == 255


def test_plain_caption_tells_every_attribute() -> None:
    assert plain_caption(SCENE) == "a red ball on the left in front of green hills at noon"
    three = replace(SCENE, subject="fish", number=3, place="middle", ground="sea", time="fog")
    assert plain_caption(three) == "three red fish in front of the sea in the fog"
    star = replace(SCENE, subject="star", colour="orange", place="middle", ground="wheat")
    assert plain_caption(star) == "an orange star over a wheat field at noon"


def test_random_caption_names_a_side_whenever_there_is_one() -> None:
    rng = random.Random(11)
    for _ in range(500):
        scene = random_scene(rng)
        caption = random_caption(scene, rng)
        words = caption.text.replace(",", " ").replace(".", " ").split()
        sides = {"left", "right"} & set(words)
        wanted = {scene.place} - {"middle"} if caption.told else set()
        assert sides == wanted, caption.text


def test_random_caption_varies_and_is_sometimes_empty() -> None:
    rng = random.Random(12)
    captions = [random_caption(SCENE, rng) for _ in range(400)]

    assert len({caption.text for caption in captions}) > 250
    empty = [caption for caption in captions if not caption.text]
    assert 8 <= len(empty) <= 60
    assert all(not caption.told for caption in empty)
