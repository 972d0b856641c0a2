"""A real browser for the page: Debian's chromium, driven by Playwright.

Its headless shell, where it is installed, is the same engine without a window's affairs and takes half of
the processor's time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Page,
    Request,
    expect,
    sync_playwright,
)

from tests.frontend.page import WAIT_MS

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
ARGUMENTS = [
    *(
        "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    ).split(),
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # nobody is elsewhere
]
DESKTOP = {"width": 1440, "height": 900}

# The browser's own line about an answer that is an error, or about none. The page shows those.
NETWORK_LINE = "Failed to load resource"

OpenPage = Callable[..., Page]

# What the page says goes after some seconds: a test may look later.
HEARD = """addEventListener("DOMContentLoaded", () => {
    window.said = [];
    const line = document.querySelector("#message");
    const hear = () => line.textContent && said.push(line.textContent);
    if (line) new MutationObserver(hear).observe(line, { childList: true, characterData: true, subtree: true });
});"""

# A busy machine may take a while; a test that is about time says how long.
expect.set_options(timeout=WAIT_MS)


# Not for the session: while it is open a loop runs in this thread, and other tests want their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium; scripts/test.sh installs it")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens an address in a fresh profile.

    At the end of the test no script may have failed, nothing may stand in the console, and no
    request may have gone anywhere but to the origins named (the address's own if none are).
    What waits stands still, because a moving bar is painted sixty times a second: a test of what is
    seen on the way says `reduced_motion="no-preference"`.
    """
    with _watched(browser) as opened:
        yield opened


@pytest.fixture(scope="module")
def open_page_for_file(browser: Browser) -> Iterator[OpenPage]:
    """The same for a page that several tests of a file look at."""
    with _watched(browser) as opened:
        yield opened


@contextmanager
def _watched(browser: Browser) -> Iterator[OpenPage]:
    faults: list[str] = []
    contexts = []

    def open_one(
        address: str,
        *,
        viewport: dict[str, int] = DESKTOP,
        origins: tuple[str, ...] = (),
        errors_expected: bool = False,
        **options: Any,
    ) -> Page:
        allowed = (*(origins or (address.split("/ui")[0],)), "blob:", "data:")

        def on_request(request: Request) -> None:
            if not request.url.startswith(allowed):
                faults.append(f"request to {request.url}")

        def on_console(message: ConsoleMessage) -> None:
            if not (errors_expected and NETWORK_LINE in message.text):
                faults.append(f"{message.type}: {message.text}")

        context = browser.new_context(viewport=viewport, **{"reduced_motion": "reduce", **options})
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        context.add_init_script(HEARD)
        page = context.new_page()
        # To hear of each request takes a tenth of what a page takes. One to elsewhere fails, of which the console
        # tells; where that is no fault, or there is a second service to call, each is looked at.
        if origins or errors_expected:
            page.on("request", on_request)
        page.on("console", on_console)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert faults == []
