"""The page in a real browser against real services: first look, runs, services that go and come."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Route, expect

from config.settings import ROOT
from tests.cloud import KEY, StandIn
from tests.frontend.conftest import DESKTOP, OpenPage
from tests.frontend.page import (
    PHONE,
    drop,
    expect_picture,
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
from tests.service import ENGINE_MAIN, KeyedService, RunningService, free_port

Start = Callable[..., RunningService]

# Chromium's own score; from 0.1 on its makers call it poor.
MOST_SHIFT = 0.02
IS_SEEN = """() => [...document.querySelectorAll("#viewer-picture, #tiles li:first-child img")]
    .every(({complete, naturalWidth}) => complete && naturalWidth)"""
COUNT_SHIFT = """() => {
    window.shift = 0;
    new PerformanceObserver((list) => {
        for (const { hadRecentInput, value } of list.getEntries()) shift += hadRecentInput ? 0 : value;
    }).observe({ type: "layout-shift", buffered: true });
}"""


@pytest.fixture
def static_page() -> Iterator[str]:
    """The page as plain files, the way port 9000 has it."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        cwd=ROOT / "frontend",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _until_it_answers(url)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def _until_it_answers(url: str) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 60
    while True:
        try:
            direct.open(url, timeout=60).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.05)


# First look


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_page_first_picture_takes_three_actions_and_nothing_jumps(
    service: RunningService, open_page: OpenPage, viewport: dict[str, int]
) -> None:
    page = open_page(ui(service), viewport=viewport, reduced_motion="no-preference")  # 1
    page.evaluate(COUNT_SHIFT)
    expect(prompt(page)).to_be_focused()
    page.keyboard.type("a green tree at noon")  # 2
    page.keyboard.press("Enter")  # 3
    expect_picture(page)
    expect(node(page, "image").locator(".run-stage")).to_have_text("Finished")
    assert page.evaluate("shift") <= MOST_SHIFT
    for fact in ("256 × 256", "4 steps", "BF16"):
        expect(node(page, "image").locator(".facts-line")).to_contain_text(fact)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click("#panels [data-panel=gallery]")
    expect(page.locator("#tiles img").first).to_have_attribute("alt", "a green tree at noon")


def test_page_opens_telling_what_draws_and_why(
    service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(service))
    model = service.client.get("/api/models").json()["models"][0]
    expect(node(page, "model")).to_contain_text("No GPU is used")
    expect(field(page, "model", "model")).to_contain_text(f"{model['title']} (default)")
    examples = node(page, "prompt").locator(".examples button")
    expect(examples).to_have_text(model["example_prompts"][:3])
    examples.nth(1).click()
    expect(prompt(page)).to_have_value(model["example_prompts"][1])
    expect(prompt(page)).to_be_focused()


def test_page_form_at_phone_size_has_everything_the_canvas_has(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service), viewport={"width": 360, "height": 740})
    is_ready(page)
    expect(page.locator("#canvas")).to_be_hidden()
    page.locator("#form-more > summary").click()
    small(page, num_inference_steps=1)
    page.click("#form-add button:has-text('Negative prompt')")
    expect(field(page, "negative", "text")).to_be_focused()
    page.keyboard.type("a house")
    prompt(page).fill("three stars")
    page.click("#form-run")
    expect_picture(page, 128)
    [job] = engine_service.client.get("/jobs?limit=1").json()["jobs"]
    assert job["request"]["negative_prompt"] == "a house"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click("#panels [data-panel=gallery]")
    page.locator("#tiles button[title='three stars']").first.click()
    expect(page.locator("#viewer-prompt")).to_have_text("three stars")


# Settings


def test_page_form_wires_a_picture_to_the_mask_that_was_added_before_it(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service), viewport=PHONE)
    is_ready(page)
    for name in ("Mask", "Image input"):
        page.get_by_role("button", name=f"Add {name}").click()
    expect(node(page, "image-input").locator(".drop")).to_be_visible()
    ends = {wire["to"] for wire in graph(page)["wires"] if wire["from"] == "n6.image"}
    assert ends == {"n3.image", "n5.image"}


