"""The words of the postcards and the colours they stand for.

Everything that a caption can name is a row in one of these tables. Colours are sRGB, 0 to 255, as
drawn in full light; `TimeOfDay.lit` gives what is left of them at a time of day.
"""

from dataclasses import dataclass

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (252, 202, 70),
    "green": (60, 150, 70),
    "blue": (40, 100, 200),
    "purple": (125, 60, 170),
    "pink": (245, 130, 180),
    "white": (245, 245, 245),
    "black": (30, 30, 35),
    "brown": (120, 75, 45),
}

FLOATING_SUBJECTS = ("balloon", "star", "heart")
STANDING_SUBJECTS = (
    "house",
    "tree",
    "sailboat",
    "car",
    "ball",
    "cube",
    "pyramid",
    "flower",
    "fish",
)
SUBJECTS = FLOATING_SUBJECTS + STANDING_SUBJECTS

PLURALS = {name: f"{name}s" for name in SUBJECTS} | {"fish": "fish"}

NUMBERS = (1, 2, 3)
PLACES = ("middle", "left", "right")

HORIZON = 0.62  # of the height, from the top

SUBJECT_WIDTHS = {
    1: 0.32,
    2: 0.26,
    3: 0.21,
}  # number -> width of each, of the shorter side
GROUP_CENTRES = {
    2: (0.29, 0.71),
    3: (0.19, 0.50, 0.81),
}  # number -> centres, of the width
PLACE_CENTRES = {
    "middle": 0.50,
    "left": 0.22,
    "right": 0.78,
}  # of the width, for a single thing
FLOATING_CENTRE = 0.36  # of the height
STANDING_FOOT = 0.74  # of the height


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """A landscape: its words and the colours that cover it."""

    words: str
    field: Colour  # the foot of the picture
    far: tuple[Colour, ...]  # hills, dunes or peaks behind the field
    marks: tuple[Colour, ...]  # small strokes, stalks and caps


GROUNDS: dict[str, Ground] = {
    "hills": Ground(
        words="green hills",
        field=(106, 174, 75),
        far=((134, 192, 104), (88, 150, 92)),
        marks=(),
    ),
    "snow": Ground(
        words="snowy mountains",
        field=(225, 232, 240),
        far=((104, 114, 140),),
        marks=((250, 251, 255),),
    ),
    "sea": Ground(
        words="the sea",
        field=(30, 95, 150),
        far=(),
        marks=((140, 190, 225),),
    ),
    "desert": Ground(
        words="a desert",
        field=(228, 185, 115),
        far=((214, 166, 104), (238, 202, 140)),
        marks=(),
    ),
    "wheat": Ground(
        words="a wheat field",
        field=(224, 190, 80),
        far=(),
        marks=((182, 142, 44),),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeOfDay:
    """A sky and the light that it gives."""

    words: str
    sky_top: Colour
    sky_bottom: Colour  # at the horizon
    light: float  # factor on the colours of the landscape
    subject_light: float  # factor on the colours of the subject
    haze: float  # how far everything is blended with HAZE_COLOUR
    sun: Colour | None  # sun or moon, not darkened
    sun_radius: float  # of the shorter side
    sun_heights: tuple[float, float]  # range of its centre, of the height

    def lit(self, colour: Colour, *, subject: bool) -> tuple[float, float, float]:
        """Return `colour` (sRGB, 0 to 255) as it appears at this time of day."""
        factor = self.subject_light if subject else self.light
        return self.hazy(tuple(channel * factor for channel in colour))

    def hazy(self, colour: tuple[float, ...]) -> tuple[float, float, float]:
        """Return `colour` (sRGB, 0 to 255) behind this time's haze, light unchanged."""
        red, green, blue = (
            channel * (1 - self.haze) + haze * self.haze
            for channel, haze in zip(colour, HAZE_COLOUR, strict=True)
        )
        return red, green, blue


HAZE_COLOUR: Colour = (210, 212, 215)

TIMES: dict[str, TimeOfDay] = {
    "noon": TimeOfDay(
        words="at noon",
        sky_top=(90, 170, 240),
        sky_bottom=(200, 230, 250),
        light=1.0,
        subject_light=1.0,
        haze=0.0,
        sun=(255, 240, 150),
        sun_radius=0.065,
        sun_heights=(0.11, 0.15),
    ),
    "sunset": TimeOfDay(
        words="at sunset",
        sky_top=(90, 60, 130),
        sky_bottom=(255, 150, 80),
        light=0.85,
        subject_light=0.85,
        haze=0.0,
        sun=(255, 222, 130),
        sun_radius=0.095,
        sun_heights=(0.49, 0.54),
    ),
    "night": TimeOfDay(
        words="at night",
        sky_top=(8, 12, 40),
        sky_bottom=(40, 50, 95),
        light=0.45,
        subject_light=0.75,
        haze=0.0,
        sun=(240, 238, 215),
        sun_radius=0.055,
        sun_heights=(0.11, 0.15),
    ),
    "dawn": TimeOfDay(
        words="at dawn",
        sky_top=(150, 170, 220),
        sky_bottom=(255, 205, 190),
        light=1.0,
        subject_light=1.0,
        haze=0.0,
        sun=(255, 226, 140),
        sun_radius=0.075,
        sun_heights=(0.51, 0.55),
    ),
    "fog": TimeOfDay(
        words="in the fog",
        sky_top=(190, 195, 200),
        sky_bottom=(225, 225, 225),
        light=1.0,
        subject_light=1.0,
        haze=0.3,
        sun=None,
        sun_radius=0.0,
        sun_heights=(0.0, 0.0),
    ),
}
