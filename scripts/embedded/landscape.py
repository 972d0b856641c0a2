"""Skies and grounds, drawn into a Pillow image.

All measures are fractions of the frame: x and widths of the width, y of the height, radii of the
shorter side. The caller supersamples.
"""

import random

import numpy
from PIL import Image, ImageDraw

from scripts.embedded.vocabulary import GROUNDS, HORIZON, TIMES, Ground, TimeOfDay

CLOUDY_TIMES = ("noon", "dawn")


def draw_landscape(ground: str, time: str, rng: random.Random, size: tuple[int, int]) -> Image:
    """Return the landscape `ground` at `time` as an RGB image of `size` (width, height) pixels."""
    day = TIMES[time]
    horizon = HORIZON + rng.uniform(-0.012, 0.012)
    picture = _sky(day, horizon, size)
    draw = ImageDraw.Draw(picture)
    if time == "night":
        _stars(draw, rng, size)
    if day.sun is not None:
        _sun(draw, day, rng, size)
    if time in CLOUDY_TIMES:
        _clouds(draw, day, rng, size)
    painter = {
        "hills": _hills,
        "snow": _mountains,
        "sea": _sea,
        "desert": _dunes,
        "wheat": _wheat,
    }[ground]
    painter(draw, GROUNDS[ground], day, rng, size, horizon)
    return picture


def sky_colours(day: TimeOfDay, heights: numpy.ndarray) -> numpy.ndarray:
    """Return the sky's sRGB colours, (n, 3), at `heights`, (n,), fractions of the height."""
    share = numpy.clip(heights / HORIZON, 0.0, 1.0)[:, None]
    top, bottom = (numpy.array(day.hazy(c)) for c in (day.sky_top, day.sky_bottom))
    return top + (bottom - top) * share


def cloud_colour(day: TimeOfDay) -> tuple[float, float, float]:
    """Return the sRGB colour of clouds: the sky at the horizon, blended with white."""
    red, green, blue = (channel + (255 - channel) * 0.6 for channel in day.sky_bottom)
    return red, green, blue


def _rgb(colour: tuple[float, ...]) -> tuple[int, int, int]:
    red, green, blue = (round(channel) for channel in colour)
    return red, green, blue


def _sky(day: TimeOfDay, horizon: float, size: tuple[int, int]) -> Image:
    width, height = size
    rows = sky_colours(day, (numpy.arange(height) + 0.5) / height * HORIZON / horizon)
    pixels = numpy.repeat(rows[:, None, :], width, axis=1)
    return Image.fromarray(pixels.round().astype(numpy.uint8), "RGB")


def _stars(draw: ImageDraw.ImageDraw, rng: random.Random, size: tuple[int, int]) -> None:
    width, height = size
    radius = min(size) * 0.005
    for _ in range(rng.randint(14, 22)):
        x, y = rng.random() * width, rng.random() * height * 0.55
        shade = rng.randint(190, 255)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(shade, shade, shade))


def _sun(
    draw: ImageDraw.ImageDraw, day: TimeOfDay, rng: random.Random, size: tuple[int, int]
) -> None:
    width, height = size
    radius = day.sun_radius * min(size)
    x, y = rng.uniform(0.15, 0.85) * width, rng.uniform(*day.sun_heights) * height
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=day.sun)


def _clouds(
    draw: ImageDraw.ImageDraw, day: TimeOfDay, rng: random.Random, size: tuple[int, int]
) -> None:
    width, height = size
    unit = min(size)
    colour = _rgb(cloud_colour(day))
    for _ in range(rng.choice((0, 1, 1, 2))):
        x, y = rng.uniform(0.05, 0.95) * width, rng.uniform(0.05, 0.13) * height
        for shift, radius in ((-0.055, 0.020), (0.0, 0.032), (0.05, 0.024)):
            cx, cy, r = x + shift * unit, y - radius * unit * 0.6, radius * unit
            draw.ellipse((cx - r * 1.5, cy - r, cx + r * 1.5, cy + r), fill=colour)


def _field(
    draw: ImageDraw.ImageDraw,
    ground: Ground,
    day: TimeOfDay,
    size: tuple[int, int],
    horizon: float,
) -> None:
    width, height = size
    colour = _rgb(day.lit(ground.field, subject=False))
    draw.rectangle((0, round(horizon * height), width, height), fill=colour)


