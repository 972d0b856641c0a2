"""Takes the pictures of the page that the documents show, from running services.

    python -m scripts.take_screenshots --bf16 http://127.0.0.1:8001 --fp4 http://127.0.0.1:8000

Writes docs/page.png and its siblings, one for each state in STATES. The gallery and the library show
what the services have on disk, so start them with empty FLUX_OUTPUT_DIR and FLUX_DATA_DIR, and
with FLUX_PAGE_ORIGINS naming the other one. Needs the system's chromium.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from config.settings import ROOT

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
# Each seed draws every example prompt once, so that the gallery has something to show.
SEEDS = (3, 7, 11)
RUN_MS = 600_000
MAX_BYTES = 300_000

OpenPage = Callable[..., Page]
Taken = Iterator[tuple[str, Page]]


def first_look(open_page: OpenPage) -> Taken:
    page = open_page()
    yield "page-first-look", page
    for seed in SEEDS:
        for prompt in reversed(_examples(page)):
            _draw(page, prompt, seed)
    yield "page", page
    page.click("#panels [data-panel=gallery]")
    page.locator("#tiles img").nth(5).wait_for()
    page.locator("body").press("f")
    yield "page-gallery", page


def running(open_page: OpenPage) -> Taken:
    page = open_page()
    page.locator("[data-field=num_inference_steps] input").fill("100")
    page.locator("[data-role=prompt]").fill(_examples(page)[0])
    page.keyboard.press("Enter")
    page.click("#panels [data-panel=queue]")
    while page.locator(".node progress").last.evaluate("bar => bar.position") < 0.3:
        page.wait_for_timeout(100)
    page.locator(".node .preview").wait_for()
    page.locator("body").press("f")
    yield "page-running", page
    page.click("#stop")


def compared(open_page: OpenPage) -> Taken:
    page = open_page()
    page.locator("[data-role=prompt]").fill(_examples(page)[2])
    page.click("#compare")
    page.locator(".compare-stage[data-complete=true]").wait_for(timeout=RUN_MS)
    page.locator("body").press("f")
    yield "page-compare", page


def loras(open_page: OpenPage) -> Taken:
    page = open_page()
    page.click("#panels [data-panel=loras]")
    page.wait_for_timeout(1000)
    uses = page.locator("#panel-loras button[aria-label^='Use ']")
    if uses.count():
        uses.first.click()
        page.locator("[data-role=prompt]").fill(_examples(page)[0])
        page.keyboard.press("Enter")
        _wait_until_drawn(page)
        page.get_by_role("button", name="Arrange").click()
    yield "page-loras", page


def light(open_page: OpenPage) -> Taken:
    page = open_page(color_scheme="light")
    _draw(page, _examples(page)[1], SEEDS[0])
    yield "page-light", page


def phone(open_page: OpenPage) -> Taken:
    page = open_page(viewport=PHONE, device_scale_factor=2, has_touch=True)
    page.locator("[data-role=prompt]").fill(_examples(page)[0])
    page.click("#form-run")
    _wait_until_drawn(page)
    page.locator("#form-results").scroll_into_view_if_needed()
    yield "page-phone", page


STATES = (first_look, running, compared, loras, light, phone)


def take(address: str, folder: Path, states: list[str]) -> list[Path]:
    """The screenshots as files."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("chromium is missing; install it (Debian: apt install chromium)")
    taken = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        for state in STATES:
            if not states or state.__name__ in states:
                for name, page in state(_opener(browser, address)):
                    taken.append(_save(page, folder / f"{name}.png"))
        browser.close()
    return taken


def _opener(browser: Browser, address: str) -> OpenPage:
    def open_page(**options: object) -> Page:
        wanted = {"viewport": DESKTOP, "color_scheme": "dark", "reduced_motion": "reduce"}
        page = browser.new_context(**{**wanted, **options}).new_page()
        page.goto(address)
        page.locator(".pill[data-service=bf16][data-phase=ready]").wait_for(timeout=60_000)
        page.locator(".examples button").first.wait_for()
        page.wait_for_timeout(500)  # the view is fitted to what has come
        page.keyboard.press("Escape")
        page.keyboard.press("f")
        return page

    return open_page


def _examples(page: Page) -> list[str]:
    return page.locator(".examples button").all_inner_texts()


def _draw(page: Page, prompt: str, seed: int) -> None:
    page.locator("[data-field=seed] input[type=number]").fill(str(seed))
    page.locator("[data-role=prompt]").fill(prompt)
    page.keyboard.press("Enter")
    _wait_until_drawn(page)


def _wait_until_drawn(page: Page) -> None:
    page.locator(
        ".run:is([data-phase=unsent], [data-phase=queued], [data-phase=running])"
    ).wait_for()
    page.locator(".run[data-phase=idle]").wait_for(timeout=RUN_MS)


def _save(page: Page, path: Path) -> Path:
    page.wait_for_timeout(1500)  # thumbnails come, messages go
    page.screenshot(path=path)
    if path.stat().st_size > MAX_BYTES:  # 256 colours are near enough for a page this calm
        with Image.open(path) as image:
            image.convert("RGB").quantize(256).save(path, optimize=True)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description="Takes the screenshots of the page in docs/.")
    parser.add_argument("--bf16", default="http://127.0.0.1:8001", help="the BF16 service")
    parser.add_argument("--fp4", default="http://127.0.0.1:8000", help="the FP4 service")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs", help="where they go")
    names = [state.__name__ for state in STATES]
    parser.add_argument("states", nargs="*", choices=[*names, []], help="these alone")
    arguments = parser.parse_args()
    address = f"{arguments.bf16.rstrip('/')}/ui/?fp4={arguments.fp4.rstrip('/')}"
    for path in take(address, arguments.folder, list(arguments.states)):
        print(f"{path} {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
