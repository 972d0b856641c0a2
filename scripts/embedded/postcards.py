"""Postcards: pictures of a scene, drawn at twice the size and reduced.

The layout follows from the scene but for a little jitter; hills, peaks, sun, clouds, stars and
stalks are where the random generator puts them.
"""

import random
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw

from scripts.embedded.landscape import draw_landscape
from scripts.embedded.scene import Scene
from scripts.embedded.subjects import PAINTERS, Brush
from scripts.embedded.vocabulary import (
    COLOURS,
    FLOATING_CENTRE,
    GROUP_CENTRES,
    PLACE_CENTRES,
    STANDING_FOOT,
    SUBJECT_WIDTHS,
    TIMES,
)

SUPERSAMPLING = 2
JITTER = 0.012  # of the frame, either way, in place; four times that in size
BODY_HEIGHTS = {"balloon": 0.10}  # how far a floating body's origin is lifted, of its width


@dataclass(frozen=True, slots=True, kw_only=True)
class Postcard:
    """A drawn picture and where its subject is."""

    picture: Image.Image  # RGB, width x height
    mask: Image.Image  # L, 255 where the subject covers the landscape


def draw_postcard(scene: Scene, rng: random.Random, size: tuple[int, int] = (256, 256)) -> Postcard:
    """Draw `scene` at `size` (width, height) pixels."""
    width, height = size
    large = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    picture = draw_landscape(scene.ground, scene.time, rng, large)
    landscape = picture.copy()
    _draw_subjects(picture, scene, rng)
    changed = ImageChops.difference(picture, landscape).convert("L").point(_covered)
    return Postcard(
        picture=picture.resize(size, Image.Resampling.BOX),
        mask=changed.resize(size, Image.Resampling.BOX),
    )


def subject_places(
    scene: Scene, rng: random.Random, size: tuple[int, int]
) -> list[tuple[float, float, float]]:
    """Return (x, y, width) in pixels of each subject's origin, left to right."""
    width, height = size
    unit = min(width, height * 1.25)
    centres = GROUP_CENTRES.get(scene.number) or (PLACE_CENTRES[scene.place],)
    breadth = SUBJECT_WIDTHS[scene.number] * unit * (1 + rng.uniform(-4, 4) * JITTER)
    y = FLOATING_CENTRE if scene.floats else STANDING_FOOT
    lift = BODY_HEIGHTS.get(scene.subject, 0.0) * breadth
    return [
        (
            (x + rng.uniform(-JITTER, JITTER)) * width,
            (y + rng.uniform(-JITTER, JITTER)) * height - lift,
            breadth,
        )
        for x in centres
    ]


def _draw_subjects(picture: Image.Image, scene: Scene, rng: random.Random) -> None:
    draw = ImageDraw.Draw(picture)
    for x, y, breadth in subject_places(scene, rng, picture.size):
        brush = Brush(
            draw=draw,
            day=TIMES[scene.time],
            colour=COLOURS[scene.colour],
            x=x,
            y=y,
            width=breadth,
        )
        PAINTERS[scene.subject](brush)


def _covered(difference: int) -> int:
    return 255 if difference > 0 else 0
