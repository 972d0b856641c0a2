"""Examining an example LoRA: does it draw its style, and is it still the prompted scene?

What it should draw is known: the filter it was trained on, over what the model draws without it from
the same prompt and seed. That gives three numbers:

- way: how far a picture has gone from the plain one towards the filtered one, 1 - |lora - filtered| /
  |plain - filtered|, with mean absolute differences of pixels: 0 without an effect, 1 if equal;
- found: the share of pictures that are nearest, among the filtered pictures of all prompts, to the
  one of their own prompt;
- attributes, as `judge.py` reads them, beside the same for the filtered pictures: the judge knows
  postcards, so what it cannot read in those it cannot miss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
from diffusers import FluxPipeline
from PIL import Image

from scripts.embedded.examination import Prompt, Score, examine, generate
from scripts.lora.application import applied
from scripts.lora.styles import STYLES

COMPARED_PX = 64  # sides at which pictures are told apart: what is where, not every stroke


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How one LoRA did at one weight."""

    way: float
    found: float
    score: Score
    filtered_score: Score


def examine_lora(
    pipeline: FluxPipeline,
    lora: Path,
    prompts: Sequence[Prompt],
    plain: Sequence[Image.Image],
    *,
    weight: float,
    seed: int,
    size: tuple[int, int] = (256, 256),
    trigger_word: str | None = None,
) -> Verdict:
    """Draw `prompts` at `size` with the LoRA and compare with `plain`, the same without it."""
    wanted = [STYLES[lora.stem](picture) for picture in plain]
    start = "" if trigger_word is None else f"{trigger_word}, "
    asked = [Prompt(text=start + p.text, scene=p.scene, told=p.told) for p in prompts]
    with applied(pipeline, {lora: weight}):
        drawn = list(generate(pipeline, asked, seed=seed, size=size))
    return Verdict(
        way=_way(plain, drawn, wanted),
        found=_found(drawn, wanted),
        score=examine(list(prompts), drawn),
        filtered_score=examine(list(prompts), wanted),
    )


def _way(
    plain: Sequence[Image.Image], drawn: Sequence[Image.Image], wanted: Sequence[Image.Image]
) -> float:
    left = [_difference(d, w) for d, w in zip(drawn, wanted, strict=True)]
    whole = [_difference(p, w) for p, w in zip(plain, wanted, strict=True)]
    return 1 - float(numpy.mean(left) / numpy.mean(whole))


def _found(drawn: Sequence[Image.Image], wanted: Sequence[Image.Image]) -> float:
    seen = numpy.stack([_small(picture) for picture in drawn])
    known = numpy.stack([_small(picture) for picture in wanted])
    errors = ((seen[:, None] - known[None]) ** 2).mean(axis=2)
    return float((errors.argmin(axis=1) == numpy.arange(len(drawn))).mean())


def _difference(one: Image.Image, other: Image.Image) -> float:
    return float(numpy.abs(_pixels(one) - _pixels(other)).mean())


def _pixels(picture: Image.Image) -> numpy.ndarray:
    return numpy.asarray(picture.convert("RGB"), dtype=numpy.float32)


def _small(picture: Image.Image) -> numpy.ndarray:
    return _pixels(picture.resize((COMPARED_PX, COMPARED_PX), Image.Resampling.BOX)).ravel()
