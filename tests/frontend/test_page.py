"""The page in a real browser against real services."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from config.settings import ROOT
from tests.frontend.conftest import DESKTOP, OpenPage
from tests.service import RunningService, free_port

PHONE = {"width": 390, "height": 844}
PICTURE_MS = 60_000

Start = Callable[..., RunningService]


def ui(service: RunningService) -> str:
    return f"{service.url}/ui/"


def is_ready(page: Page) -> None:
    expect(page.locator("#service")).to_have_attribute("data-phase", "ready", timeout=20_000)


def expect_picture(page: Page, px: int = 256) -> None:
    """The stage shows a picture that was really loaded."""
    picture = page.locator("#picture")
    expect(picture).to_be_visible(timeout=PICTURE_MS)
    expect(picture).to_have_js_property("naturalWidth", px, timeout=10_000)


def small(page: Page, **values: object) -> None:
    """Settings for a quick picture, and whatever else is asked for."""
    page.locator("#settings summary").click()
    for name, value in {"width": 128, "height": 128, **values}.items():
        page.fill(f"#{name}", str(value))
    page.focus("#prompt")


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
        server.wait(10)


def _until_it_answers(url: str) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(100):
        try:
            direct.open(url, timeout=5).close()
            return
        except urllib.error.URLError:
            time.sleep(0.05)
    raise AssertionError(f"{url} does not answer")


# First look


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_page_first_picture_takes_three_actions(
    service: RunningService, open_page: OpenPage, viewport: dict[str, int]
) -> None:
    page = open_page(ui(service), viewport=viewport)  # 1
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("a green tree at noon")  # 2
    page.keyboard.press("Enter")  # 3
    expect_picture(page)
    expect(page.locator("#picture")).to_be_in_viewport(ratio=0.5)
    for fact in ("256 × 256", "Embedded postcards", "BF16"):
        expect(page.locator("#facts")).to_contain_text(fact)
    expect(page.locator("#tiles img").first).to_have_attribute("alt", "a green tree at noon")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_page_opens_telling_what_draws_and_why(
    service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(service))
    model = service.client.get("/api/models").json()["models"][0]
    expect(page.locator("#why")).to_contain_text(f"{model['title']}: no GPU is used")
    expect(page.locator("#about")).to_have_text(model["description"])
    examples = page.locator("#examples button")
    expect(examples).to_have_text(model["example_prompts"])
    examples.nth(1).click()
    expect(page.locator("#prompt")).to_have_value(model["example_prompts"][1])
    expect(page.locator("#prompt")).to_be_focused()


# Settings


def test_page_field_error_of_the_service_stands_at_its_field(
    service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(service), errors_expected=True)
    is_ready(page)
    small(page, width=250, height=250)
    page.keyboard.type("a red ball")
    page.locator("#settings summary").click()  # the field at fault is shown, open or not
    page.keyboard.press("Control+Enter")
    expect(page.locator("#width-error")).to_contain_text("250 is not a multiple of 16")
    expect(page.locator("#width")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#width")).to_be_focused()
    expect(page.locator("#form-error")).to_be_hidden()
    page.fill("#width", "256")
    expect(page.locator("#width-error")).to_be_hidden()
    expect(page.locator("#height-error")).to_be_visible()
    expect(page.locator("#prompt")).to_have_value("a red ball")


def test_page_shape_and_fixed_seed_are_what_is_drawn(
    service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(service))
    is_ready(page)
    page.locator("#settings summary").click()
    page.locator("#shapes button", has_text="Landscape").click()
    page.check("input[value=fixed]")
    page.fill("#seed", "7")
    page.fill("#prompt", "a blue cube")
    page.click("#draw")
    expect_picture(page, 288)
    expect(page.locator("#facts")).to_contain_text("288 × 224")
    [job] = service.client.get("/jobs?limit=1").json()["jobs"]
    assert (job["request"]["seed"], job["request"]["height"]) == (7, 224)


# Runs


def test_page_run_shows_progress_and_cancels(service: RunningService, open_page: OpenPage) -> None:
    page = open_page(ui(service))
    is_ready(page)
    small(page, num_inference_steps=100, num_images=8)
    page.keyboard.type("a red car")
    page.keyboard.press("Enter")
    expect(page.locator("#run-step")).to_have_text(re.compile(r"step \d+ of 800"), timeout=20_000)
    expect(page).to_have_title(re.compile(r"^\d+ % · FLUX$"))
    assert 0 < page.locator("#run-progress").evaluate("bar => bar.value") < 1
    page.keyboard.press("Enter")
    expect(page.locator("#waiting li")).to_contain_text("Waiting, next in line")
    page.locator("#waiting li button").click()
    expect(page.locator("#waiting")).to_be_hidden()
    page.click("#run-cancel")
    expect(page.locator("#run")).to_have_attribute("data-phase", "idle", timeout=10_000)
    expect(page).to_have_title("FLUX")
    newest = service.client.get("/jobs?limit=2").json()["jobs"]
    assert [job["status"] for job in newest] == ["cancelled", "cancelled"]


def test_page_reload_during_a_run_loses_nothing(
    service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(service))
    is_ready(page)
    small(page, num_inference_steps=100, num_images=2)
    page.keyboard.type("three stars")
    page.keyboard.press("Enter")
    expect(page.locator("#run-step")).to_contain_text("of 200", timeout=20_000)
    page.reload()
    expect(page.locator("#run-step")).to_contain_text("of 200", timeout=20_000)
    expect(page.locator("#prompt")).to_have_value("three stars")
    expect(page.locator("#width")).to_have_value("128")
    expect_picture(page, 128)
    page.reload()  # the result stays too
    expect_picture(page, 128)
    expect(page.locator("#strip button")).to_have_count(2)


def test_page_hostile_prompt_is_shown_as_text(service: RunningService, open_page: OpenPage) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"
    page = open_page(ui(service))
    is_ready(page)
    small(page, num_inference_steps=1)
    page.keyboard.type(hostile)
    page.keyboard.press("Enter")
    expect_picture(page, 128)
    expect(page.locator("#run-detail")).to_have_text(hostile)
    page.click("#open-picture")
    expect(page.locator("#viewer-prompt")).to_have_text(hostile)
    expect(page.locator("b, img[src=x]")).to_have_count(0)
    expect(page).to_have_title("FLUX")


# The service goes, comes, wants a key


def test_page_service_stopped_is_told_and_its_return_goes_on(
    start_service: Start, open_page: OpenPage
) -> None:
    service = start_service(wait_for_workers=False)
    page = open_page(ui(service), errors_expected=True)
    is_ready(page)
    service.stop()
    expect(page.locator("#notice")).to_contain_text("does not answer", timeout=15_000)
    page.keyboard.type("a fish")  # the prompt still has the focus
    page.keyboard.press("Enter")
    expect(page.locator("#run-stage")).to_have_text("Waiting for the service")
    service.start()
    expect(page.locator("#notice")).to_be_hidden(timeout=15_000)
    expect(page.locator("#prompt")).to_have_value("a fish")
    expect_picture(page)
    assert len(service.client.get("/jobs").json()["jobs"]) == 1


def test_page_as_static_files_asks_for_the_key_and_keeps_it_in_this_tab(
    start_service: Start, open_page: OpenPage, static_page: str
) -> None:
    key = "k" * 32
    service = start_service(
        FLUX_API_KEYS=key, FLUX_PAGE_ORIGINS=static_page, wait_for_workers=False
    )
    page = open_page(
        f"{static_page}/?bf16={service.url}",
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
    expect(page.locator("#tiles img")).to_have_js_property("naturalWidth", 128)
    with page.expect_download() as download:
        page.locator("#actions a").click()
    assert download.value.suggested_filename.endswith(".png")
    assert page.evaluate("localStorage.length") == 0 and page.context.cookies() == []
    page.reload()
    expect_picture(page, 128)


# Gallery


def test_page_gallery_is_looked_through_and_a_picture_deleted(
    service: RunningService, open_page: OpenPage
) -> None:
    for prompt in ("the first", "the second"):
        assert service.generate(prompt=prompt, width=128, height=128, steps=1).status_code == 200
    page = open_page(ui(service))
    page.locator("#tiles button").first.click()
    words = page.locator("#viewer-prompt")
    expect(words).to_have_text("the second")
    page.keyboard.press("ArrowLeft")  # there is nothing newer
    page.keyboard.press("ArrowRight")
    expect(words).to_have_text("the first")
    page.keyboard.press("ArrowLeft")
    expect(words).to_have_text("the second")
    page.keyboard.press("Delete")
    expect(page.locator("#confirm button").first).to_be_focused()
    page.keyboard.press("Escape")  # the question is answered with no, the viewer stays
    expect(page.locator("#confirm")).to_be_hidden()
    expect(words).to_have_text("the second")
    page.keyboard.press("Delete")
    page.click("#confirm-yes")
    expect(words).to_have_text("the first")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#tiles img").first).to_have_attribute("alt", "the first")
    [newest] = service.client.get("/images?limit=1").json()["images"]
    assert newest["prompt"] == "the first"


# Addresses


def test_page_takes_service_addresses_of_this_machine_only(
    service: RunningService, open_page: OpenPage
) -> None:
    page = open_page(ui(service))
    usual = "http://pictures.lan:8001"
    addresses = {
        "http://pictures.lan:9000/": usual,
        "http://pictures.lan:9000/?bf16=http://127.0.0.1:8123": "http://127.0.0.1:8123",
        "http://pictures.lan:9000/?bf16=http://pictures.lan:8123/": "http://pictures.lan:8123",
        "http://pictures.lan:9000/?bf16=http://elsewhere.example:8001": usual,
        "http://pictures.lan:9000/?bf16=http://127.0.0.1.elsewhere.example": usual,
        "http://pictures.lan:9000/?bf16=http://127.0.0.1:80@elsewhere.example": usual,
        "http://pictures.lan:9000/?bf16=//elsewhere.example": usual,
        "http://pictures.lan:9000/?bf16=javascript:alert(1)": usual,
        "http://pictures.lan:8155/ui/?bf16=http://127.0.0.1:8123": "http://pictures.lan:8155",
        "http://pictures.lan:8155/docs": "http://pictures.lan:8155",
        "http://pictures.lan:9000/uikit/": usual,
    }
    taken = page.evaluate(
        "async (pages) => { const { serviceAddress } = await import('/ui/js/config.js');"
        " return pages.map((page) => serviceAddress(new URL(page)).url); }",
        list(addresses),
    )
    assert dict(zip(addresses, taken, strict=True)) == addresses


def test_docs_page_lists_the_routes(service: RunningService, open_page: OpenPage) -> None:
    page = open_page(f"{service.url}/docs", origins=(service.url,))
    expect(page.locator("h2", has_text="POST /generate")).to_be_visible()
    expect(page.locator("#operations")).to_contain_text("a red balloon over green hills at sunset")
