"""A scene: the facts that a caption tells and a postcard shows."""

import random
from dataclasses import dataclass

from scripts.embedded.vocabulary import (
    COLOURS,
    FLOATING_SUBJECTS,
    GROUNDS,
    PLACES,
    SUBJECTS,
    TIMES,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a postcard shows; every word is a key of the tables in `vocabulary`."""

    subject: str
    colour: str
    number: int  # 1 to 3
    place: str  # where a single thing is; two and three stand around the middle
    ground: str
    time: str

    @property
    def floats(self) -> bool:
        """Whether the subject hangs in the sky rather than stands on the ground."""
        return self.subject in FLOATING_SUBJECTS


def random_scene(rng: random.Random) -> Scene:
    """Draw a scene: six in ten single, with every place as likely; the rest two or three."""
    number = rng.choice((1, 1, 1, 2, 3))
    return Scene(
        subject=rng.choice(SUBJECTS),
        colour=rng.choice(tuple(COLOURS)),
        number=number,
        place=rng.choice(PLACES) if number == 1 else "middle",
        ground=rng.choice(tuple(GROUNDS)),
        time=rng.choice(tuple(TIMES)),
    )
