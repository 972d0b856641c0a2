"""Reading a postcard: what a picture shows, measured from its pixels alone.

Time and ground are those whose sky and field colours lie nearest to the picture's upper and lower
rows. Every pixel is then given to the nearest of: the colours the landscape may have at its height
under that light, the accessories' (walls, wheels, stems), and the ten colours a subject may have.
The subject's colour is the one that covers most. Columns that hold it, split at gaps, are the
things: their number is counted and the place is where their middle lies. The shape is the painter
whose mask overlaps best with theirs. The prompt plays no part; `judge` compares afterwards.
"""

from dataclasses import dataclass
from functools import cache

import numpy
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from scripts.embedded.palette import (
    accessory_distance,
    distance,
    landscape_distance,
    row_heights,
    sky_distance,
    subject_distances,
)
from scripts.embedded.scene import Scene
from scripts.embedded.shape_templates import shape_template
from scripts.embedded.vocabulary import COLOURS, GROUNDS, NUMBERS, SUBJECTS, TIMES

ATTRIBUTES = ("subject", "colour", "number", "place", "ground", "time")
SHORTER_SIDE = 96  # pixels, at which pictures are read
SHADE_NEAR = 25.0  # the same for its darker side
NEAR = 60.0  # a colour further away than this is no subject's
BAND = (0.12, 0.92)  # of the height, where subjects are
COUNTED_SHARE = 0.3  # of the largest thing's area: smaller ones are specks
GAP = 0.04  # of the width: columns nearer than this belong to one thing
SHIFT = 3  # pixels, either way, that a template is moved to fit
SIDES = (
    0.37,
    0.63,
)  # of the width: left of the first is "left", right of the second "right"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One counted thing: the columns it takes, as fractions of the width."""

    left: float
    right: float
    area: float  # of the picture, in the subject's colour

    @property
    def middle(self) -> float:
        """Where its middle lies, as a fraction of the width."""
        return (self.left + self.right) / 2


def read_postcard(picture: Image.Image) -> Scene | None:
    """Return the scene that `picture` shows, or None where nothing stands out."""
    pixels = _pixels(picture)
    time = min(TIMES, key=lambda name: _sky_error(pixels, name))
    ground = min(GROUNDS, key=lambda name: _field_error(pixels, name, time))
    own = _own_masks(pixels, ground, time)
    colour = max(COLOURS, key=lambda name: own[name].sum())
    body = own[colour] | _shaded_mask(pixels, colour, ground, time)
    things = find_things(body)
    if not things:
        return None
    number = min(len(things), max(NUMBERS))
    whole = _cleaned(landscape_distance(pixels, ground, time) > 14) | body
    height, width = body.shape
    reach = round(0.19 * min(width, height * 1.25)) + SHIFT
    seen = [
        [_columns(mask, round(thing.middle * width), reach) for mask in (body, whole)]
        for thing in things
    ]
    subject = max(SUBJECTS, key=lambda name: _fit(name, number, (width, height), seen, reach))
    middle = sum(thing.middle for thing in things) / len(things)
    place = "left" if middle < SIDES[0] else "right" if middle > SIDES[1] else "middle"
    return Scene(
        subject=subject,
        colour=colour,
        number=number,
        place=place,
        ground=ground,
        time=time,
    )


def judge(picture: Image.Image, wanted: Scene) -> dict[str, bool]:
    """Return for each attribute whether `picture` has what is `wanted`.

    "place" is there only for a single thing: two and three stand around the middle by themselves.
    """
    seen = read_postcard(picture)
    asked = ATTRIBUTES if wanted.number == 1 else tuple(a for a in ATTRIBUTES if a != "place")
    if seen is None:
        return dict.fromkeys(asked, False)
    return {name: getattr(seen, name) == getattr(wanted, name) for name in asked}


def find_things(mask: numpy.ndarray) -> list[Thing]:
    """Return the things in `mask`, (height, width) of bool, left to right, without specks."""
    height, width = mask.shape
    columns = mask.sum(axis=0)
    filled = numpy.flatnonzero(columns >= max(2, 0.025 * height))
    if len(filled) == 0:
        return []
    starts = numpy.flatnonzero(numpy.diff(filled) > max(1.5, GAP * width)) + 1
    things = [
        Thing(
            left=run[0] / width,
            right=(run[-1] + 1) / width,
            area=float(columns[run[0] : run[-1] + 1].sum() / mask.size),
        )
        for run in numpy.split(filled, starts)
    ]
    largest = max(thing.area for thing in things)
    return [thing for thing in things if thing.area >= COUNTED_SHARE * largest]


def _pixels(picture: Image.Image) -> numpy.ndarray:
    share = SHORTER_SIDE / min(picture.size)
    size = (round(picture.width * share), round(picture.height * share))
    small = picture.convert("RGB").resize(size, Image.Resampling.BOX)
    return numpy.asarray(small, dtype=numpy.float32)