def test_page_field_error_of_the_service_stands_at_its_field(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service), errors_expected=True)
    is_ready(page)
    small(page, width=250, height=250)
    page.keyboard.type("a red ball")
    page.keyboard.press("Control+Enter")
    error = node(page, "sampler").locator("[data-field=width] .error")
    expect(error).to_contain_text("250 is not a multiple of 16")
    expect(field(page, "sampler", "width")).to_have_attribute("aria-invalid", "true")
    field(page, "sampler", "width").fill("256")
    expect(error).to_be_hidden()
    expect(node(page, "sampler").locator("[data-field=height] .error")).to_be_visible()
    expect(prompt(page)).to_have_value("a red ball")


def test_page_empty_prompt_is_told_at_the_prompt(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service))
    is_ready(page)
    before = len(engine_service.client.get("/jobs").json()["jobs"])
    page.click("#run")
    expect(node(page, "prompt").locator(".error")).to_contain_text("Write what the picture")
    expect(prompt(page)).to_be_focused()
    assert len(engine_service.client.get("/jobs").json()["jobs"]) == before


def test_page_prompt_that_is_too_long_is_told_at_the_prompt_and_kept(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service), errors_expected=True)
    is_ready(page)
    prompt(page).focus()
    page.keyboard.insert_text("a red balloon " * 200)
    page.keyboard.press("Enter")
    expect(node(page, "prompt").locator(".error")).to_contain_text("at most 2000 are taken")
    expect(prompt(page)).to_have_value("a red balloon " * 200)


def test_page_shape_and_fixed_seed_are_what_is_drawn(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service))
    is_ready(page)
    node(page, "sampler").get_by_role("button", name=re.compile("^Landscape")).click()
    field(page, "sampler", "seed").fill("7")
    expect(node(page, "sampler").locator("input[value=fixed]")).to_be_checked()
    prompt(page).fill("a blue cube")
    page.click("#run")
    expect_picture(page, 288)
    expect(node(page, "image").locator(".facts-line")).to_contain_text("288 × 224")
    [job] = engine_service.client.get("/jobs?limit=1").json()["jobs"]
    assert (job["request"]["seed"], job["request"]["height"]) == (7, 224)


# Runs


def test_page_run_shows_progress_and_preview_and_cancels(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service), reduced_motion="no-preference")
    is_ready(page)
    small(page, num_inference_steps=100, num_images=8)
    page.keyboard.type("stay page-cancels")
    page.keyboard.press("Enter")
    image = node(page, "image")
    expect(image.locator(".run-step")).to_have_text(re.compile(r"step [1-9]\d* of 800"))
    expect(image.locator(".run-step")).to_have_text(re.compile(r" · (\d+ min )?\d+ s left$"))
    expect(page).to_have_title(re.compile(r"^\d+ % · FLUX$"))
    assert 0 < image.locator("progress").evaluate("bar => bar.value") < 1
    expect(image.locator(".preview")).to_be_visible()
    expect(image.locator(".preview")).to_have_js_property("naturalWidth", 128)
    page.keyboard.press("Enter")
    page.click("#panels [data-panel=queue]")
    rows = page.locator("#panel-queue .runs li")
    expect(rows).to_have_count(2)
    expect(rows.nth(1)).to_contain_text("Waiting, next in line")
    rows.nth(1).locator(".cancel").click()
    expect(rows.nth(1)).to_have_attribute("data-phase", "cancelled")
    image.get_by_role("button", name="Cancel").click()
    expect(image.locator(".run-stage")).to_have_text("Cancelled")
    expect(page).to_have_title("FLUX")
    newest = engine_service.client.get("/jobs?limit=2").json()["jobs"]
    assert [job["status"] for job in newest] == ["cancelled", "cancelled"]


