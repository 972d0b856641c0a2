"""The twelve things that a postcard can show, drawn as flat shapes with a shaded side.

Each painter takes a `Brush`, which maps a local frame to the picture: x from -0.5 to 0.5 over the
subject's width, y in the same unit, downwards. The origin is the centre of the shape's main body
for what floats and the middle of the foot for what stands.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import ImageDraw

from scripts.embedded.vocabulary import Colour, TimeOfDay

CREAM: Colour = (232, 222, 200)
WOOD: Colour = (102, 68, 48)
GLASS: Colour = (170, 215, 240)
TYRE: Colour = (30, 30, 35)
HUB: Colour = (190, 190, 195)
STEM: Colour = (45, 125, 55)
POLLEN: Colour = (252, 214, 90)
DARK: Colour = (25, 25, 28)
LIGHT: Colour = (250, 250, 250)


@dataclass(frozen=True, slots=True, kw_only=True)
class Brush:
    """A place in a picture to draw one subject at."""

    draw: ImageDraw.ImageDraw
    day: TimeOfDay
    colour: Colour  # the subject's own, in full light
    x: float  # of the origin, pixels
    y: float  # of the origin, pixels
    width: float  # of the subject, pixels

    def shade(self, factor: float) -> Colour:
        """Return the subject's colour, darkened (below 1) or blended towards white (above 1)."""
        if factor <= 1:
            red, green, blue = (round(channel * factor) for channel in self.colour)
        else:
            red, green, blue = (
                round(channel + (255 - channel) * (factor - 1)) for channel in self.colour
            )
        return red, green, blue

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        """Fill the polygon through `points` (local units)."""
        self.draw.polygon([self._at(x, y) for x, y in points], fill=self._lit(colour))

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Fill the ellipse around (x, y) with radii rx and ry (local units)."""
        box = (*self._at(x - rx, y - ry), *self._at(x + rx, y + ry))
        self.draw.ellipse(box, fill=self._lit(colour))

    def line(self, points: list[tuple[float, float]], colour: Colour, width: float) -> None:
        """Draw a line through `points`, `width` thick (local units)."""
        pixels = max(1, round(width * self.width))
        self.draw.line([self._at(x, y) for x, y in points], fill=self._lit(colour), width=pixels)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        """Fill the rectangle from (x0, y0) to (x1, y1) (local units)."""
        self.draw.rectangle((*self._at(x0, y0), *self._at(x1, y1)), fill=self._lit(colour))

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return self.x + x * self.width, self.y + y * self.width

    def _lit(self, colour: Colour) -> Colour:
        red, green, blue = (round(channel) for channel in self.day.lit(colour, subject=True))
        return red, green, blue


def _balloon(brush: Brush) -> None:
    brush.line([(-0.30, 0.30), (-0.09, 0.62)], WOOD, 0.025)
    brush.line([(0.30, 0.30), (0.09, 0.62)], WOOD, 0.025)
    brush.polygon([(-0.42, 0.22), (0.42, 0.22), (0.14, 0.52), (-0.14, 0.52)], brush.shade(1.0))
    brush.ellipse(0, -0.02, 0.5, 0.5, brush.shade(1.0))
    brush.ellipse(0, -0.02, 0.17, 0.5, brush.shade(0.8))
    brush.rectangle(-0.11, 0.62, 0.11, 0.78, WOOD)


def _house(brush: Brush) -> None:
    brush.rectangle(-0.40, -0.52, 0.40, 0.0, CREAM)
    brush.polygon([(-0.5, -0.50), (0, -0.98), (0.5, -0.50)], brush.shade(1.0))
    brush.rectangle(-0.09, -0.30, 0.09, 0.0, WOOD)
    brush.rectangle(-0.32, -0.38, -0.16, -0.21, GLASS)
    brush.rectangle(0.16, -0.38, 0.32, -0.21, GLASS)


def _tree(brush: Brush) -> None:
    brush.rectangle(-0.07, -0.5, 0.07, 0.0, WOOD)
    brush.ellipse(-0.24, -0.58, 0.26, 0.25, brush.shade(1.0))
    brush.ellipse(0.24, -0.58, 0.26, 0.25, brush.shade(0.85))
    brush.ellipse(0, -0.80, 0.31, 0.31, brush.shade(1.0))
    brush.ellipse(0.0, -0.55, 0.22, 0.22, brush.shade(1.0))


def _sailboat(brush: Brush) -> None:
    brush.polygon([(-0.5, -0.20), (0.5, -0.20), (0.36, 0.0), (-0.36, 0.0)], WOOD)
    brush.line([(0, -0.20), (0, -1.10)], WOOD, 0.03)
    brush.polygon([(-0.03, -1.02), (-0.03, -0.26), (-0.42, -0.26)], brush.shade(0.85))
    brush.polygon([(0.03, -1.10), (0.03, -0.26), (0.48, -0.26)], brush.shade(1.0))


def _car(brush: Brush) -> None:
    brush.polygon([(-0.26, -0.32), (-0.14, -0.54), (0.18, -0.54), (0.32, -0.32)], brush.shade(1))
    brush.polygon([(-0.17, -0.34), (-0.10, -0.48), (0.01, -0.48), (0.01, -0.34)], GLASS)
    brush.polygon([(0.06, -0.34), (0.06, -0.48), (0.15, -0.48), (0.23, -0.34)], GLASS)
    brush.polygon(
        [
            (-0.5, -0.28),
            (-0.46, -0.34),
            (0.46, -0.34),
            (0.5, -0.26),
            (0.5, -0.08),
            (-0.5, -0.08),
        ],
        brush.shade(1.0),
    )
    for x in (-0.27, 0.27):
        brush.ellipse(x, -0.10, 0.11, 0.11, TYRE)
        brush.ellipse(x, -0.10, 0.05, 0.05, HUB)


def _star(brush: Brush) -> None:
    tips = []
    for corner in range(10):
        radius = 0.52 if corner % 2 == 0 else 0.22
        angle = math.pi * corner / 5
        tips.append((radius * math.sin(angle), 0.02 - radius * math.cos(angle)))
    brush.polygon(tips, brush.shade(1.0))
    brush.polygon([tips[2], tips[3], (0, 0.02)], brush.shade(0.85))
    brush.polygon([tips[4], tips[5], (0, 0.02)], brush.shade(0.85))


def _ball(brush: Brush) -> None:
    brush.ellipse(0, -0.46, 0.5, 0.5, brush.shade(0.8))
    brush.ellipse(-0.035, -0.495, 0.455, 0.455, brush.shade(1.0))
    brush.ellipse(-0.18, -0.66, 0.11, 0.10, brush.shade(1.4))


def _cube(brush: Brush) -> None:
    brush.polygon([(-0.5, -0.72), (-0.28, -0.92), (0.5, -0.92), (0.28, -0.72)], brush.shade(1.18))
    brush.polygon([(0.28, -0.72), (0.5, -0.92), (0.5, -0.18), (0.28, 0.02)], brush.shade(0.7))
    brush.rectangle(-0.5, -0.72, 0.28, 0.02, brush.shade(1.0))


def _pyramid(brush: Brush) -> None:
    brush.polygon([(-0.5, 0.0), (0.02, -0.92), (0.16, 0.06)], brush.shade(1.0))
    brush.polygon([(0.16, 0.06), (0.02, -0.92), (0.5, -0.08)], brush.shade(0.7))


def _heart(brush: Brush) -> None:
    outline = []
    for step in range(60):
        angle = 2 * math.pi * step / 60
        x = 16 * math.sin(angle) ** 3
        y = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle)
        outline.append((x / 32, -(y - math.cos(4 * angle)) / 32))
    brush.polygon(outline, brush.shade(1.0))
    brush.ellipse(-0.25, -0.18, 0.09, 0.08, brush.shade(1.35))


def _flower(brush: Brush) -> None:
    brush.line([(0, -0.5), (0, 0.0)], STEM, 0.07)
    brush.ellipse(0.13, -0.10, 0.13, 0.06, STEM)
    for petal in range(5):
        angle = 2 * math.pi * petal / 5
        x, y = 0.28 * math.sin(angle), -0.68 - 0.28 * math.cos(angle)
        brush.ellipse(x, y, 0.215, 0.215, brush.shade(1.0))
    brush.ellipse(0, -0.68, 0.16, 0.16, POLLEN)
    brush.ellipse(0, -0.68, 0.07, 0.07, WOOD)


def _fish(brush: Brush) -> None:
    brush.polygon([(0.18, -0.30), (0.5, -0.54), (0.5, -0.06)], brush.shade(0.75))
    brush.polygon([(-0.16, -0.50), (0.06, -0.68), (0.12, -0.48)], brush.shade(0.75))
    brush.ellipse(-0.13, -0.30, 0.37, 0.245, brush.shade(1.0))
    brush.ellipse(-0.32, -0.36, 0.055, 0.055, LIGHT)
    brush.ellipse(-0.33, -0.36, 0.028, 0.028, DARK)


PAINTERS: dict[str, Callable[[Brush], None]] = {
    "balloon": _balloon,
    "house": _house,
    "tree": _tree,
    "sailboat": _sailboat,
    "car": _car,
    "star": _star,
    "ball": _ball,
    "cube": _cube,
    "pyramid": _pyramid,
    "heart": _heart,
    "flower": _flower,
    "fish": _fish,
}
