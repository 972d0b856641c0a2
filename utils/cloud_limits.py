"""What BFL's models have against a request, from their rows, so that it is refused before it costs anything."""

from __future__ import annotations

from fractions import Fraction

from config.catalog import ModelRow
from config.errors import FieldError
from models.bfl_request import WIDEST


def faults_of_size(row: ModelRow, width: int, height: int) -> list[FieldError]:
    """What a model of the cloud has against a size in px, each of whose sides it takes."""
    assert row.cloud is not None
    if row.cloud.size == "pixels" and width * height > row.cloud.max_pixels:
        message = (
            f"{width}x{height} are {width * height} pixels; model {row.id} draws at most {row.cloud.max_pixels} "
            f"({row.cloud.max_pixels / 2**20:.2g} megapixels)"
        )
        return [FieldError("width", message)]
    ratio = Fraction(width, height)
    if row.cloud.size in ("ratio", "resolution") and not 1 / WIDEST <= ratio <= WIDEST:
        message = (
            f"{width}x{height} is too {'wide' if ratio > 1 else 'high'}; model {row.id} draws from 21:9 "
            "to 9:21"
        )
        return [FieldError("width", message)]
    return []


def faults_of_values(
    row: ModelRow, *, steps: int | None, guidance_scale: float | None, strength: float | None
) -> list[FieldError]:
    """What a model of the cloud has against values that a request names; None: it names none."""
    assert row.cloud is not None
    wrong = []
    for field, value, limits in (
        ("num_inference_steps", steps, row.cloud.steps),
        ("guidance_scale", guidance_scale, row.cloud.guidance),
    ):
        if value is not None and limits is not None and not limits[0] <= value <= limits[1]:
            message = (
                f"{value:g} is not from {limits[0]:g} to {limits[1]:g}, which model {row.id} takes"
            )
            wrong.append(FieldError(field, message))
    if strength not in (None, 1) and not row.edits:
        wrong.append(FieldError("strength", f"model {row.id} has no such choice; leave it out"))
    return wrong
