"""Pictures that go into a picture, from the page and back: masks, by the real model, and references, by a stand-in
whose pictures follow from them. Real ones look at them in `tests/api/routes/test_references.py`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.frontend.conftest import OpenPage
from tests.frontend.page import (
    add_node,
    drop,
    expect_picture,
    field,
    graph,
    is_ready,
    node,
    prompt,
    ui,
)
from tests.pictures import file_of, gradient
from tests.service import ENGINE_MAIN, RunningService

FIRST, SECOND = file_of(gradient(96, 64)), file_of(gradient(70, 130))


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service that draws for FLUX.2 Klein, which looks at references, on any device."""
    running = RunningService(
        tmp_path_factory.mktemp("klein"),
        main=ENGINE_MAIN,
        TEST_ENGINE="scripted",
        TEST_ANYWHERE="1",
    )
    try:
        yield running.start()
    finally:
        running.close()


def newest(service: RunningService) -> dict:
    return service.client.get("/images?limit=1").json()["images"][0]


def run(page: Page, service: RunningService) -> tuple[dict, bytes]:
    """Runs the graph and returns the picture that it drew."""
    page.keyboard.press("Control+Enter")
    expect(node(page, "image").locator(".run-stage")).to_have_text("Finished")
    image = newest(service)
    return image, service.client.get(image["image_url"]).content


def test_inputs_references_are_dropped_drawn_with_and_restored_to_the_same_bytes(
    klein: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(klein))
    is_ready(page)
    field(page, "model", "backend").select_option("flux-local")
    page.keyboard.press("Escape")
    add_node(page, "reference")
    page.keyboard.press("Escape")
    expect(node(page, "references").locator(".drop")).to_be_visible()
    drop(
        page,
        ".node[data-kind=references] .drop",
        [("a.png", "image/png", FIRST), ("b.png", "image/png", SECOND)],
    )
    expect(node(page, "references").locator(".thumb")).to_have_count(2)
    node(page, "references").locator(".socket[data-side=out]").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # the only one that it fits: the sampler
    field(page, "sampler", "seed").fill("5")
    prompt(page).fill("a house")
    first, drawn = run(page, klein)
    hashes = [hashlib.sha256(each).hexdigest() for each in (FIRST, SECOND)]
    assert first["request"]["reference_images"] == hashes
    assert first["request"]["model"] == "flux2-klein-4b"
    expect_picture(page, first["width"])

    restored = open_page(ui(klein))
    is_ready(restored)
    drop(restored, "#canvas", [("picture.png", "image/png", drawn)])
    expect(node(restored, "references").locator(".thumb")).to_have_count(2)
    again, same = run(restored, klein)
    assert again["id"] != first["id"]
    assert again["request"]["reference_images"] == hashes
    assert same == drawn


def test_inputs_mask_of_a_picture_is_restored_and_draws_the_same_bytes(
    service: RunningService, open_page: OpenPage
) -> None:
    mask = gradient(144, 160).convert("L").point(lambda value: 255 if value > 128 else 0)
    body = {
        "image": base64.b64encode(file_of(gradient(144, 160))).decode(),
        "mask": base64.b64encode(file_of(mask)).decode(),
        "strength": 0.75,
        "num_inference_steps": 2,
        "seed": 4,
    }
    answer = service.generate(**body).json()
    drawn = base64.b64decode(answer["image"])
    page = open_page(ui(service))
    is_ready(page)
    drop(page, "#canvas", [("picture.png", "image/png", drawn)])
    expect(node(page, "mask")).to_be_attached()
    expect(field(page, "image-input", "strength")).to_have_value("0.75")
    assert {each["kind"] for each in graph(page)["nodes"]} >= {"mask", "image-input"}
    image, same = run(page, service)
    assert image["job_id"] != answer["id"]
    assert same == drawn
