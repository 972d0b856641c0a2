"""Pictures that come back, are compared, and change with LoRAs: both services, a real browser."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageChops, PngImagePlugin
from playwright.sync_api import Page, expect

from tests.frontend.conftest import OpenPage
from tests.frontend.page import (
    add_node,
    drop,
    expect_picture,
    expect_said,
    field,
    graph,
    is_ready,
    node,
    prompt,
    small,
    stands_still,
    ui,
    wait_until,
)
from tests.lora_files import EMBEDDED, SDXL, lora
from tests.service import ENGINE_MAIN, RunningService


@pytest.fixture(scope="module")
def fp4(
    engine_service: RunningService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    """An FP4 service that the page of the BF16 one may call, with the same library, a stand-in as that one."""
    running = RunningService(
        tmp_path_factory.mktemp("fp4"),
        main=ENGINE_MAIN,
        TEST_ENGINE="scripted",
        TEST_PRECISION="fp4",
        FLUX_PAGE_ORIGINS=engine_service.url,
        FLUX_LORA_DIR=str(engine_service.lora_dir),
    ).start()
    try:
        running.wait_for_workers()
        yield running
    finally:
        running.close()


@pytest.fixture
def no_loras(service: RunningService, engine_service: RunningService) -> Iterator[None]:
    """Takes out of the libraries what the test put in."""
    both = (service, engine_service)
    before = [names_of_loras(each) for each in both]
    yield
    for each, names in zip(both, before, strict=True):
        for name in names_of_loras(each) - names:
            each.client.delete(f"/loras/{name}")


def names_of_loras(service: RunningService) -> set[str]:
    return {each["name"] for each in service.client.get("/loras").json()["loras"]}


def newest(service: RunningService) -> tuple[dict, bytes]:
    [image] = service.client.get("/images?limit=1").json()["images"]
    return image, service.client.get(image["image_url"]).content


def run(page: Page, service: RunningService) -> tuple[dict, bytes]:
    """Runs the graph and returns the picture that it drew."""
    before = newest_id(service)
    page.keyboard.press("Control+Enter")
    service.wait_until(lambda: newest_id(service) != before, what="drew nothing")
    expect(node(page, "image").locator(".run-stage")).to_have_text("Finished")
    return newest(service)


def masks(page: Page) -> list[str | None]:
    """What the Mask nodes of the graph hold."""
    return [each["values"]["mask"] for each in graph(page)["nodes"] if each["kind"] == "mask"]


def newest_id(service: RunningService) -> str:
    images = service.client.get("/images?limit=1").json()["images"]
    return images[0]["id"] if images else ""


# Restore


def test_results_png_dropped_on_the_canvas_draws_the_same_bytes(
    service: RunningService, open_page: OpenPage
) -> None:
    answer = service.generate(
        prompt="a fish, größer <b> 🎈", negative_prompt="a house", true_cfg_scale=3.5,
        width=128, height=144, steps=2, seed=77, num_images=2,
    )  # fmt: skip
    assert answer.status_code == 200
    second = service.client.get(answer.json()["images"][1]["image_url"]).content
    page = open_page(ui(service))
    is_ready(page)
    drop(page, "#canvas", [("picture.png", "image/png", second)])
    expect(prompt(page)).to_have_value("a fish, größer <b> 🎈")
    expect(field(page, "negative", "text")).to_have_value("a house")
    _, drawn = run(page, service)
    assert drawn == second


def test_results_png_of_a1111_gives_its_prompt_and_settings(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text(
        "parameters",
        "a lighthouse\nNegative prompt: people\n"
        "Steps: 20, Sampler: Euler, CFG scale: 3, Seed: 42, Size: 512x768, Model: foreign",
    )
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=texts)
    page = open_page(ui(engine_service))
    is_ready(page)
    drop(page, "#canvas", [("a1111.png", "image/png", buffer.getvalue())])
    expect(prompt(page)).to_have_value("a lighthouse")
    expect(field(page, "sampler", "seed")).to_have_value("42")
    expect(field(page, "sampler", "height")).to_have_value("768")
    expect_said(page, "its model foreign is not here")


def test_results_picture_without_words_becomes_an_input_that_is_drawn_from(
    service: RunningService, open_page: OpenPage
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    page = open_page(ui(service))
    is_ready(page)
    drop(page, "#canvas", [("red.png", "image/png", buffer.getvalue())])
    expect(node(page, "image-input").locator("img")).to_have_js_property("naturalWidth", 64)
    page.reload()
    picture = node(page, "image-input").locator("img")
    expect(picture).to_have_js_property("naturalWidth", 64)
    is_ready(page)
    prompt(page).fill("a red ball")
    socket = node(page, "image-input").locator(".socket")
    for wired in ("false", "true"):  # the list's first: the wire to cut, then the sampler again
        socket.focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        expect(socket).to_have_attribute("data-wired", wired)
    assert any(wire["to"] == "n3.image" for wire in graph(page)["wires"])
    page.keyboard.press("Control+Enter")
    expect_picture(page, 128)  # the picture's size, as near as the model draws it


def test_results_forged_request_of_a_picture_leaves_the_graph_alone(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service))
    is_ready(page)
    prompt(page).fill("mine")
    for name, written in (("a.png", "no JSON"), ("b.png", "null"), ("c.png", '{"request": 1}')):
        texts = PngImagePlugin.PngInfo()
        texts.add_itxt("flux_api", written)
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=texts)
        drop(page, "#canvas", [(name, "image/png", buffer.getvalue())])
        expect_said(page, f"{name} was not opened: its flux_api text holds no request.")
        expect(prompt(page)).to_have_value("mine")


def test_results_mask_is_painted_on_the_picture_and_undone(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "blue").save(buffer, "PNG")
    page = open_page(ui(engine_service))
    is_ready(page)
    drop(page, "#canvas", [("blue.png", "image/png", buffer.getvalue())])
    expect(node(page, "image-input").locator("img")).to_have_js_property("naturalWidth", 64)
    page.keyboard.press("Escape")
    add_node(page, "mask")
    page.keyboard.press("Escape")
    node(page, "mask").locator(".socket[data-side=in]").focus()
    page.keyboard.press("Enter")
    page.locator(".menu li", has_text="Image input").click()
    page.get_by_role("button", name="Arrange").click()
    surface = node(page, "mask").locator("canvas")
    expect(surface).to_have_js_property("width", 64)
    surface.scroll_into_view_if_needed()
    stands_still(page)
    box = surface.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + box["height"] / 2, steps=8)
    page.mouse.up()
    engine_service.wait_until(lambda: masks(page) != [None], what="has no mask")
    painted = "canvas => canvas.getContext('2d').getImageData(32, 32, 1, 1).data[3]"
    assert surface.evaluate(painted) == 255
    page.keyboard.press("Control+z")
    engine_service.wait_until(lambda: masks(page) == [None], what="has a mask")
    assert surface.evaluate(painted) == 0


def test_results_settings_of_a_gallery_picture_come_back(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    assert engine_service.generate(
        prompt="three hearts", width=160, height=128, steps=3, seed=5
    ).is_success
    page = open_page(ui(engine_service))
    is_ready(page)
    small(page, num_inference_steps=1)
    prompt(page).fill("a boat")
    page.keyboard.press("Enter")
    expect_picture(page, 128)
    page.click("#panels [data-panel=gallery]")
    page.get_by_role("button", name="three hearts").first.click()
    page.locator("#viewer").get_by_role("button", name="Use these settings").click()
    expect(page.locator("#viewer")).to_be_hidden()
    # What the graph before it has drawn is not this one's.
    expect(node(page, "image").locator(".placeholder")).to_be_visible()
    expect(prompt(page)).to_have_value("three hearts")
    expect(field(page, "sampler", "width")).to_have_value("160")
    expect(field(page, "sampler", "seed")).to_have_value("5")


def test_results_gallery_picture_is_used_as_input_and_its_prompt_copied(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    body = {"prompt": "copied words", "width": 128, "height": 128}
    [drawn] = engine_service.generate(**body).json()["images"]
    page = open_page(ui(engine_service), permissions=["clipboard-read", "clipboard-write"])
    is_ready(page)
    page.click("#panels [data-panel=gallery]")
    page.get_by_role("button", name="copied words").first.click()
    viewer = page.locator("#viewer")
    viewer.get_by_role("button", name="Copy prompt").click()
    wait_until(
        page,
        """() => {
            const message = document.querySelector("#message");
            const { left, top, width, height } = message.getBoundingClientRect();
            const seen = document.elementFromPoint(left + width / 2, top + height / 2);
            return message.textContent === "Copied." && seen === message;
        }""",
    )  # over the viewer and not below it
    assert page.evaluate("navigator.clipboard.readText()") == "copied words"
    viewer.get_by_role("button", name="Use as input").click()
    expect(viewer).to_be_hidden()
    expect_said(page, "The picture is an input now.")
    expect(page.locator("body > .bottom > #message")).to_be_attached()
    expect(node(page, "image-input").locator("img")).to_have_js_property("naturalWidth", 128)
    [start] = [each for each in graph(page)["nodes"] if each["kind"] == "image-input"]
    assert start["values"]["image"] == drawn["id"]
    wires = {(each["from"], each["to"]) for each in graph(page)["wires"]}
    assert (f"{start['id']}.image", "n3.image") in wires


def test_results_gallery_goes_on_to_older_pictures(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    for index in range(8):  # more than a page of them, eight a job
        body = {"prompt": f"many-{index}", "width": 128, "height": 128, "num_images": 8}
        assert engine_service.generate(**body).is_success
    page = open_page(ui(engine_service))
    is_ready(page)
    page.click("#panels [data-panel=gallery]")
    page.fill("#gallery-search", "many-")
    expect(page.locator("#tiles img[alt=many-7]")).to_have_count(8)
    wait_until(
        page,
        """() => {
            const panel = document.querySelector("#panel");
            panel.scrollTo(0, panel.scrollHeight);
            return document.querySelectorAll("#tiles > li").length === 64;
        }""",
    )
    expect(page.locator("#tiles img[alt=many-0]")).to_have_count(8)
    keys = page.locator("#tiles > li").evaluate_all("all => all.map(each => each.dataset.key)")
    assert len(set(keys)) == 64  # none twice


# Compare


def test_results_one_click_compares_fp4_and_bf16_with_the_figures_of_python(
    engine_service: RunningService, fp4: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service, fp4), origins=(engine_service.url, fp4.url))
    is_ready(page)
    is_ready(page, "fp4")
    small(page, num_inference_steps=2)
    page.keyboard.type("grainy striped hills")
    page.click("#compare")
    stage = page.locator(".compare-stage")
    expect(stage).to_have_attribute("data-complete", "true")
    figures = page.locator(".figures")
    for fact in ("SSIM", "FP4, seed", "BF16, seed", " s · ", "GiB"):
        expect(figures).to_contain_text(fact)
    words = figures.inner_text()
    told = float(re.search(r"PSNR\s+([\d.]+) dB", words)[1])
    (a, first), (b, second) = newest(fp4), newest(engine_service)
    assert a["seed"] == b["seed"] and (a["precision"], b["precision"]) == ("fp4", "bf16")
    difference = ImageChops.difference(*(Image.open(io.BytesIO(each)) for each in (first, second)))
    samples = difference.tobytes()
    mean = sum(value * value for value in samples) / len(samples)
    assert told == pytest.approx(10 * math.log10(255**2 / mean), abs=0.1)
    page.get_by_role("button", name="Look at the comparison closely").click()
    slider = page.locator("#comparison .cut")
    expect(slider).to_be_focused()
    page.keyboard.press("Home")
    cut = page.locator("#comparison .compare-stage")
    assert cut.evaluate("stage => stage.style.getPropertyValue('--cut')") == "0%"
    page.locator("#comparison input[value=difference]").check()
    expect(page.locator("#comparison .side-map")).to_be_visible()


# LoRAs


def test_results_three_loras_dropped_at_once_are_wired_and_change_the_picture(
    service: RunningService, open_page: OpenPage, no_loras: None
) -> None:
    page = open_page(ui(service))
    is_ready(page)
    small(page, num_inference_steps=2)
    field(page, "sampler", "seed").fill("3")
    prompt(page).fill("a red balloon")
    _, plain = run(page, service)
    files = [
        (f"style {index}<i>.safetensors", "", lora(0.1 * index, EMBEDDED)) for index in (1, 2, 3)
    ]
    drop(page, "#canvas", files)
    nodes = page.locator(".node[data-kind=lora]")
    expect(nodes).to_have_count(3)
    for index in range(3):
        expect(nodes.nth(index)).to_be_in_viewport(ratio=0.99)
        expect(field(page, "lora", "name", index)).not_to_have_value("")
    image, styled = run(page, service)
    names = {each["name"] for each in service.client.get("/loras").json()["loras"]}
    assert {each["name"] for each in image["request"]["loras"]} <= names
    assert len(image["request"]["loras"]) == 3
    assert _pixels(plain) != _pixels(styled)
    wires = [wire for wire in graph(page)["wires"] if wire["to"] == "n1.loras"]
    assert len(wires) == 3
    expect(page.locator("i")).to_have_count(0)


def test_results_lora_goes_once_to_services_that_share_a_library(
    engine_service: RunningService, fp4: RunningService, open_page: OpenPage, no_loras: None
) -> None:
    page = open_page(ui(engine_service, fp4), origins=(engine_service.url, fp4.url))
    is_ready(page)
    is_ready(page, "fp4")
    sent: list[str] = []
    page.on("request", lambda each: sent.append(each.url) if each.method == "PUT" else None)
    drop(page, "#canvas", [("shared.safetensors", "", lora(0.7, EMBEDDED))])
    expect(field(page, "lora", "name")).to_have_value("shared")
    assert len(sent) == 1
    assert {each.client.get("/loras/shared").status_code for each in (engine_service, fp4)} == {200}


def test_results_bad_lora_files_say_why_on_their_nodes(
    service: RunningService, open_page: OpenPage, no_loras: None
) -> None:
    page = open_page(ui(service), errors_expected=True)
    is_ready(page)
    drop(
        page,
        "#canvas",
        [
            ("broken.safetensors", "", b"this is no LoRA"),
            ("foreign.safetensors", "", lora(0.5, SDXL)),
        ],
    )
    expect(node(page, "lora", 0).locator(".upload .error")).to_have_text(re.compile(r"\w+"))
    expect(node(page, "lora", 0).get_by_role("button", name="Try again")).to_be_visible()
    expect(node(page, "lora", 1)).to_contain_text(re.compile("does not fit|cannot be applied"))


def test_results_lora_that_does_not_fit_is_refused_in_words(
    service: RunningService, open_page: OpenPage, no_loras: None
) -> None:
    service.client.put("/loras/other.safetensors", content=lora(0.5, SDXL))
    page = open_page(ui(service), errors_expected=True)
    is_ready(page)
    page.click("#panels [data-panel=loras]")
    page.get_by_role("button", name="Use other").click()
    expect(node(page, "lora")).to_be_in_viewport(ratio=0.99)
    prompt(page).fill("a red ball")
    page.keyboard.press("Enter")  # the service answers with 409
    why = "LoRA other cannot be used with embedded"
    expect(node(page, "image").locator(".run-detail")).to_have_text(re.compile(f"^{why}"))
    expect_said(page, why)
    expect(field(page, "lora", "name")).to_have_attribute("aria-invalid", "true")


def test_results_library_renames_and_deletes(
    service: RunningService, open_page: OpenPage, no_loras: None
) -> None:
    service.client.put("/loras/before.safetensors", content=lora(0.3))
    page = open_page(ui(service))
    is_ready(page)
    page.click("#panels [data-panel=loras]")
    card = page.locator("#panel-loras .lora", has_text="before")
    for fact in ("rank 1", "kohya", "FLUX.1", "Fits embedded"):
        expect(card).to_contain_text(fact)
    page.get_by_label("Search LoRAs").fill("no file has these")
    expect(page.locator("#panel-loras .empty")).to_have_text("Nothing has these words.")
    page.get_by_label("Search LoRAs").fill("befo")
    card.get_by_role("button", name="Use before").click()
    expect(field(page, "lora", "name")).to_have_value("before")
    card.get_by_role("button", name="Edit before").click()
    page.get_by_label("Name", exact=True).fill("after")
    page.get_by_label("Trigger words").fill("woodcut, ink")
    page.keyboard.press("Enter")
    page.get_by_label("Search LoRAs").fill("")
    renamed = page.locator("#panel-loras .lora", has_text="after")
    expect(renamed).to_contain_text("woodcut, ink")
    expect(field(page, "lora", "name")).to_have_value("after")
    renamed.get_by_role("button", name="Delete after").click()
    page.click("#confirm-yes")
    expect(renamed).to_have_count(0)
    assert service.client.get("/loras/after").status_code == 404


def _pixels(png: bytes) -> bytes:
    return Image.open(io.BytesIO(png)).tobytes()


def test_results_job_of_the_page_has_what_the_graph_says(
    engine_service: RunningService, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page(ui(engine_service))
    is_ready(page)
    small(page, num_inference_steps=1)
    page.keyboard.type("a star")
    image, png = run(page, engine_service)
    metadata = json.loads(Image.open(io.BytesIO(png)).info["flux_api"])
    assert metadata["request"]["prompt"] == "a star" == image["prompt"]
    assert metadata["request"]["loras"] == []


# One of two services goes


def test_results_one_service_that_dies_is_told_and_the_other_one_draws_on(
    engine_service: RunningService, fp4: RunningService, open_page: OpenPage
) -> None:
    page = open_page(
        ui(engine_service, fp4), origins=(engine_service.url, fp4.url), errors_expected=True
    )
    is_ready(page)
    is_ready(page, "fp4")
    fp4.kill()
    notice = page.locator("#notice")
    expect(notice).to_contain_text(f"at {fp4.url} does not answer")
    expect(notice).to_contain_text("BF16 still draws")
    small(page, num_inference_steps=1)
    page.keyboard.type("a fish")
    page.keyboard.press("Enter")
    expect_picture(page, 128)
    fp4.start()
    expect(notice).to_be_hidden()
    is_ready(page, "fp4")
