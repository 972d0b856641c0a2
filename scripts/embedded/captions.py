"""Captions of scenes: many ways to say the same, with words that mean nothing thrown in.

A caption tells the subject always, the place whenever it is not the middle, and the rest nearly
always. `told` says what, so that a text encoder can be asked only for what it was told.
"""

import random
from dataclasses import dataclass

from scripts.embedded.scene import Scene
from scripts.embedded.vocabulary import GROUNDS, PLURALS, TIMES

EMPTY_SHARE = 0.07
COLOUR_UNTOLD_SHARE = 0.03
GROUND_UNTOLD_SHARE = 0.08
TIME_UNTOLD_SHARE = 0.08
SYNONYM_SHARE = 0.2
ADJECTIVE_SHARE = 0.12
OPENING_SHARE = 0.35
ENDING_SHARE = 0.25

OPENINGS = (
    "a picture of",
    "a photo of",
    "a beautiful photo of",
    "a painting of",
    "a postcard of",
    "a postcard with",
    "an illustration of",
    "a drawing of",
    "an image of",
    "photo of",
    "picture of",
    "there is",
    "draw",
    "show me",
    "please draw",
)
ENDINGS = (
    "8k",
    "4k",
    "highly detailed",
    "masterpiece",
    "best quality",
    "trending on artstation",
    "flat design",
    "vector art",
    "sharp focus",
    "beautiful",
    "simple shapes",
    "cinematic lighting",
    "wide shot",
    "for my mother",
    "please",
)
ADJECTIVES = (
    "beautiful",
    "small",
    "big",
    "little",
    "large",
    "old",
    "new",
    "shiny",
    "lovely",
    "bright",
    "nice",
    "cute",
    "single",
    "lonely",
)
SUBJECT_SYNONYMS = {
    "balloon": ("hot-air balloon", "hot air balloon"),
    "sailboat": ("boat", "sailing boat", "sail boat"),
    "car": ("automobile",),
    "ball": ("sphere",),
    "house": ("cottage", "home"),
    "cube": ("box",),
}
GROUND_SYNONYMS = {
    "hills": (
        "hills",
        "grassy hills",
        "the hills",
        "rolling green hills",
        "a green meadow",
    ),
    "snow": (
        "snow",
        "the snowy mountains",
        "mountains",
        "a snowy landscape",
        "the snow",
    ),
    "sea": ("the ocean", "a blue sea", "the water", "a calm sea", "sea"),
    "desert": ("the desert", "sand dunes", "desert", "a sandy desert"),
    "wheat": ("a field of wheat", "wheat", "the wheat field", "a golden wheat field"),
}
TIME_SYNONYMS = {
    "noon": ("at midday", "in the daytime", "on a sunny day", "by day", "noon"),
    "sunset": ("in the evening", "at dusk", "sunset", "under a sunset sky"),
    "night": (
        "by night",
        "under the stars",
        "in the moonlight",
        "night",
        "at midnight",
    ),
    "dawn": ("at sunrise", "early in the morning", "dawn", "in the morning"),
    "fog": ("in fog", "in the mist", "on a foggy day", "fog", "in thick fog"),
}
PLACE_WORDS = {
    "left": (
        "on the left",
        "on the left",
        "on the left side",
        "to the left",
        "at the left",
    ),
    "right": (
        "on the right",
        "on the right",
        "on the right side",
        "to the right",
        "at the right",
    ),
    "middle": ("", "", "", "in the middle", "in the centre", "in the center"),
}
NUMBER_WORDS = {
    1: ("one", "1"),
    2: ("two", "two", "2", "a pair of"),
    3: ("three", "three", "3"),
}
FLOATING_PREPOSITIONS = ("over", "over", "above", "in front of")
STANDING_PREPOSITIONS = ("in front of", "in front of", "on", "before")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A caption and which attributes of the scene it tells."""

    text: str
    told: frozenset[str]


def plain_caption(scene: Scene) -> str:
    """Return the one canonical caption of `scene`, the form in which the vocabulary is written."""
    preposition = "over" if scene.floats else "in front of"
    place = f" on the {scene.place}" if scene.place != "middle" else ""
    thing = _thing(scene.subject, scene.colour, scene.number)
    ground, time = GROUNDS[scene.ground].words, TIMES[scene.time].words
    return f"{thing}{place} {preposition} {ground} {time}"


def random_caption(scene: Scene, rng: random.Random) -> Caption:
    """Return one of the many captions of `scene`, now and then an empty one."""
    if rng.random() < EMPTY_SHARE:
        return Caption(text="", told=frozenset())
    told = {"subject", "colour", "number", "place", "ground", "time"}
    for attribute, share in (
        ("colour", COLOUR_UNTOLD_SHARE),
        ("ground", GROUND_UNTOLD_SHARE),
        ("time", TIME_UNTOLD_SHARE),
    ):
        if rng.random() < share:
            told.discard(attribute)
    text = _arranged(scene, told, rng)
    if rng.random() < OPENING_SHARE:
        text = f"{rng.choice(OPENINGS)} {text}"
    if rng.random() < ENDING_SHARE:
        text = f"{text}, {', '.join(_ending(rng) for _ in range(rng.choice((1, 1, 2))))}"
    if rng.random() < 0.1:
        text = f"{text}."
    return Caption(text=text, told=frozenset(told))


def _arranged(scene: Scene, told: set[str], rng: random.Random) -> str:
    thing = _thing(
        _subject_word(scene, rng),
        scene.colour if "colour" in told else "",
        scene.number,
        adjective=_adjective(rng) if rng.random() < ADJECTIVE_SHARE else "",
        number_word=(rng.choice(NUMBER_WORDS[scene.number]) if rng.random() < 0.3 else ""),
    )
    place = rng.choice(PLACE_WORDS[scene.place])
    ground = _reworded(GROUNDS[scene.ground].words, GROUND_SYNONYMS[scene.ground], rng)
    time = _reworded(TIMES[scene.time].words, TIME_SYNONYMS[scene.time], rng)
    ground = ground if "ground" in told else ""
    time = time if "time" in told else ""
    order = rng.random()
    if order < 0.60:
        prepositions = FLOATING_PREPOSITIONS if scene.floats else STANDING_PREPOSITIONS
        setting = f"{rng.choice(prepositions)} {ground}" if ground else ""
        return _joined(" ", thing, place, setting, time)
    if order < 0.75:
        return _joined(", ", _joined(" ", ground, time), _joined(" ", thing, place))
    if order < 0.85:
        return _joined(", ", time, _joined(" ", thing, place), ground)
    parts = [part for part in (place, ground, time) if part]
    rng.shuffle(parts)
    return _joined(", ", thing, *parts)


def _thing(
    subject: str,
    colour: str,
    number: int,
    *,
    adjective: str = "",
    number_word: str = "",
) -> str:
    if number == 1:
        words = _joined(" ", adjective, colour, subject)
        article = "an" if words[0] in "aeiou" else "a"
        return f"{number_word or article} {words}"
    plural = PLURALS.get(subject, f"{subject}s" if subject[-1] != "x" else f"{subject}es")
    return _joined(" ", number_word or ("two", "three")[number - 2], adjective, colour, plural)


def _subject_word(scene: Scene, rng: random.Random) -> str:
    return _reworded(scene.subject, SUBJECT_SYNONYMS.get(scene.subject, ()), rng)


def _reworded(words: str, synonyms: tuple[str, ...], rng: random.Random) -> str:
    return rng.choice(synonyms) if synonyms and rng.random() < SYNONYM_SHARE else words


def _adjective(rng: random.Random) -> str:
    return rng.choice(ADJECTIVES) if rng.random() < 0.75 else _unknown_word(rng)


def _ending(rng: random.Random) -> str:
    return rng.choice(ENDINGS) if rng.random() < 0.6 else _unknown_word(rng)


def _unknown_word(rng: random.Random) -> str:
    letters = [rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiouy") for _ in range(3)]
    return "".join(letters)[: rng.randint(3, 6)]


def _joined(separator: str, *parts: str) -> str:
    return separator.join(part for part in parts if part)
