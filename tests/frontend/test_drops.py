"""Files that are dropped on the page, and what is pasted: pictures, LoRAs, nodes of another tab."""

from __future__ import annotations

import base64
import json

import pytest
from playwright.sync_api import Page, expect

from tests.frontend.conftest import OpenPage
from tests.frontend.page import (
    add_node,
    drop,
    expect_picture,
    expect_said,
    graph,
    is_ready,
    node,
    prompt,
    ui,
)
from tests.lora_files import EMBEDDED, lora
from tests.pictures import file_of, gradient
from tests.service import RunningService

COPY_A_PICTURE = """async () => {
    const canvas = new OffscreenCanvas(40, 24);
    canvas.getContext("2d").fillRect(0, 0, 40, 24);
    const blob = await canvas.convertToBlob();
    await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
}"""


def opened(open_page: OpenPage, service: RunningService, **options: object) -> Page:
    """A page where nothing has the focus."""
    page = open_page(ui(service), **options)
    is_ready(page)
    page.keyboard.press("Escape")
    expect(prompt(page)).not_to_be_focused()
    return page


def inputs(page: Page) -> list[dict]:
    return [each for each in graph(page)["nodes"] if each["kind"] == "image-input"]


def test_drops_picture_on_the_clipboard_is_pasted_on_the_canvas_and_wired(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = opened(open_page, engine_service, permissions=["clipboard-read", "clipboard-write"])
    page.evaluate(COPY_A_PICTURE)
    page.keyboard.press("Control+v")
    picture = node(page, "image-input").locator("img")
    expect(picture).to_have_js_property("naturalWidth", 40)
    expect(node(page, "image-input").locator(".socket")).to_have_attribute("data-wired", "true")
    page.keyboard.press("Control+z")
    expect(node(page, "image-input")).to_have_count(0)


def test_drops_nodes_copied_in_one_tab_are_pasted_in_another(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = opened(open_page, engine_service)
    prompt(page).fill("a lighthouse")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+a")
    expect(page.locator(".node[data-selected=true]")).to_have_count(4)
    page.keyboard.press("Control+c")
    expect_said(page, "Copied.")
    other = page.context.new_page()
    other.goto(page.url)
    is_ready(other)
    other.keyboard.press("Escape")
    other.keyboard.press("Control+v")
    expect(other.locator(".node")).to_have_count(8)
    expect(prompt(other)).to_have_value("")
    expect(node(other, "prompt", 1).locator("textarea")).to_have_value("a lighthouse")
    assert len(graph(other)["wires"]) == 6


def test_drops_nodes_cut_and_pasted_at_once_are_there_again(
    service: RunningService, open_page: OpenPage
) -> None:
    page = opened(open_page, service)
    prompt(page).fill("a lighthouse")
    node(page, "prompt").locator("h2").click()
    expect(page.locator(".node[data-selected=true]")).to_have_count(1)
    page.keyboard.press("Control+x")
    page.keyboard.press("Control+v")
    page.keyboard.press("Control+v")
    expect(page.locator(".node[data-kind=prompt]")).to_have_count(2)
    expect(page.locator(".node")).to_have_count(5)
    expect(node(page, "prompt", 1).locator("textarea")).to_have_value("a lighthouse")
    for _ in range(3):
        page.keyboard.press("Control+z")
    expect(page.locator(".node")).to_have_count(4)
    assert len(graph(page)["wires"]) == 3


def test_drops_menu_copies_what_is_then_pasted(
    service: RunningService, open_page: OpenPage
) -> None:
    page = opened(open_page, service)
    node(page, "prompt").locator("h2").click(button="right")
    page.get_by_role("menuitem", name="Copy").click()
    expect_said(page, "Copied.")
    page.keyboard.press("Control+v")
    expect(page.locator(".node[data-kind=prompt]")).to_have_count(2)


def test_drops_words_that_are_marked_are_copied_as_everywhere(
    service: RunningService, open_page: OpenPage
) -> None:
    page = opened(open_page, service, permissions=["clipboard-read"])
    page.keyboard.press("Control+a")
    expect(page.locator(".node[data-selected=true]")).to_have_count(4)
    marked = page.evaluate("""() => {
        const words = [...document.querySelectorAll(".node p")].find(each => each.innerText.trim());
        getSelection().selectAllChildren(words);
        return getSelection().toString();
    }""")
    page.keyboard.press("Control+c")
    assert marked and page.evaluate("navigator.clipboard.readText()") == marked
    page.keyboard.press("Control+x")
    expect(page.locator(".node")).to_have_count(4)


def test_drops_words_pasted_beside_every_field_change_nothing(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = opened(open_page, engine_service)
    prompt(page).fill("no node at all")
    prompt(page).press("Control+a")
    prompt(page).press("Control+x")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+v")
    expect_said(page, "What was copied is no node of this page.")
    expect(page.locator(".node")).to_have_count(4)


def test_drops_ten_pictures_at_once_lie_beside_each_other_in_sight(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = opened(open_page, engine_service)
    files = [
        (f"{index}.png", "image/png", file_of(gradient(16 + index, 16))) for index in range(10)
    ]
    drop(page, "#canvas", files)
    nodes = page.locator(".node[data-kind=image-input]")
    expect(nodes).to_have_count(10)
    for index in range(10):
        expect(nodes.nth(index).locator("img")).to_have_js_property("naturalWidth", 16 + index)
        expect(nodes.nth(index)).to_be_in_viewport(ratio=0.99)
    assert len({(each["x"], each["y"]) for each in inputs(page)}) == 10
    wired = [each["from"] for each in graph(page)["wires"] if each["to"] == "n3.image"]
    assert wired == [f"{inputs(page)[0]['id']}.image"]


def test_drops_picture_near_the_edge_is_seen_whole(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = opened(open_page, engine_service)
    drop(page, "#canvas", [("edge.png", "image/png", file_of(gradient(96, 64)))])
    expect(node(page, "image-input").locator("img")).to_have_js_property("naturalWidth", 96)
    expect(node(page, "image-input")).to_be_in_viewport(ratio=0.99)


def test_drops_picture_of_a_format_that_no_service_takes_is_drawn_from(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = opened(open_page, engine_service)
    prompt(page).fill("a star")
    drop(page, "#canvas", [("old.bmp", "image/bmp", file_of(gradient(128, 96), "BMP"))])
    expect(node(page, "image-input").locator("img")).to_have_js_property("naturalWidth", 128)
    page.keyboard.press("Control+Enter")
    expect(node(page, "image").locator(".run-stage")).to_have_text("Finished")
    [job] = engine_service.client.get("/jobs?limit=1").json()["jobs"]
    assert job["request"]["prompt"] == "a star" and job["request"]["image"]


@pytest.mark.parametrize("place", ["#canvas", ".node[data-kind=image-input] .drop"])
def test_drops_picture_that_cannot_be_read_is_told_and_left_out(
    engine_service: RunningService, open_page: OpenPage, place: str
) -> None:
    page = opened(open_page, engine_service)
    drop(page, "#canvas", [("good.png", "image/png", file_of(gradient(16, 16)))])
    expect(node(page, "image-input").locator("img")).to_have_js_property("naturalWidth", 16)
    before = inputs(page)
    drop(page, place, [("phone.heic", "image/heic", b"no picture")])
    expect_said(page, "this browser cannot read the picture")
    assert inputs(page) == before


def test_drops_more_references_than_a_picture_takes_are_told(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = opened(open_page, engine_service)
    add_node(page, "reference")
    files = [(f"{side}.png", "image/png", file_of(gradient(side, 16))) for side in range(16, 21)]
    expect(node(page, "references").locator(".drop")).to_be_visible()
    drop(page, ".node[data-kind=references] .drop", files)
    expect_said(page, "A picture takes 4 references; the others were left out.")
    expect(node(page, "references").locator(".thumb")).to_have_count(4)


def test_drops_lora_that_has_a_node_already_gets_no_second_one(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = opened(open_page, engine_service)
    file = lora(0.4, EMBEDDED)
    try:
        drop(page, "#canvas", [("twice.safetensors", "", file)])
        expect(node(page, "lora").locator("select")).to_have_value("twice")
        drop(page, "#canvas", [("again.safetensors", "", file)])
        expect_said(page, "twice has a node already.")
        expect(page.locator(".node[data-kind=lora]")).to_have_count(1)
        expect(node(page, "lora")).to_have_attribute("data-selected", "true")
    finally:
        engine_service.client.delete("/loras/twice")


def test_drops_lora_beside_a_picture_of_ours_is_wired_into_the_picture_s_graph(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    made = engine_service.generate(prompt="a fish", width=128, height=128, steps=1).json()
    picture = engine_service.client.get(made["image_url"]).content
    page = opened(open_page, engine_service)
    files = [("both.safetensors", "", lora(0.6, EMBEDDED)), ("fish.png", "image/png", picture)]
    try:
        drop(page, "#canvas", files)
        expect(node(page, "lora").locator("select")).to_have_value("both")
        expect(node(page, "lora").locator(".socket")).to_have_attribute("data-wired", "true")
        expect(prompt(page)).to_have_value("a fish")
    finally:
        engine_service.client.delete("/loras/both")


def test_drops_graph_of_a_picture_that_began_with_another_is_seen_whole(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    begun = base64.b64encode(file_of(gradient(128, 128))).decode()
    made = engine_service.generate(prompt="a fish", image=begun, strength=0.5, steps=2).json()
    picture = engine_service.client.get(made["image_url"]).content
    page = opened(open_page, engine_service)
    drop(page, "#canvas", [("fish.png", "image/png", picture)])
    expect(node(page, "image-input").locator(".range")).to_be_visible()
    expect(node(page, "image-input")).to_be_in_viewport(ratio=0.99)
    expect(node(page, "model")).to_be_in_viewport(ratio=0.99)


def test_drops_wire_of_another_graph_has_the_colour_of_its_own_type(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    def workflow(kind: str, other: str, start: str, end: str) -> bytes:
        nodes = [
            {"id": "n1", "kind": kind, "x": 0, "y": 0},
            {"id": "n2", "kind": other, "x": 400, "y": 0},
        ]
        wires = [{"id": "w1", "from": f"n1.{start}", "to": f"n2.{end}"}]
        file = {"format": "flux-api workflow", "version": 1, "nodes": nodes, "wires": wires}
        return json.dumps(file).encode()

    page = opened(open_page, engine_service)
    wire = page.locator("[data-wire=w1]")
    for start, file in (
        ("lora", workflow("lora", "model", "lora", "loras")),
        ("text", workflow("prompt", "sampler", "text", "prompt")),
    ):
        drop(page, "#canvas", [("workflow.json", "application/json", file)])
        expect(wire).to_have_attribute("data-type", start)


def test_drops_graph_that_took_another_ones_place_is_undone_with_its_picture(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = opened(open_page, engine_service)
    prompt(page).fill("a first picture")
    page.keyboard.press("Control+Enter")
    expect_picture(page)
    shown = node(page, "image").locator(".picture-now")
    first = shown.get_attribute("src")
    page.click("#panels [data-panel=workflows]")
    page.get_by_role("button", name="Open Four at once").click()
    expect(prompt(page)).not_to_have_value("a first picture")
    expect(shown).to_be_hidden()
    page.get_by_role("button", name="Undo").click()
    expect(prompt(page)).to_have_value("a first picture")
    expect(shown).to_have_attribute("src", first)


def test_drops_graph_opened_while_another_one_draws_does_not_show_that_ones_picture(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = opened(open_page, engine_service)
    stage = node(page, "image").locator(".run-stage")
    engine_service.client.post("/queue/pause")
    try:
        prompt(page).fill("of the first graph")
        page.keyboard.press("Control+Enter")
        expect(stage).to_have_text("Waiting, next in line")
        page.click("#panels [data-panel=workflows]")
        page.get_by_role("button", name="Open Keep something away").click()
        expect(stage).to_have_text("Ready")
        expect(page.locator("#run-count")).to_have_text("1")
    finally:
        engine_service.client.post("/queue/resume")
    expect(page.locator("#run-count")).to_have_text("")
    expect(stage).to_have_text("Ready")
    page.get_by_role("button", name="Undo").click()
    expect(prompt(page)).to_have_value("of the first graph")
    expect_picture(page)
