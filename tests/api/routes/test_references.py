"""Pictures to look at, over HTTP, drawn by tiny models of the true classes: taken in every form, kept, told."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.api.routes.test_ways_in import inputs, refused, text
from tests.operations.checkout import copy_checkout
from tests.pictures import file_of, gradient
from tests.service import RunningService
from tests.tiny_models import tiny_model, write_catalog
from utils.metadata import read_png_texts, read_request

FIRST, SECOND = file_of(gradient(96, 64)), file_of(gradient(70, 130))
HASHES = [hashlib.sha256(data).hexdigest() for data in (FIRST, SECOND)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """The service from a copy of the checkout whose catalog has tiny models in the place of large ones."""
    folder = tmp_path_factory.mktemp("tiny")
    copy = copy_checkout(folder / "flux", models=True)
    rows = [
        tiny_model(row_id, folder / row_id) for row_id in ("flux2-klein-4b", "flux-kontext-dev")
    ]
    write_catalog(copy / "config" / "models.toml", rows)
    running = RunningService(folder / "run", main=copy / "main_bf16.py")
    try:
        yield running.start()
    finally:
        running.close()


def klein(service: RunningService, **body: Any) -> httpx2.Response:
    return service.generate(**{"backend": "flux-local", "seed": 1} | body)


def drawn(answer: httpx2.Response) -> bytes:
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["image"])


def test_backend_alone_draws_with_its_default_model(tiny: RunningService) -> None:
    answer = klein(tiny)
    assert answer.json()["model"] == "flux2-klein-4b"
    assert Image.open(io.BytesIO(drawn(answer))).size == (96, 64)


def test_references_act_and_are_shown_by_hash(tiny: RunningService) -> None:
    answer = klein(tiny, reference_images=[text(FIRST), text(SECOND)])
    assert drawn(answer) != drawn(klein(tiny))
    assert tiny.job(answer.json()["id"])["request"]["reference_images"] == HASHES
    assert set(HASHES) <= inputs(tiny)


def test_references_in_all_forms_give_the_same_bytes(tiny: RunningService) -> None:
    first = klein(tiny, seed=5).json()
    data = base64.b64decode(first["image"])
    forms = [
        text(data),
        f"data:image/png;base64,{text(data)}",
        first["images"][0]["id"],
        hashlib.sha256(data).hexdigest(),
    ]
    pictures = {drawn(klein(tiny, reference_images=[form, text(SECOND)])) for form in forms}
    uploads = [("reference_images", ("a.png", data)), ("reference_images", ("b.png", SECOND))]
    sent = {"prompt": "a red balloon", "backend": "flux-local", "seed": "1"}
    answer = tiny.client.post("/upload-image-generate", data=sent, files=uploads)
    assert pictures == {drawn(answer)}


def test_references_of_a_form_may_be_ids_beside_files(tiny: RunningService) -> None:
    drawn(klein(tiny, reference_images=[text(FIRST)]))
    sent = {"prompt": "a red balloon", "backend": "flux-local", "reference_images": HASHES[0]}
    answer = tiny.client.post(
        "/upload-image-generate", data=sent, files={"reference_images": ("b.png", SECOND)}
    )
    drawn(answer)
    assert sorted(tiny.job(answer.json()["id"])["request"]["reference_images"]) == sorted(HASHES)


def test_picture_says_what_was_looked_at_and_its_request_draws_it_again(
    tiny: RunningService,
) -> None:
    data = drawn(klein(tiny, reference_images=[text(FIRST), text(SECOND)]))
    assert read_request(data)["request"]["reference_images"] == HASHES
    assert f'Reference hashes: "{HASHES[0]}, {HASHES[1]}"' in read_png_texts(data)["parameters"]
    inspected = tiny.client.post("/images/inspect", files={"file": ("a.png", data)}).json()
    assert drawn(tiny.client.post("/generate", json=inspected["request"])) == data


def test_references_decide_the_size_where_nobody_does(tiny: RunningService) -> None:
    picture = Image.open(io.BytesIO(drawn(klein(tiny, reference_images=[text(SECOND)]))))
    assert picture.size == (64, 112)  # the area of 96 x 64 in the shape of 70 x 130, at least 64


def test_references_and_an_image_draw_with_both(tiny: RunningService) -> None:
    body = {"image": text(FIRST), "strength": 0.5}
    assert drawn(klein(tiny, **body, reference_images=[text(SECOND)])) != drawn(klein(tiny, **body))


def test_job_with_references_is_drawn_again_by_retry(tiny: RunningService) -> None:
    answer = klein(tiny, reference_images=[text(FIRST)])
    again = tiny.client.post(f"/jobs/{answer.json()['id']}/retry").json()
    job = tiny.wait_for_job(again["id"], "succeeded", "failed")
    assert job["status"] == "succeeded" and job["request"]["reference_images"] == HASHES[:1]


# Kontext: an image is what it looks at


def test_kontext_edits_the_image(tiny: RunningService) -> None:
    body = {"model": "flux-kontext-dev", "seed": 1, "num_inference_steps": 1}
    edited = tiny.generate(**body, image=text(FIRST))
    request = tiny.job(edited.json()["id"])["request"]
    assert (request["image"], request["reference_images"]) == (None, HASHES[:1])
    assert drawn(edited) == drawn(tiny.generate(**body, reference_images=[text(FIRST)]))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"image": text(FIRST), "strength": 0.5}, "strength"),
        ({"image": text(FIRST), "mask": text(FIRST)}, "mask"),
        ({"image": text(FIRST), "reference_images": [text(SECOND)]}, "reference_images"),
        ({"reference_images": [text(FIRST), text(SECOND)]}, "reference_images"),
    ],
    ids=["strength", "mask", "image-and-reference", "two"],
)
def test_kontext_takes_one_picture_and_no_strength(
    tiny: RunningService, body: dict[str, Any], field: str
) -> None:
    answer = tiny.generate(model="flux-kontext-dev", **body)
    assert "flux-kontext-dev" in refused(answer, 400, "invalid_request", field) or field == "mask"


# Refused


@pytest.mark.parametrize(
    ("second", "status", "code"),
    [
        (text(SECOND[:-20]), 422, "bad_file"),
        (text(b"GIF89a" + bytes(64)), 415, "bad_file"),
        ("https://example.com/a.png", 400, "invalid_request"),
        ("0" * 64, 404, "not_found"),
        ("nothing-0", 404, "not_found"),
        (text(file_of(gradient(63, 64))), 400, "invalid_request"),
        (text(file_of(gradient(64, 520))), 400, "invalid_request"),
    ],
    ids=["cut", "gif", "url", "no-hash", "no-id", "small", "long"],
)
def test_reference_that_is_none_is_named_and_nothing_is_kept(
    tiny: RunningService, second: str, status: int, code: str
) -> None:
    before = inputs(tiny)
    fresh = text(file_of(gradient(100, 100 + status % 7)))
    answer = klein(tiny, reference_images=[fresh, second])
    refused(answer, status, code, "reference_images.1")
    assert inputs(tiny) == before


def test_reference_whose_pixels_are_damaged_ends_its_own_job(tiny: RunningService) -> None:
    damaged = bytearray(FIRST)
    at = damaged.index(b"IDAT") + 8
    damaged[at : at + 4] = b"\0\0\0\0"
    answer = klein(tiny, reference_images=[text(SECOND), text(bytes(damaged))])
    assert "reference_images.1: the picture cannot be decoded" in answer.json()["detail"]
    assert [fault["field"] for fault in answer.json()["errors"]] == ["reference_images.1"]
    assert drawn(klein(tiny))


def test_fifth_reference_is_refused_as_json_and_as_a_form(tiny: RunningService) -> None:
    answer = klein(tiny, reference_images=[text(FIRST)] * 5)
    refused(answer, 400, "invalid_request", "reference_images")
    files = [("reference_images", (f"{number}.png", FIRST)) for number in range(5)]
    sent = {"prompt": "a", "backend": "flux-local"}
    answer = tiny.client.post("/upload-image-generate", data=sent, files=files)
    refused(answer, 400, "invalid_request", "reference_images")
