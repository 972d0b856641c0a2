"""Bodies for BFL's cloud against what BFL's document says of each model (`scripts/fake_bfl.json`)."""

from __future__ import annotations

import base64
import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.catalog import ModelRow, load_catalog
from models.bfl_request import RATIOS, RESOLUTIONS, body_of, nearest_ratio, nearest_resolution
from scripts.fake_bfl import FACTS, faults_of
from tests.cloud import cloud_request

ROWS = [row for row in load_catalog() if row.cloud is not None]
PICTURE = b"\x89PNG picture"


def row_of(name: str) -> ModelRow:
    (row,) = [row for row in ROWS if row.source == name]
    return row


def body(row: ModelRow, pictures: int = 0, **values: Any) -> dict[str, Any]:
    given = {"model": row.id, "width": row.default_width, "height": row.default_height}
    given |= {
        "num_inference_steps": row.num_inference_steps,
        "guidance_scale": row.guidance_scale,
    }
    request = cloud_request(**{**given, **values})
    mask = PICTURE if "mask" in row.requires else None
    return body_of(row, request, 7, [PICTURE + bytes([i]) for i in range(pictures)], mask)


def required(row: ModelRow) -> int:
    return int("image" in row.requires)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.source)
def test_body_is_what_bfls_document_takes(row: ModelRow) -> None:
    assert faults_of(FACTS["models"][row.source], body(row, required(row))) == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.source)
def test_body_with_as_many_pictures_as_a_request_may_bring_is_taken(row: ModelRow) -> None:
    most = max(required(row), row.max_references)
    assert row.cloud is not None and most <= row.cloud.max_pictures
    assert faults_of(FACTS["models"][row.source], body(row, most)) == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.source)
def test_row_has_the_limits_of_bfls_document(row: ModelRow) -> None:
    facts, known = row.cloud, FACTS["models"][row.source]
    assert facts is not None
    fields = known["properties"]
    assert facts.seed == ("seed" in fields) and facts.output_format == ("output_format" in fields)
    assert facts.max_pictures == known["max_pictures"]
    for name, limits in (("steps", facts.steps), ("guidance", facts.guidance)):
        if limits is not None:
            assert limits == (fields[name]["minimum"], fields[name]["maximum"])
    if facts.size == "pixels":
        assert row.min_size == fields["width"]["minimum"]
        assert row.max_size <= fields["width"].get("maximum", 4096)
        assert facts.size_multiple == fields["width"]["multipleOf"]
        assert facts.max_pixels <= known.get("max_pixels", row.max_size**2)


def test_every_model_of_the_document_has_a_row() -> None:
    assert sorted(FACTS["models"]) == sorted(row.source for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.source)
@pytest.mark.parametrize("end", ["least", "most"])
def test_body_at_the_ends_of_the_limits_is_taken(row: ModelRow, end: str) -> None:
    assert row.cloud is not None
    side = row.min_size if end == "least" else row.max_size
    other = side
    while row.cloud.size == "pixels" and side * other > row.cloud.max_pixels:
        other -= row.size_multiple
    values: dict[str, Any] = {"width": side, "height": other}
    place = 0 if end == "least" else 1
    if row.cloud.steps is not None:
        values["num_inference_steps"] = row.cloud.steps[place]
    if row.cloud.guidance is not None:
        values["guidance_scale"] = row.cloud.guidance[place]
    assert faults_of(FACTS["models"][row.source], body(row, required(row), **values)) == []


def test_body_counts_its_pictures_up() -> None:
    made = body(row_of("flux-2-pro"), 3)
    texts = [made[name] for name in ("input_image", "input_image_2", "input_image_3")]
    assert [base64.b64decode(text) for text in texts] == [PICTURE + bytes([i]) for i in range(3)]
    assert "input_image_4" not in made


def test_body_of_flux_3_has_ratio_resolution_and_a_list() -> None:
    made = body(row_of("flux-3-image"), 2, width=2048, height=1152)
    assert (made["aspect_ratio"], made["resolution"]) == ("16:9", "1.5k")
    assert len(made["images"]) == 2
    assert set(made) == {"prompt", "aspect_ratio", "resolution", "images"}


def test_body_of_fill_has_picture_and_mask_and_no_size() -> None:
    made = body(row_of("flux-pro-1.0-fill"), 1)
    assert base64.b64decode(made["mask"]) == PICTURE
    assert {"width", "height", "aspect_ratio"}.isdisjoint(made)


def test_body_of_a_ratio_model_has_the_sides_ratio() -> None:
    made = body(row_of("flux-kontext-pro"), width=1024, height=768)
    assert made["aspect_ratio"] == "4:3"


def test_body_is_json() -> None:
    assert json.loads(json.dumps(body(row_of("flux-2-flex"), 1)))["steps"] == 50


@given(st.integers(16, 341).map(lambda n: n * 16), st.integers(16, 341).map(lambda n: n * 16))
def test_nearest_ratio_no_other_is_nearer(width: int, height: int) -> None:
    def apart(ratio: str) -> Fraction:
        across, down = map(int, ratio.split(":"))
        quotient = Fraction(width, height) * Fraction(down, across)
        return max(quotient, 1 / quotient)

    assert apart(nearest_ratio(width, height)) == min(map(apart, RATIOS))


@pytest.mark.parametrize(("name", "pixels"), RESOLUTIONS.items())
def test_nearest_resolution_of_its_own_size_is_itself(name: str, pixels: int) -> None:
    side = round(pixels**0.5)
    assert nearest_resolution(side, side) == name
