"""What makes the page pleasant: fingers, notices, progress, themes, nothing that jumps, pictures read back."""

from __future__ import annotations

import base64
import re

import pytest
from playwright.sync_api import Page, expect

from tests.frontend.conftest import OpenPage
from tests.frontend.page import (
    PHONE,
    drop,
    expect_picture,
    field,
    is_ready,
    node,
    prompt,
    small,
    stands_still,
    ui,
    wait_until,
)
from tests.lora_files import EMBEDDED, lora
from tests.service import RunningService


def test_comfort_two_fingers_zoom_and_move_the_view(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service), has_touch=True)
    is_ready(page)
    scale = page.locator(".scale")
    page.get_by_role("button", name=re.compile("actual size")).click()
    expect(scale).to_have_text("100 %")
    stands_still(page)
    head = node(page, "image").locator("h2")
    before = head.bounding_box()
    touch = page.context.new_cdp_session(page)

    def fingers(kind: str, *points: tuple[float, float]) -> None:
        listed = [{"x": x, "y": y, "id": index} for index, (x, y) in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": listed})

    fingers("touchStart", (660, 840), (760, 840))
    for step in range(1, 6):
        fingers("touchMove", (660 - 10 * step, 840), (760 + 10 * step, 840))
    fingers("touchEnd")
    expect(scale).to_have_text("200 %")
    expect(page.locator(".node[data-selected=true]")).to_have_count(0)
    # What was between the fingers is there still.
    middle = page.locator("#canvas").bounding_box()["x"] + 710
    assert abs((head.bounding_box()["x"] - middle) - 2 * (before["x"] - middle)) < 4


def test_comfort_notification_comes_when_nobody_looks(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service), permissions=["notifications"])
    is_ready(page)
    # A browser without a screen has no notifications to show: what would be shown is written down.
    page.evaluate("""() => {
            window.told = [];
            window.Notification = class {
                static permission = "granted";
                constructor(title, options) { window.told.push([title, options.body]); }
            };
            Object.defineProperty(document, "hidden", { get: () => window.isElsewhere ?? false });
        }""")
    small(page, num_inference_steps=1)
    page.keyboard.type("a star")
    page.keyboard.press("Enter")
    expect_picture(page, 128)
    assert page.evaluate("told") == []
    page.evaluate("window.isElsewhere = true")
    page.keyboard.press("Enter")
    wait_until(page, "() => told.length > 0")
    expect(node(page, "image").locator(".run-stage")).to_have_text("Finished")
    assert page.evaluate("told") == [["The picture is finished", "a star"]]


def test_comfort_upload_tells_how_far_it_is(service: RunningService, open_page: OpenPage) -> None:
    page = open_page(ui(service))
    is_ready(page)
    seen = page.evaluate_handle("""() => {
            const seen = [];
            new MutationObserver(() => {
                const bar = document.querySelector(".upload progress");
                if (bar && !bar.hidden && bar.value !== seen.at(-1)) seen.push(bar.value);
            }).observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
            return seen;
        }""")
    cdp = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 1_000_000}
    cdp.send("Network.emulateNetworkConditions", slow)
    before = {each["name"] for each in service.client.get("/loras").json()["loras"]}
    drop(page, "#canvas", [("large.safetensors", "", lora(0.2, EMBEDDED, rank=400))])
    expect(field(page, "lora", "name")).to_have_value("large")
    fractions = seen.evaluate("seen => seen")
    assert fractions == sorted(fractions) and any(0 < each < 1 for each in fractions), fractions
    assert "large" not in before
    service.client.delete("/loras/large")


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_comfort_theme_is_kept_over_a_reload(
    engine_service: RunningService, open_page: OpenPage, scheme: str
) -> None:
    page = open_page(ui(engine_service), color_scheme=scheme)
    is_ready(page)
    ground = "getComputedStyle(document.body).backgroundColor"
    first = page.evaluate(ground)
    page.get_by_role("button", name="Dark or light").click()
    chosen = page.evaluate(ground)
    assert chosen != first
    page.reload()
    assert page.evaluate(ground) == chosen


def test_comfort_bar_of_a_page_seen_twice_as_large_has_every_button_in_sight(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service), viewport={"width": 720, "height": 450})
    is_ready(page)
    page.evaluate("document.querySelector('#stop').hidden = false")  # as it is while something runs
    buttons = page.locator(".top :is(button, label):visible")
    for index in range(buttons.count()):
        expect(buttons.nth(index)).to_be_in_viewport(ratio=0.99)
    assert buttons.count() > 10


def test_comfort_phone_that_lies_on_its_side_shows_the_form_and_may_show_the_canvas(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service), viewport={"width": 844, "height": 390})
    is_ready(page)
    expect(page.locator("#form")).to_be_visible()
    page.get_by_label("Canvas", exact=True).first.check()
    expect(page.locator("#canvas")).to_be_visible()