def test_page_failed_run_says_why_and_is_tried_again(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service))
    is_ready(page)
    small(page)
    page.keyboard.type("raise-once page-tries-again")
    page.keyboard.press("Enter")
    image = node(page, "image")
    expect(image.locator(".run-stage")).to_have_text("No picture")
    failed = engine_service.client.get("/jobs?limit=1").json()["jobs"][0]
    expect(image.locator(".run-detail")).to_have_text(failed["error"]["message"])
    image.get_by_role("button", name="Try again").click()
    expect(image.locator(".run-stage")).to_have_text("Finished")
    expect_picture(page, 128)
    again = engine_service.client.get("/jobs?limit=1").json()["jobs"][0]
    assert again["id"] != failed["id"] and again["request"]["prompt"] == failed["request"]["prompt"]


def test_page_paused_queue_holds_a_run_until_it_goes_on(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service))
    is_ready(page)
    page.click("#panels [data-panel=queue]")
    page.get_by_role("button", name="Pause BF16").click()
    expect(page.locator("#panel-queue .state")).to_contain_text("paused")
    small(page, num_inference_steps=1)
    page.keyboard.type("a pyramid")
    page.keyboard.press("Enter")
    expect(page.locator("#panel-queue .runs li")).to_contain_text("Waiting")
    page.get_by_role("button", name="Go on with BF16").click()
    expect_picture(page, 128)


def test_page_reload_during_a_run_loses_nothing(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service))
    is_ready(page)
    small(page, num_inference_steps=7, num_images=2)
    page.keyboard.type("hold page-reload")
    page.keyboard.press("Enter")
    step = node(page, "image").locator(".run-step")
    expect(step).to_have_text(re.compile(r"step [12] of 14"))
    page.reload()
    expect(step).to_have_text(re.compile(r"step [12] of 14"))
    expect(prompt(page)).to_have_value("hold page-reload")
    expect(field(page, "sampler", "width")).to_have_value("128")
    engine_service.release("page-reload")
    expect_picture(page, 128)
    page.reload()  # the result stays too
    expect_picture(page, 128)
    expect(node(page, "image").locator(".strip button")).to_have_count(2)


