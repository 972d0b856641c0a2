"""The page in a real browser against a real service."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.service import RunningService

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium; scripts/test.sh installs it"
)

OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens /ui of a service; at the end no script failed and nothing was asked of another origin."""
    faults: list[str] = []
    contexts = []

    def open_one(service: RunningService, viewport: dict = DESKTOP) -> Page:
        context = browser.new_context(viewport=viewport)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request",
            lambda request: (
                request.url.startswith((service.url, "blob:", "data:"))
                or faults.append(request.url)
            ),
        )
        page.goto(f"{service.url}/ui/")
        expect(page.locator("#examples button").first).to_be_visible()
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert faults == []


def draw(page: Page, prompt: str) -> None:
    """Three actions: the page is open; type; Enter."""
    page.keyboard.type(prompt)
    page.keyboard.press("Enter")


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_first_picture_takes_typing_and_enter(service, open_page: OpenPage, viewport: dict) -> None:
    page = open_page(service, viewport)
    draw(page, "a green tree at noon")
    picture = page.locator("#result img")
    expect(picture).to_be_visible(timeout=60_000)
    expect(picture).to_have_js_property("naturalWidth", 256, timeout=10_000)
    expect(page.locator("#result .facts")).to_contain_text("256 × 256")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_page_says_which_model_draws_and_why(service, open_page: OpenPage) -> None:
    page = open_page(service)
    info = service.client.get("/info").json()
    expect(page.locator("#model-line")).to_contain_text(info["default_model_reason"])


def test_example_prompt_is_taken_over_by_a_click(service, open_page: OpenPage) -> None:
    page = open_page(service)
    example = page.locator("#examples button").first
    example.click()
    expect(page.locator("#prompt")).to_have_value(example.inner_text())


def test_field_error_stands_at_its_field(service, open_page: OpenPage) -> None:
    page = open_page(service)
    page.locator("#settings summary").click()
    page.fill("input[name=width]", "250")
    page.fill("#prompt", "a red ball")
    page.click("#run")
    expect(page.locator('[data-error="width"]')).to_contain_text("multiple of 16")
    expect(page.locator("input[name=width]")).to_have_attribute("aria-invalid", "true")


def test_hostile_prompt_is_shown_as_text(service, open_page: OpenPage) -> None:
    page = open_page(service)
    hostile = "<img src=x onerror=document.title='owned'>"
    draw(page, hostile)
    expect(page.locator("#result img")).to_be_visible(timeout=60_000)
    expect(page.locator("#result p").first).to_have_text(hostile)
    assert "owned" not in page.title()


def test_cancel_ends_a_waiting_job_and_a_reload_keeps_it(
    start_service, open_page: OpenPage
) -> None:
    service = start_service(FLUX_LOG_LEVEL="warning")
    for _ in range(3):  # something before it in the line
        service.client.post("/jobs", json={"prompt": "a fish", "steps": 60})
    page = open_page(service)
    draw(page, "a blue heart")
    expect(page.locator("#runs li")).to_contain_text("before it", timeout=10_000)
    page.reload()
    expect(page.locator("#runs li")).to_contain_text("a blue heart")
    page.locator("#runs li button").click()
    expect(page.locator("#runs li")).to_contain_text("Cancelled")
    jobs = service.client.get("/jobs?status=cancelled").json()["jobs"]
    assert [job["request"]["prompt"] for job in jobs] == ["a blue heart"]


def test_service_that_goes_is_noticed_and_its_return_too(
    start_service, open_page: OpenPage
) -> None:
    service = start_service(wait_for_workers=False)
    page = open_page(service)
    page.fill("#prompt", "kept while the service is away")
    service.stop()
    expect(page.locator("#notice")).to_be_visible(timeout=15_000)
    service.start()
    expect(page.locator("#notice")).to_be_hidden(timeout=15_000)
    expect(page.locator("#prompt")).to_have_value("kept while the service is away")


def test_gallery_shows_opens_and_deletes_a_picture(start_service, open_page: OpenPage) -> None:
    service = start_service()
    service.generate(prompt="a pink flower", width=128, height=128, steps=1)
    page = open_page(service)
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#gallery button").click()
    expect(page.locator("#viewer-facts")).to_contain_text("a pink flower")
    page.click("#viewer-delete")
    expect(page.locator("#gallery-empty")).to_be_visible()
    assert service.client.get("/images").json()["images"] == []


def test_key_is_asked_for_and_used_for_pictures_too(start_service, browser: Browser) -> None:
    key = "k" * 32
    service = start_service(FLUX_API_KEYS=key, wait_for_workers=False)
    page = browser.new_page(viewport=DESKTOP)
    page.goto(f"{service.url}/ui/")
    page.fill("#key", key)
    page.keyboard.press("Enter")
    expect(page.locator("#examples button").first).to_be_visible()
    page.fill("#prompt", "a star")
    page.click("#run")
    picture = page.locator("#result img")
    expect(picture).to_be_visible(timeout=60_000)
    expect(picture).to_have_js_property("naturalWidth", 256, timeout=10_000)
    page.close()
