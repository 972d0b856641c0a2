"""What dialects share: sizes that a model draws, values of a body, names in errors."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dialects import native
from config.catalog import ModelRow, load_catalog
from config.errors import FieldError, InvalidRequest, UnsupportedHardware
from tests.api.dialects.comfy_prompts import ksampler
from tests.service import RunningService

ROWS = list(load_catalog())


@given(st.sampled_from(ROWS), st.integers(1, 20_000), st.integers(1, 20_000))
def test_fitted_size_is_one_that_the_model_draws(row: ModelRow, width: int, height: int) -> None:
    fitted = native.fitted(row, width, height)
    multiple = 16 if row.cloud is None else row.cloud.size_multiple
    for side in fitted:
        assert row.min_size <= side <= row.max_size
        assert side % multiple == 0 or side in (row.min_size, row.max_size)


@given(st.sampled_from([row for row in ROWS if row.cloud is None]), st.data())
def test_size_that_the_model_draws_is_left_as_it_is(row: ModelRow, data: st.DataObject) -> None:
    sides = st.integers(row.min_size // 16, row.max_size // 16).map(lambda number: number * 16)
    size = data.draw(st.tuples(sides, sides))
    assert native.fitted(row, *size) == size


def test_fitted_size_keeps_its_shape() -> None:
    row = load_catalog()["embedded"]
    assert native.fitted(row, 1920, 1080) == (512, 288)
    assert native.fitted(row, 64, 32) == (256, 128)


@pytest.mark.parametrize(
    "value", [True, "3", 1.5, float("inf"), float("nan"), [], {}, 10**400, -(10**400), 1e300]
)
def test_number_that_is_no_whole_one_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequest) as raised:
        native.whole({"steps": value}, "steps", 1, 9, 4)
    assert raised.value.fields[0].field == "steps"


@pytest.mark.parametrize(("value", "read"), [(None, 4), (3, 3), (3.0, 3), (9, 9)])
def test_number_is_read(value: object, read: int) -> None:
    assert native.whole({"steps": value}, "steps", 1, 9, 4) == read


def test_errors_have_the_clients_names_and_keep_their_words() -> None:
    with pytest.raises(InvalidRequest) as raised:
        with native.in_words({"num_images": "n"}):
            raise InvalidRequest.of("num_images", "is too many")
    assert (raised.value.message, raised.value.fields[0].field) == ("n: is too many", "n")
    with pytest.raises(UnsupportedHardware) as other:
        with native.in_words({"model": "sd_model_checkpoint"}):
            raise UnsupportedHardware(
                "it needs a GPU; models that run here: a",
                fields=[FieldError("model", "it needs a GPU")],
            )
    assert other.value.message == "it needs a GPU; models that run here: a"
    assert other.value.fields[0].field == "sd_model_checkpoint"


def test_every_fault_of_a_body_is_named_at_once() -> None:
    with pytest.raises(InvalidRequest) as raised:
        native.wanted_of(
            {"prompt": "", "num_inference_steps": 0, "seed": -7}, {"num_inference_steps": "steps"}
        )
    assert {fault.field for fault in raised.value.fields} == {"prompt", "steps", "seed"}


UNTELLABLE = {
    "half a pair": r'"\ud800"',
    "half a pair in a name": r'{"\udfff": 1}',
    "no number": "[NaN]",
    "too large": "[1, 1e400]",
    "too deep": "[" * 200 + "]" * 200,
}


@pytest.mark.parametrize("path", ["/prompt", "/sdapi/v1/txt2img", "/v1/images/generations"])
def test_what_no_answer_can_hold_is_refused_by_its_field(
    engine_service: RunningService, path: str
) -> None:
    for kind, literal in UNTELLABLE.items():
        graph = json.dumps(ksampler()) if path == "/prompt" else '"a"'
        content = f'{{"prompt": {graph}, "extra_data": {{"kept": {literal}}}}}'
        answer = engine_service.client.post(path, content=content)
        assert answer.status_code == 400, kind
        assert "extra_data" in answer.text, kind


def test_emoji_in_escapes_is_text(engine_service: RunningService) -> None:
    body = {"prompt": "a", "width": 128, "height": 128, "note": ["\N{BALLOON}"]}
    answer = engine_service.client.post("/sdapi/v1/txt2img", content=json.dumps(body))
    assert answer.json()["parameters"]["note"] == ["\N{BALLOON}"]