def test_page_hostile_prompt_is_shown_as_text(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"
    page = open_page(ui(engine_service))
    is_ready(page)
    small(page, num_inference_steps=1)
    page.keyboard.type(hostile)
    page.keyboard.press("Enter")
    expect_picture(page, 128)
    node(page, "image").locator(".picture").click()
    expect(page.locator("#viewer-prompt")).to_have_text(hostile)
    expect(page.locator("b, img[src=x]")).to_have_count(0)
    expect(page).to_have_title("FLUX")


# The service goes, comes, wants a key


@pytest.mark.timing
def test_page_service_stopped_is_told_within_three_seconds_and_its_return_goes_on(
    start_engine: Start, open_page: OpenPage
) -> None:
    service = start_engine(wait_for_workers=False)
    page = open_page(ui(service), errors_expected=True)
    is_ready(page)
    service.kill()
    expect(page.locator("#notice")).to_contain_text("does not answer", timeout=3000)
    prompt(page).fill("a fish")
    page.keyboard.press("Enter")
    expect(node(page, "image").locator(".run-stage")).to_have_text("Waiting for the service")
    service.start()
    expect(page.locator("#notice")).to_be_hidden()
    expect(prompt(page)).to_have_value("a fish")
    expect_picture(page)
    assert len(service.client.get("/jobs").json()["jobs"]) == 1


def test_page_as_static_files_asks_for_the_key_and_keeps_it_in_this_tab(
    start_engine: Start, open_page: OpenPage, static_page: str
) -> None:
    key = "k" * 32
    service = start_engine(FLUX_API_KEYS=key, FLUX_PAGE_ORIGINS=static_page, wait_for_workers=False)
    page = open_page(
        f"{static_page}/?bf16={service.url}&fp4=",
        origins=(static_page, service.url),
        errors_expected=True,
    )
    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type("a-wrong-key")
    page.keyboard.press("Enter")
    expect(page.locator("#key-error")).to_contain_text("not one of this service's")
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    is_ready(page)
    small(page, num_inference_steps=1)
    page.keyboard.type("a star")
    page.keyboard.press("Enter")
    expect_picture(page, 128)
    page.click("#panels [data-panel=gallery]")
    expect(page.locator("#tiles img")).to_have_js_property("naturalWidth", 128)
    with page.expect_download() as download:
        node(page, "image").get_by_role("link", name="Download").click()
    assert download.value.suggested_filename.endswith(".png")
    assert page.evaluate("localStorage.length") == 0 and page.context.cookies() == []
    page.reload()
    expect_picture(page, 128)
    assert key not in str(graph(page))


def test_page_key_that_is_revoked_is_asked_for_again_and_nothing_typed_is_lost(
    keyed_service: KeyedService, open_page: OpenPage
) -> None:
    made = keyed_service.client.post("/admin/keys", json={"name": "page", "scopes": ["generate"]})
    page = open_page(ui(keyed_service), errors_expected=True)
    expect(page.locator("#key-title")).to_have_text("The BF16 service needs a key")
    page.keyboard.press("Escape")  # looked at without one
    notice = page.locator("#notice")
    expect(notice).to_contain_text("needs a key")
    prompt(page).fill("page-keeps-words")
    page.keyboard.press("Control+Enter")
    stage = node(page, "image").locator(".run-stage")
    expect(stage).to_have_text("Waiting for the service")
    page.click("#stop")
    expect(stage).to_have_text("Cancelled")
    notice.get_by_role("button", name="Enter the key").click()
    page.keyboard.type(made.json()["key"])
    page.keyboard.press("Enter")
    is_ready(page)
    # The run is on its way when the key ends, and so is a look at the service, which needs none.
    sent: list[Route] = []
    looks: list[Route] = []
    page.route("**/jobs", lambda route: sent.append(route))
    page.route("**/health/ready", lambda route: looks.append(route))
    page.click("#run")
    expect(stage).to_have_text("Sending")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # it looks at once
    keyed_service.wait_until(
        lambda: page.evaluate("true") and sent and looks, what="is asked for nothing"
    )
    assert keyed_service.client.delete(f"/admin/keys/{made.json()['id']}").is_success
    sent[0].continue_()
    page.unroute("**/jobs")
    expect(page.locator("#key-error")).to_contain_text("revoked")
    with page.expect_response("**/health/ready"):
        looks[0].continue_()
    page.unroute("**/health/ready")
    stands_still(page)
    expect(page.locator(".pill[data-service=bf16]")).to_have_attribute("data-phase", "locked")
    expect(page.locator("#key-error")).to_contain_text("revoked")
    page.keyboard.type(keyed_service.key)
    page.keyboard.press("Enter")
    is_ready(page)
    expect(prompt(page)).to_have_value("page-keeps-words")
    expect_picture(page)  # the run waited
    assert keyed_service.key not in page.evaluate("JSON.stringify(localStorage) + document.cookie")


# Gallery


def test_page_gallery_is_looked_through_and_a_picture_deleted(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    for words in ("page-first", "page-second"):
        assert (
            engine_service.generate(prompt=words, width=128, height=128, steps=1).status_code == 200
        )
    page = open_page(ui(engine_service))
    is_ready(page)
    page.click("#panels [data-panel=gallery]")
    page.locator("#tiles button").first.click()
    words = page.locator("#viewer-prompt")
    expect(words).to_have_text("page-second")
    page.keyboard.press("ArrowLeft")  # there is nothing newer
    page.keyboard.press("ArrowRight")
    expect(words).to_have_text("page-first")
    page.keyboard.press("ArrowLeft")
    expect(words).to_have_text("page-second")
    page.keyboard.press("Delete")
    expect(page.locator("#confirm button").first).to_be_focused()
    page.keyboard.press("Escape")  # the question is answered with no, the viewer stays
    expect(page.locator("#confirm")).to_be_hidden()
    expect(words).to_have_text("page-second")
    wait_until(page, IS_SEEN)  # what is asked for when it is gone already is 404
    page.keyboard.press("Delete")
    page.click("#confirm-yes")
    expect(words).to_have_text("page-first")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#tiles img").first).to_have_attribute("alt", "page-first")
    page.fill("#gallery-search", "no prompt has this")
    expect(page.locator("#panel-gallery .empty")).to_have_text("No prompt has these words.")
    page.fill("#gallery-search", "page-first")
    expect(page.locator("#tiles img")).to_have_count(1)
    [newest] = engine_service.client.get("/images?limit=1").json()["images"]
    assert newest["prompt"] == "page-first"


def test_page_gallery_pins_a_picture_and_unpins_it(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    drawn = engine_service.generate(prompt="to keep", width=128, height=128).json()["images"][0]

    def is_pinned() -> bool:
        images = engine_service.client.get("/images?limit=100").json()["images"]
        return next(each["pinned"] for each in images if each["id"] == drawn["id"])

    page = open_page(ui(engine_service))
    is_ready(page)
    page.click("#panels [data-panel=gallery]")
    page.get_by_role("button", name="to keep").first.click()
    pin = page.get_by_role("button", name="Pin", exact=True)
    expect(pin).to_have_attribute("aria-pressed", "false")
    pin.click()
    expect(pin).to_have_attribute("aria-pressed", "true")
    assert is_pinned()
    page.keyboard.press("Escape")
    expect(page.locator("#tiles .pinned").first).to_be_visible()
    page.reload()  # the service remembers
    is_ready(page)
    page.click("#panels [data-panel=gallery]")
    page.get_by_role("button", name="to keep").first.click()
    expect(pin).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("p")
    expect(pin).to_have_attribute("aria-pressed", "false")
    assert not is_pinned()


# Models and the machine


def test_page_cloud_model_tells_its_price_before_it_draws_and_what_failed_after(
    start_engine: Start, cloud: StandIn, open_page: OpenPage
) -> None:
    service = start_engine(
        wait_for_workers=False, FLUX_BFL_API_BASE=f"{cloud.url}/v1", FLUX_BFL_API_KEY=KEY
    )
    for viewport in (PHONE, DESKTOP):
        page = open_page(ui(service), viewport=viewport)
        is_ready(page)
        if viewport is PHONE:
            page.locator("#form-more > summary").click()
        field(page, "model", "model").select_option(label="FLUX.2 [pro] · $0.03 a picture")
        expect(node(page, "model")).to_contain_text("Each picture costs $0.03")
        expect(page.locator("#form-summary")).to_contain_text("$0.03 a picture")
        prompt(page).fill("a red balloon")
        page.keyboard.press("Enter")
        expect(node(page, "image").locator(".facts-line")).to_contain_text("CLOUD · $0.03")
    # Of several some may fail: which, and why, stands at those that came, also after a reload.
    field(page, "sampler", "num_images").fill("3")
    field(page, "sampler", "seed").fill("41")
    prompt(page).fill("<b>a boat</b> [[moderate=content]] [[only=42]]")
    page.keyboard.press("Enter")
    expect(node(page, "image").locator(".run-stage")).to_have_text("2 of 3 pictures")
    words = re.compile("^No picture with seed 42: BFL's moderation blocked the picture")
    expect(node(page, "image").locator(".run-detail")).to_have_text(words)
    expect(page.locator("#announcement")).to_have_text(words)
    expect(node(page, "image").locator(".strip button")).to_have_count(2)
    page.reload()
    expect(node(page, "image").locator(".run-detail")).to_have_text(words)


def test_page_model_that_cannot_run_says_why_and_what_it_costs(
    service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(service))
    is_ready(page)
    absent = node(page, "model").locator(".absent")
    absent.locator("summary").click()
    models = service.client.get("/api/models").json()["models"]
    others = [model for model in models if not model["available"]]
    expect(absent.locator("summary")).to_have_text(f"{len(others)} more cannot run here")
    for model in others:
        expect(absent).to_contain_text(model["title"])
    # A reason is said once, for all that it keeps from running.
    expect(absent.locator("li", has_text="BFL's cloud needs a key")).to_have_count(1)
    flux1 = absent.locator("li", has_text="FLUX.1 [schnell]").first
    expect(flux1).to_contain_text("FLUX.1 [dev]")
    expect(flux1).to_contain_text("needs a GPU")
    cloud = next(model for model in models if model["price"])
    values = {"service": "bf16", "backend": cloud["backend"], "model": cloud["id"]}
    listed = {"id": "n1", "kind": "model", "x": 0, "y": 0, "collapsed": False, "values": values}
    file = {"format": "flux-api workflow", "version": 1, "name": "", "nodes": [listed], "wires": []}
    drop(page, "#canvas", [("cloud.json", "application/json", json.dumps(file).encode())])
    expect(node(page, "model")).to_contain_text(f"Each picture costs {cloud['price']}")
    expect(node(page, "model")).to_contain_text("cannot run here")


@pytest.fixture(scope="module")
def full_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service whose disk is full, and whose model is loaded when the file `weights` is there."""
    running = RunningService(
        tmp_path_factory.mktemp("full"), main=ENGINE_MAIN, TEST_ENGINE="tells_while_loading",
        FLUX_MIN_FREE_MIB="999999999",
    )  # fmt: skip
    try:
        yield running.start()
    finally:
        running.close()


def test_page_service_that_cannot_draw_says_why(
    full_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(full_service), errors_expected=True)
    notice = page.locator("#notice")
    expect(notice).to_contain_text(re.compile(r"cannot draw now\. It says: \d+ MiB are free"))
    expect(notice).to_contain_text("delete pictures or make room")
    expect(page.locator(".pill[data-service=bf16]")).to_have_attribute("data-phase", "waiting")
    page.click("#panels [data-panel=machine]")
    expect(page.locator("#panel-machine .health")).to_contain_text("Cannot draw now: ")


def test_page_machine_unloads_and_loads_a_model(
    engine_service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(engine_service))
    is_ready(page)
    page.click("#panels [data-panel=machine]")
    model = page.locator("#panel-machine .device-model")
    expect(model).to_be_visible()  # told last of all: it moves the buttons below it
    page.get_by_role("button", name="Load", exact=True).click()
    expect(model).not_to_contain_text("no model loaded")
    page.get_by_role("button", name="Unload", exact=True).click()
    expect(model).to_contain_text("no model loaded")


def test_page_machine_shows_how_much_of_a_model_is_loaded(
    full_service: RunningService, open_page: OpenPage
) -> None:
    full_service.wait_for_workers()
    page = open_page(ui(full_service), errors_expected=True)
    expect(page.locator(".pill[data-service=bf16]")).to_have_attribute("data-phase", "waiting")
    page.click("#panels [data-panel=machine]")
    model = page.locator("#panel-machine .device-model")
    expect(model).to_be_visible()  # told last of all: it moves the buttons below it
    page.get_by_role("button", name="Load", exact=True).click()
    bar = page.get_by_role("progressbar", name="Loading")
    expect(bar).to_have_js_property("value", 0.25)
    expect(page.locator("#panel-machine")).to_contain_text("Loading: part 1 of 4")
    full_service.release("weights")
    expect(bar).to_be_hidden()
    expect(model).not_to_contain_text("no model loaded")


# Its reference


def test_docs_page_lists_the_routes(service: RunningService, open_page: OpenPage) -> None:
    page = open_page(f"{service.url}/docs", origins=(service.url,))
    expect(page.locator("h2", has_text="POST /generate")).to_be_visible()
    expect(page.locator("#operations")).to_contain_text("a red balloon over green hills at sunset")
