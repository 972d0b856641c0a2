"""A request in the words of BFL's cloud: the body of the call that submits it, and what comes of that.

Which words a model knows stands in its row (`CloudFacts`); nothing is sent that BFL's document does not
name for it. Pictures go along as they came, in base64: nothing here decodes them.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from config.catalog import ModelRow
from models.types import GenerationRequest

# Ratios of sides that FLUX 3 knows, and the number of pixels of each of its resolutions.
RATIOS = (
    *("21:9", "2:1", "16:9", "3:2", "7:5", "4:3", "5:4", "1:1"),
    *("4:5", "3:4", "5:7", "2:3", "9:16", "1:2", "9:21"),
)
RESOLUTIONS = {"768sq": 768**2, "1k": 1024**2, "1.5k": 1536**2, "2k": 2048**2, "4k": 4096**2}
WIDEST = Fraction(21, 9)  # of every model that is told a ratio
MAX_PICTURE_BYTES = 20 * 2**20  # what BFL takes, in base64


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudTask:
    """A request that BFL has taken: where to look after it, and what BFL said that it costs."""

    id: str
    polling_url: str
    cost_usd: float | None


def body_of(
    row: ModelRow,
    request: GenerationRequest,
    seed: int,
    pictures: Sequence[bytes],
    mask: bytes | None,
) -> dict[str, Any]:
    """The body for one picture. `pictures` are files: the one to begin with, then those to look at."""
    facts = row.cloud
    assert facts is not None
    body: dict[str, Any] = {"prompt": request.prompt}
    match facts.size:
        case "pixels":
            body |= {"width": request.width, "height": request.height}
        case "ratio":
            ratio = Fraction(request.width, request.height)
            body["aspect_ratio"] = f"{ratio.numerator}:{ratio.denominator}"
        case "resolution":
            body["aspect_ratio"] = nearest_ratio(request.width, request.height)
            body["resolution"] = nearest_resolution(request.width, request.height)
    if facts.steps is not None:
        body["steps"] = request.num_inference_steps
    if facts.guidance is not None:
        body["guidance"] = request.guidance_scale
    if facts.seed:
        body["seed"] = seed
    if facts.output_format:
        body["output_format"] = "png"  # ours is made of it: nothing is lost twice
    return body | _pictures(facts.pictures, [_text(each) for each in pictures], mask)


def _pictures(field: str | None, texts: list[str], mask: bytes | None) -> dict[str, Any]:
    if not texts or field is None:
        return {}
    if field == "images":
        return {"images": texts}
    if field == "input_image":
        names = ["input_image", *(f"input_image_{number}" for number in range(2, len(texts) + 1))]
        return dict(zip(names, texts, strict=True))
    masked = {} if mask is None else {"mask": _text(mask)}
    return {field: texts[0], **masked}


def _text(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def nearest_ratio(width: int, height: int) -> str:
    """The ratio of FLUX 3 that a size comes nearest to."""

    def distance(ratio: str) -> float:
        across, down = map(int, ratio.split(":"))
        return abs(math.log(width / height * down / across))

    return min(RATIOS, key=distance)


def nearest_resolution(width: int, height: int) -> str:
    """The resolution of FLUX 3 whose number of pixels a size comes nearest to."""
    return min(RESOLUTIONS, key=lambda name: abs(math.log(width * height / RESOLUTIONS[name])))
