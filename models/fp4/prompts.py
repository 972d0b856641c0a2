"""Prompts to calibrate with: many subjects, styles and lengths, so that inputs of all kinds are seen."""

from __future__ import annotations

from pathlib import Path

from config.catalog import ModelRow

FILE = "prompts.txt"  # in an FP4 folder: the prompts it was calibrated with, one per line

_SUBJECTS = (
    "a lighthouse on a cliff in a storm",
    "an old man with a white beard reading a newspaper",
    "a bowl of ramen with a soft-boiled egg and spring onions",
    "a red fox curled up in fresh snow",
    "the inside of a cathedral with light through stained glass",
    "a neon sign over a bar that says OPEN ALL NIGHT",
    "two children building a sand castle at low tide",
    "a glass of water on a wooden table, caustics, window light",
    "a cat in a spacesuit floating above the Earth",
    "a mountain village with smoke rising from chimneys",
    "hands shaping a clay pot on a wheel",
    "a steam locomotive crossing a stone viaduct",
    "a bouquet of dried flowers in a chipped enamel jug",
    "a crowded street market in the rain, umbrellas, reflections",
    "a chessboard in the middle of a game, shallow depth of field",
    "an astronaut riding a horse across a salt flat",
)
_STYLES = (
    "photograph, 35 mm film, natural light",
    "oil painting with thick brush strokes",
    "flat vector illustration, four colours, white background",
    "pencil drawing on rough paper",
)
PROMPTS = tuple(f"{subject}, {style}" for subject in _SUBJECTS for style in _STYLES)


def for_model(row: ModelRow, shipped: Path | None) -> tuple[str, ...]:
    """Prompts for a model: those its shipped four-bit copy was calibrated with, else the list above.

    `shipped` is that copy's folder, if the model ships with the project.
    """
    if shipped is not None and (shipped / FILE).is_file():
        return tuple((shipped / FILE).read_text(encoding="utf-8").splitlines())
    return PROMPTS + row.example_prompts