def _mounds(
    draw: ImageDraw.ImageDraw,
    colours: tuple[tuple[float, ...], ...],
    rng: random.Random,
    size: tuple[int, int],
    horizon: float,
    rise: tuple[float, float],
) -> None:
    """Draw one wide ellipse for each colour, peaking `rise` (of the height) above the horizon."""
    width, height = size
    middles = [rng.uniform(0.05, 0.4), rng.uniform(0.6, 0.95)]
    rng.shuffle(middles)
    for colour, middle in zip(colours, middles, strict=True):
        peak = (horizon - rng.uniform(*rise)) * height
        half = rng.uniform(0.40, 0.58) * width
        x = middle * width
        foot = 2 * horizon * height - peak + 0.10 * height
        draw.ellipse((x - half, peak, x + half, foot), fill=_rgb(colour))


def _hills(draw, ground, day, rng, size, horizon) -> None:
    width, height = size
    far = tuple(day.lit(colour, subject=False) for colour in ground.far)
    _mounds(draw, far[::-1], rng, size, horizon, (0.05, 0.13))
    colour = _rgb(day.lit(ground.field, subject=False))
    draw.rectangle((0, round((horizon + 0.04) * height), width, height), fill=colour)
    crest = rng.uniform(0.3, 0.7) * width
    top, foot = (horizon + 0.005) * height, (horizon + 0.12) * height
    draw.ellipse((crest - width, top, crest + width, foot), fill=colour)


def _dunes(draw, ground, day, rng, size, horizon) -> None:
    far = tuple(day.lit(colour, subject=False) for colour in ground.far)
    _mounds(draw, far[:1] + far[:1], rng, size, horizon, (0.015, 0.05))
    _field(draw, ground, day, size, horizon)
    width, height = size
    x = rng.choice((rng.uniform(0.0, 0.3), rng.uniform(0.7, 1.0))) * width
    half, top = rng.uniform(0.45, 0.7) * width, rng.uniform(0.80, 0.86) * height
    draw.ellipse((x - half, top, x + half, 1.25 * height), fill=_rgb(far[1]))


def _mountains(draw, ground, day, rng, size, horizon) -> None:
    width, height = size
    rock = _rgb(day.lit(ground.far[0], subject=False))
    cap = _rgb(day.lit(ground.marks[0], subject=False))
    foot = horizon * height + 1
    for middle in (0.12, 0.5, 0.88):
        x = (middle + rng.uniform(-0.12, 0.12)) * width
        rise = rng.uniform(0.16, 0.27) * height
        half = rise / height * width * rng.uniform(0.85, 1.15)
        peak = foot - rise
        draw.polygon(((x - half, foot), (x, peak), (x + half, foot)), fill=rock)
        low, notch = 0.38, 0.26
        draw.polygon(
            (
                (x, peak),
                (x + half * low, peak + rise * low),
                (x + half * 0.14, peak + rise * notch),
                (x - half * 0.04, peak + rise * (low + 0.03)),
                (x - half * 0.18, peak + rise * notch),
                (x - half * low, peak + rise * low),
            ),
            fill=cap,
        )
    _field(draw, ground, day, size, horizon)


def _sea(draw, ground, day, rng, size, horizon) -> None:
    _field(draw, ground, day, size, horizon)
    width, height = size
    colour = _rgb(day.lit(ground.marks[0], subject=False))
    thickness = max(1, round(min(size) * 0.008))
    for _ in range(rng.randint(7, 10)):
        x, y = (
            rng.uniform(-0.05, 0.95) * width,
            rng.uniform(horizon + 0.04, 0.98) * height,
        )
        draw.line((x, y, x + rng.uniform(0.08, 0.15) * width, y), fill=colour, width=thickness)


def _wheat(draw, ground, day, rng, size, horizon) -> None:
    _field(draw, ground, day, size, horizon)
    width, height = size
    colour = _rgb(day.lit(ground.marks[0], subject=False))
    thickness = max(1, round(min(size) * 0.007))
    for _ in range(rng.randint(26, 34)):
        x, y = rng.random() * width, rng.uniform(horizon + 0.01, 1.0) * height
        lean = rng.uniform(-0.006, 0.010) * width
        draw.line((x, y, x + lean, y - 0.045 * height), fill=colour, width=thickness)