def _sky_error(pixels: numpy.ndarray, time: str) -> float:
    rows = sky_distance(pixels, time)[row_heights(pixels) < 0.32]
    return float(numpy.quantile(rows, 0.3, axis=1).mean())


def _field_error(pixels: numpy.ndarray, ground: str, time: str) -> float:
    foot = pixels[row_heights(pixels) > 0.86]
    land, day = GROUNDS[ground], TIMES[time]
    colours = [land.field] + ([land.far[1]] if ground == "desert" else [])
    errors = [distance(foot, day.lit(colour, subject=False)) for colour in colours]
    return float(numpy.median(numpy.minimum.reduce(errors), axis=1).mean())


def _own_masks(pixels: numpy.ndarray, ground: str, time: str) -> dict[str, numpy.ndarray]:
    """Return for each colour the pixels that a subject of that colour covers."""
    heights = row_heights(pixels)
    band = ((heights > BAND[0]) & (heights < BAND[1]))[:, None]
    others = numpy.minimum(
        landscape_distance(pixels, ground, time), accessory_distance(pixels, time) + 4
    )
    own = subject_distances(pixels, time)
    nearest = own.argmin(axis=0)
    covered = (own.min(axis=0) < numpy.minimum(others, NEAR)) & band
    return {name: _cleaned(covered & (nearest == number)) for number, name in enumerate(COLOURS)}


def _shaded_mask(pixels: numpy.ndarray, colour: str, ground: str, time: str) -> numpy.ndarray:
    """Return the pixels that have the darker side of `colour`, apart from the landscape."""
    day = TIMES[time]
    shades = [tuple(c * factor for c in COLOURS[colour]) for factor in (0.7, 0.8, 0.85)]
    near = numpy.minimum.reduce(
        [distance(pixels, day.lit(shade, subject=True)) for shade in shades]
    )
    heights = row_heights(pixels)
    band = ((heights > BAND[0]) & (heights < BAND[1]))[:, None]
    others = numpy.minimum(
        landscape_distance(pixels, ground, time), accessory_distance(pixels, time) + 4
    )
    return _cleaned((near < numpy.minimum(others, SHADE_NEAR)) & band)


def _cleaned(mask: numpy.ndarray) -> numpy.ndarray:
    """Keep what most of a pixel's 3x3 neighbourhood says."""
    padded = numpy.pad(mask.astype(numpy.int8), 1)
    height, width = mask.shape
    votes = sum(
        padded[row : row + height, column : column + width]
        for row in range(3)
        for column in range(3)
    )
    return votes >= 5


def _fit(
    subject: str, number: int, size: tuple[int, int], seen: list[list[numpy.ndarray]], reach: int
) -> float:
    """Return how well things, each its own colour and all of it, fit the masks of `subject`, 0 to 2 for each."""
    masks = _moved_masks(subject, number, size, reach)
    total = 0.0
    for thing in seen:
        own, whole = (mask.agreements(part) for mask, part in zip(masks, thing, strict=True))
        total += float((own + 0.5 * whole).max())
    return total


def _columns(mask: numpy.ndarray, middle: int, reach: int) -> numpy.ndarray:
    padded = numpy.pad(mask.astype(numpy.float32), ((0, 0), (reach, reach)))
    return padded[:, middle : middle + 2 * reach]


@dataclass(frozen=True, slots=True, kw_only=True)
class _MovedMask:
    """A mask with values from 0 to 1 in every place it is tried at."""

    ways: numpy.ndarray  # (7, 7, rows, columns)
    rows: slice  # of a picture, those that it touches
    area: float

    def agreements(self, seen: numpy.ndarray) -> numpy.ndarray:
        """Return (49,) intersections over unions with `seen`, (height, columns)."""
        shared = numpy.minimum(self.ways, seen[self.rows]).reshape(len(self.ways) ** 2, -1)
        shared = shared.sum(axis=1)
        return shared / numpy.maximum(1e-6, seen.sum() + self.area - shared)


@cache
def _moved_masks(
    subject: str, number: int, size: tuple[int, int], reach: int
) -> tuple[_MovedMask, ...]:
    return tuple(
        _moved(_columns(mask, size[0] // 2, reach))
        for mask in shape_template(subject, number, size)
    )


def _moved(mask: numpy.ndarray) -> _MovedMask:
    filled = numpy.flatnonzero(mask.any(axis=1))
    rows = slice(max(0, filled[0] - SHIFT), filled[-1] + 1 + SHIFT) if len(filled) else slice(0, 1)
    touched = mask[rows]
    ways = sliding_window_view(numpy.pad(touched, SHIFT), touched.shape)
    return _MovedMask(ways=ways, rows=rows, area=float(mask.sum()))
