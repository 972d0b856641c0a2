"""The judge reads drawn postcards nearly without error and sees what is wrong."""

import random
from dataclasses import replace

import numpy
import pytest
from PIL import Image

from scripts.embedded.examination import draw_prompts, examine, examine_judge
from scripts.embedded.judge import ATTRIBUTES, find_things, judge, read_postcard
from scripts.embedded.postcards import draw_postcard
from scripts.embedded.scene import Scene

SCENE = Scene(
    subject="tree", colour="orange", number=1, place="right", ground="desert", time="dawn"
)
DOCUMENTED_LEAST = 0.97  # models/embedded/README.md promises this share or more


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return draw_postcard(SCENE, random.Random(0)).picture


def test_judge_on_drawn_pictures_errs_less_than_documented() -> None:
    score = examine_judge(150, seed=21)

    assert score.asked["colour"] == 150
    shares = {name: score.share(name) for name in ATTRIBUTES}
    assert {name: share for name, share in shares.items() if share < DOCUMENTED_LEAST} == {}


def test_examine_pictures_of_other_scenes_score_low() -> None:
    prompts = draw_prompts(40, seed=4)
    rng = random.Random(4)
    pictures = [draw_postcard(prompt.scene, rng).picture for prompt in prompts]

    score = examine(prompts, pictures[1:] + pictures[:1])

    assert score.asked["colour"] == 40
    assert score.share("subject") < 0.4 and score.share("colour") < 0.4


def test_read_postcard_drawn_scene_is_read_back(picture: Image.Image) -> None:
    assert read_postcard(picture) == SCENE


@pytest.mark.parametrize(
    ("attribute", "other"),
    [
        ("subject", "car"),
        ("colour", "blue"),
        ("number", 2),
        ("place", "left"),
        ("ground", "wheat"),
        ("time", "fog"),
    ],
)
def test_judge_one_attribute_differs_only_that_is_wrong(
    picture: Image.Image, attribute: str, other: str | int
) -> None:
    verdict = judge(picture, replace(SCENE, **{attribute: other}))

    assert [name for name, good in verdict.items() if not good] == [attribute]


def test_judge_landscape_without_subject_has_nothing_right() -> None:
    blank = Image.new("RGB", (256, 256), (90, 170, 240))

    assert not any(judge(blank, SCENE).values())


def test_judge_group_is_not_asked_for_its_place() -> None:
    scene = replace(SCENE, number=3, place="middle")
    verdict = judge(draw_postcard(scene, random.Random(3)).picture, scene)

    assert "place" not in verdict and verdict["number"]


def test_find_things_specks_are_not_counted() -> None:
    mask = numpy.zeros((96, 96), dtype=bool)
    mask[40:60, 10:30] = True
    mask[40:60, 60:80] = True
    mask[10:13, 90:92] = True

    things = find_things(mask)

    assert [round(thing.middle, 2) for thing in things] == [0.21, 0.73]


@pytest.mark.parametrize("size", [(128, 128), (384, 256), (256, 512)])
def test_read_postcard_other_sizes_are_read(size: tuple[int, int]) -> None:
    assert read_postcard(draw_postcard(SCENE, random.Random(9), size).picture) == SCENE
