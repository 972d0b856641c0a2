"""How far each pixel of a picture is from the colours that a landscape or a subject may have.

Distances are Euclidean in sRGB, 0 to 442. Arrays are (height, width).
"""

import numpy

from scripts.embedded import subjects
from scripts.embedded.landscape import CLOUDY_TIMES, cloud_colour, sky_colours
from scripts.embedded.vocabulary import COLOURS, GROUNDS, HORIZON, TIMES

ACCESSORIES = (
    subjects.CREAM,
    subjects.GLASS,
    subjects.HUB,
    subjects.STEM,
    subjects.POLLEN,
    subjects.WOOD,
    subjects.TYRE,
)
FAR = 500.0  # more than any distance


def distance(pixels: numpy.ndarray, colour: numpy.ndarray | tuple[float, ...]) -> numpy.ndarray:
    """Return how far `pixels`, (height, width, 3), are from `colour`, one or one for each row."""
    apart = pixels - numpy.asarray(colour, dtype=numpy.float32)
    apart *= apart
    return numpy.sqrt(apart[..., 0] + apart[..., 1] + apart[..., 2])


def sky_distance(pixels: numpy.ndarray, time: str) -> numpy.ndarray:
    """Return how far each pixel is from the sky of `time` at its height."""
    rows = sky_colours(TIMES[time], row_heights(pixels))
    return distance(pixels, rows[:, None, :])


def landscape_distance(pixels: numpy.ndarray, ground: str, time: str) -> numpy.ndarray:
    """Return how far each pixel is from the nearest colour the landscape may have there."""
    day, land = TIMES[time], GROUNDS[ground]
    y = numpy.broadcast_to(row_heights(pixels)[:, None], pixels.shape[:2])
    nearest = numpy.where(y < HORIZON + 0.05, sky_distance(pixels, time), FAR)
    zones: list[tuple[tuple[float, ...], float, float]] = []
    zones.append((day.lit(land.field, subject=False), HORIZON - 0.03, 1.0))
    low = 1.0 if ground == "desert" else HORIZON + 0.06
    zones += [(day.lit(colour, subject=False), HORIZON - 0.30, low) for colour in land.far]
    top, foot = (HORIZON - 0.30, HORIZON) if ground == "snow" else (HORIZON - 0.05, 1.0)
    zones += [(day.lit(colour, subject=False), top, foot) for colour in land.marks]
    if day.sun is not None:
        reach = day.sun_radius + 0.02
        zones.append((day.sun, day.sun_heights[0] - reach, day.sun_heights[1] + reach))
    if time in CLOUDY_TIMES:
        zones.append((cloud_colour(day), 0.0, 0.15))
    for colour, above, below in zones:
        there = (y >= above) & (y <= below)
        nearest = numpy.where(there, numpy.minimum(nearest, distance(pixels, colour)), nearest)
    return nearest


def subject_distances(pixels: numpy.ndarray, time: str) -> numpy.ndarray:
    """Return (colours, height, width) distances to every colour of COLOURS at `time`."""
    day = TIMES[time]
    return numpy.stack(
        [distance(pixels, day.lit(colour, subject=True)) for colour in COLOURS.values()]
    )


def accessory_distance(pixels: numpy.ndarray, time: str) -> numpy.ndarray:
    """Return how far each pixel is from the nearest colour of a wall, wheel, stem and so on."""
    day = TIMES[time]
    return numpy.stack(
        [distance(pixels, day.lit(colour, subject=True)) for colour in ACCESSORIES]
    ).min(axis=0)


def row_heights(pixels: numpy.ndarray) -> numpy.ndarray:
    """Return the (height,) middles of the rows, as fractions of the height."""
    return (numpy.arange(pixels.shape[0]) + 0.5) / pixels.shape[0]
