"""What a picture in a request decides, and what a model's row says against it."""

from __future__ import annotations

import pytest

from config.catalog import Catalog, load_catalog
from config.errors import InvalidRequest
from tests.utils.test_gpu_manager import resolver
from utils.input_pictures import InputPicture
from utils.requests import RequestResolver, Wanted


def picture(width: int = 320, height: int = 240) -> InputPicture:
    return InputPicture(sha256="ab" * 32, width=width, height=height)


@pytest.fixture
def of_text_alone() -> RequestResolver:
    made = resolver()
    row = load_catalog()["embedded"]
    rows = {"embedded": row, "writer": row.model_copy(update={"id": "writer", "ways": ("text",)})}
    made.catalog = Catalog(rows)
    return made


@pytest.mark.parametrize("way", ["image", "mask"])
def test_resolve_way_that_the_model_lacks_is_named(
    of_text_alone: RequestResolver, way: str
) -> None:
    wanted = Wanted(prompt="a", model="writer", **{way: "text"})
    with pytest.raises(InvalidRequest, match=f"{way}: model writer takes none.*embedded"):
        of_text_alone.resolve(wanted, image=picture())


def test_resolve_names_pictures_by_content() -> None:
    wanted = Wanted(prompt="a", model="embedded", image="text", mask="text", strength=0.25)
    mask = InputPicture(sha256="cd" * 32, width=320, height=240)
    request = resolver().resolve(wanted, image=picture(), mask=mask)
    assert request.inputs == ("ab" * 32, "cd" * 32)
    assert (request.width, request.height, request.strength) == (320, 240, 0.25)


def test_resolve_without_a_picture_has_no_strength() -> None:
    request = resolver().resolve(Wanted(prompt="a", model="embedded"))
    assert (request.inputs, request.strength) == ((), None)
    assert request.steps_to_run == request.num_inference_steps


@pytest.mark.parametrize("side", range(1, 5000, 331))
def test_resolve_size_of_any_picture_is_one_that_the_model_draws(side: int) -> None:
    row = load_catalog()["embedded"]
    wanted = Wanted(prompt="a", model="embedded", image="text")
    for width, height in ((side, 200), (200, side), (side, side)):
        request = resolver().resolve(wanted, image=picture(width, height))
        for length in (request.width, request.height):
            assert row.min_size <= length <= row.max_size and length % 16 == 0
