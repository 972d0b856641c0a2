"""Masks of what each subject should cover, drawn by the same painters as the postcards."""

from functools import cache

import numpy
from PIL import Image, ImageDraw

from scripts.embedded.postcards import BODY_HEIGHTS
from scripts.embedded.subjects import PAINTERS, Brush
from scripts.embedded.vocabulary import (
    FLOATING_CENTRE,
    FLOATING_SUBJECTS,
    STANDING_FOOT,
    SUBJECT_WIDTHS,
    TIMES,
)

BACKGROUND = (0, 255, 255)  # no painter uses it
MARKER = (
    200,
    0,
    100,
)  # the subject's own colour in a template, unlike every accessory's
SUPERSAMPLING = 3


@cache
def shape_template(
    subject: str, number: int, size: tuple[int, int], share: float = 1.0
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return what one of `number` subjects covers in a picture of `size` (width, height) pixels.

    Two (height, width) arrays from 0 to 1, the subject at x = 0.5: the part in its own colour,
    its darker side too, and all of it. `share` changes its size.
    """
    width, height = size
    large = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    picture = Image.new("RGB", large, BACKGROUND)
    breadth = SUBJECT_WIDTHS[number] * min(large[0], large[1] * 1.25) * share
    floats = subject in FLOATING_SUBJECTS
    y = (FLOATING_CENTRE if floats else STANDING_FOOT) * large[1]
    brush = Brush(
        draw=ImageDraw.Draw(picture),
        day=TIMES["noon"],
        colour=MARKER,
        x=large[0] / 2,
        y=y - BODY_HEIGHTS.get(subject, 0.0) * breadth,
        width=breadth,
    )
    PAINTERS[subject](brush)
    pixels = numpy.asarray(picture)
    own = pixels[..., 1] == MARKER[1]  # its darker sides too, as they keep the 0
    whole = (pixels != BACKGROUND).any(axis=-1)
    return _reduced(own), _reduced(whole)


def _reduced(mask: numpy.ndarray) -> numpy.ndarray:
    height, width = (edge // SUPERSAMPLING for edge in mask.shape)
    blocks = mask.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING)
    return blocks.mean(axis=(1, 3)).astype(numpy.float32)