def test_comfort_bar_of_a_small_phone_has_room_for_cancel(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(
        f"{ui(engine_service)}?fp4={engine_service.url}", viewport={"width": 360, "height": 640}
    )
    is_ready(page)
    page.evaluate("document.querySelector('#stop').hidden = false")  # as it is while something runs
    pills, stop = (page.locator(each).bounding_box() for each in ("#services", "#stop"))
    assert pills["x"] + pills["width"] <= stop["x"]
    assert stop["x"] + stop["width"] <= page.locator("#compare").bounding_box()["x"]


def test_comfort_form_beside_a_panel_leaves_the_picture_half_the_room(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service), viewport={"width": 1024, "height": 768})
    is_ready(page)
    page.keyboard.press("Escape")
    page.keyboard.press("v")
    page.click("#panels [data-panel=gallery]")
    form = page.locator("#form")
    expect(form).to_be_visible()
    expect(page.locator("#gallery-search")).to_be_visible()
    room, used = form.evaluate("form => [form.clientWidth, form.scrollWidth]")
    assert used == room < 1024
    assert page.locator("#form-results").evaluate("results => results.offsetWidth") > 0.45 * room


def test_comfort_forced_colours_leave_what_is_chosen_to_be_seen(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service), forced_colors="active")
    is_ready(page)
    chosen = node(page, "sampler").locator(".segments :checked + span")
    other = node(page, "sampler").locator(".segments :not(:checked) + span")
    expect(other).to_have_css("box-shadow", "none")
    expect(chosen).not_to_have_css("box-shadow", "none")


def test_comfort_tools_cover_no_node_of_the_first_graph(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service))
    is_ready(page)
    expect(page.locator(".examples button")).to_have_count(3)
    tools = page.locator("#canvas-tools")
    last = node(page, "prompt").locator(".keys")
    expect(last).to_be_in_viewport(ratio=0.99)
    engine_service.wait_until(
        lambda: _is_above(last, tools), what="has its tools over the Prompt node"
    )


def _is_above(upper, lower) -> bool:
    box = upper.bounding_box()
    return box["y"] + box["height"] <= lower.bounding_box()["y"]


def test_comfort_jpeg_and_webp_of_ours_bring_their_graph_back(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service))
    is_ready(page)
    for output_format, seed in (("jpeg", 9), ("webp", 10)):
        words = f"größer <b> 🎈 {output_format}"
        body = {"width": 128, "height": 128 + 16 * seed, "steps": 1, "seed": seed}
        drawn = engine_service.generate(prompt=words, output_format=output_format, **body).json()
        content = base64.b64decode(drawn["image"])
        drop(page, "#canvas", [(f"a.{output_format}", f"image/{output_format}", content)])
        expect(prompt(page)).to_have_value(words)
        expect(field(page, "sampler", "height")).to_have_value(str(128 + 16 * seed))
        expect(field(page, "sampler", "seed")).to_have_value(str(seed))
        expect(field(page, "sampler", "output_format")).to_have_value(output_format)


def test_comfort_picture_that_began_with_another_is_drawn_again_the_same(
    service: RunningService, open_page: OpenPage
) -> None:
    start = service.generate(width=128, height=128, steps=1, seed=2).json()["images"][0]["id"]
    again = {"image": start, "strength": 0.5, "seed": 3, "width": 128, "height": 128, "steps": 2}
    drawn = service.generate(prompt="a blue ball", **again).json()
    picture = base64.b64decode(drawn["image"])
    page = open_page(ui(service))
    is_ready(page)
    drop(page, "#canvas", [("a.png", "image/png", picture)])
    expect(field(page, "image-input", "strength")).to_have_value("0.5")
    _run(page)
    newest = service.client.get("/images?limit=1").json()["images"][0]
    assert newest["id"] != drawn["images"][0]["id"]
    assert service.client.get(newest["image_url"]).content == picture


def _run(page: Page) -> None:
    page.keyboard.press("Control+Enter")
    stage = node(page, "image").locator(".run-stage")
    expect(stage).to_have_text("Finished")


def test_comfort_keys_work_on_a_phone_too(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service), viewport=PHONE, has_touch=True)
    is_ready(page)
    expect(page.locator(".keys")).to_be_hidden()  # fingers have none
    prompt(page).blur()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    help_box = page.locator("#help").bounding_box()
    assert help_box["x"] >= 0 and help_box["x"] + help_box["width"] <= PHONE["width"]
    page.locator("#help").get_by_text("This list").scroll_into_view_if_needed()
    expect(page.locator("#help").get_by_text("This list")).to_be_in_viewport()
    page.keyboard.press("Escape")
    for key, panel in (("g", "gallery"), ("l", "loras"), ("q", "queue"), ("m", "machine")):
        page.keyboard.press(key)
        expect(page.locator(f"#panel-{panel}")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#panel")).to_be_hidden()
    page.locator("#form-more > summary").click()
    small(page, num_inference_steps=1)
    page.keyboard.type("a star")
    page.keyboard.press("Control+Enter")
    expect_picture(page, 128)


def test_comfort_screen_of_4k_shows_the_whole_graph_large(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service), viewport={"width": 3840, "height": 2160})
    is_ready(page)
    for kind in ("model", "prompt", "sampler", "image"):
        expect(node(page, kind)).to_be_in_viewport(ratio=0.99)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expect(page.locator(".scale")).to_have_text("200 %")
