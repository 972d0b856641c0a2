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


# Pictures to look at


def klein(**changes: object) -> RequestResolver:
    """One whose Klein runs on this machine."""
    made = resolver()
    rows = {row.id: row for row in load_catalog()}
    rows["klein"] = rows["flux2-klein-4b"].model_copy(
        update={"id": "klein", "device": "any", "memory_gib": {"bf16": 0.1}, **changes}
    )
    made.catalog = Catalog(rows)
    return made


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((1024, 768), (1024, 768)), ((500, 500), (880, 880)), ((3000, 1000), (1536, 512))],
    ids=str,
)
def test_resolve_first_reference_gives_the_shape_and_the_model_the_area(
    size: tuple[int, int], drawn: tuple[int, int]
) -> None:
    wanted = Wanted(prompt="a", model="klein", reference_images=("one", "two"))
    references = [picture(*size), picture(100, 700)]
    request = klein().resolve(wanted, references=references)
    assert (request.width, request.height) == drawn
    assert request.reference_images == ("ab" * 32,) * 2 and request.strength is None


def test_resolve_asked_side_brings_the_other_in_the_shape_of_the_reference() -> None:
    wanted = Wanted(prompt="a", model="klein", reference_images=("one",), width=512)
    request = klein().resolve(wanted, references=[picture(200, 100)])
    assert (request.width, request.height) == (512, 256)


@pytest.mark.parametrize(("size", "words"), [((63, 900), "no side"), ((2000, 200), "8 times")])
def test_resolve_reference_that_the_model_cannot_look_at_is_named(
    size: tuple[int, int], words: str
) -> None:
    wanted = Wanted(prompt="a", model="klein", reference_images=("one", "two"))
    with pytest.raises(
        InvalidRequest, match=rf"reference_images.1: has {size[0]}x{size[1]}.*{words}"
    ):
        klein().resolve(wanted, references=[picture(), picture(*size)])


def test_resolve_more_references_than_the_model_takes_says_how_many() -> None:
    wanted = Wanted(prompt="a", model="klein", reference_images=("one", "two", "three"))
    with pytest.raises(
        InvalidRequest, match="reference_images: are 3 pictures; model klein takes 2"
    ):
        klein(max_references=2).checked(wanted)


def test_resolve_model_that_needs_pictures_names_those_that_are_missing() -> None:
    made = klein(requires=("image", "mask"))
    with pytest.raises(InvalidRequest) as caught:
        made.checked(Wanted(prompt="a", model="klein", image="one"))
    assert [error.field for error in caught.value.fields] == ["mask"]


def test_resolve_scale_over_the_models_most_is_named() -> None:
    wanted = Wanted(prompt="a", model="klein", guidance_scale=20.5)
    with pytest.raises(InvalidRequest, match="guidance_scale: 20.5 is over 20"):
        klein().checked(wanted)
    assert klein(max_guidance_scale=30.0).checked(wanted).id == "klein"


def test_resolve_backend_alone_is_its_first_model_that_runs_here() -> None:
    made = klein(backend="flux-local")
    request = made.resolve(Wanted(prompt="a", backend="flux-local"))
    assert (request.model, request.backend) == ("klein", "flux-local")
