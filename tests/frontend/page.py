"""What tests do with the page, in one word each."""

from __future__ import annotations

import base64

from playwright.sync_api import Error, Locator, Page, expect

from tests.service import RunningService

PHONE = {"width": 390, "height": 844}
PICTURE_MS = 60_000
WAIT_MS = 60_000
# Looks in every frame. Playwright's own way to wait for a function calls eval, which the page's policy refuses from the
# second look on.
UNTIL = """([arg, ms]) => new Promise((done, fail) => {
    const holds = %s;
    const end = performance.now() + ms;
    const look = () => {
        if (holds(arg)) done();
        else if (performance.now() > end) fail(new Error(`not in ${ms} ms`));
        else requestAnimationFrame(look);
    };
    look();
})"""
# The view is fitted two frames after what it is fitted to, and drawn in the next.
FRAMES = """new Promise((done) => {
    let left = 6;
    const step = () => (left-- > 0 ? requestAnimationFrame(step) : done());
    step();
})"""


def ui(service: RunningService, fp4: RunningService | None = None) -> str:
    """The page as a service serves it, with the other service or without."""
    return f"{service.url}/ui/" + (f"?fp4={fp4.url}" if fp4 else "")


def is_ready(page: Page, name: str = "bf16") -> None:
    """The service is, and the graph has been fitted to what the service has told."""
    pill = page.locator(f".pill[data-service={name}]")
    expect(pill).to_have_attribute("data-phase", "ready")
    stands_still(page)


def stands_still(page: Page) -> None:
    """The view has come to where it was sent: only then a place in it can be measured, and what is clicked stays below
    the pointer.
    """
    page.evaluate(FRAMES)


def wait_until(page: Page, condition: str, arg: object = None) -> None:
    """Until a function of the page holds of `arg`."""
    page.evaluate(UNTIL % condition, [arg, WAIT_MS])


def expect_said(page: Page, words: str) -> None:
    """The page says so, or has: what stands in its line of messages goes after some seconds by itself."""
    try:
        wait_until(page, "words => said.some(text => text.includes(words))", words)
    except Error:
        raise AssertionError(f"{words!r} is not among {page.evaluate('said')}") from None


def node(page: Page, kind: str, nth: int = 0) -> Locator:
    """A node of a kind, in the view that is open."""
    return page.locator(f":is(.node, .card)[data-kind={kind}]").nth(nth)


BODIES = """() => [...document.querySelectorAll(".node .node-body")].every((body) => body.childElementCount)"""


def add_node(page: Page, words: str) -> None:
    """The first node that the search finds for the words, with what is in it: when that is there, its first field has
    the focus, and takes keys that were meant for the page.
    """
    page.keyboard.press("a")
    page.keyboard.type(words)
    page.keyboard.press("Enter")
    wait_until(page, BODIES)


def field(page: Page, kind: str, name: str, nth: int = 0) -> Locator:
    box = node(page, kind, nth).locator(f"[data-field={name}]")
    return box.locator("input:not([type=radio]), textarea, select").first


def prompt(page: Page) -> Locator:
    return field(page, "prompt", "text")


def small(page: Page, **values: object) -> None:
    """Settings for a quick picture, and whatever else is asked for; the prompt has the focus after."""
    for name, value in {"width": 128, "height": 128, **values}.items():
        field(page, "sampler", name).fill(str(value))
    prompt(page).focus()


def expect_picture(page: Page, px: int = 256, nth: int = 0) -> None:
    """The Image node shows a picture that was really loaded."""
    picture = node(page, "image", nth).locator(".picture-now")
    expect(picture).to_be_visible(timeout=PICTURE_MS)
    expect(picture).to_have_js_property("naturalWidth", px)


def graph(page: Page) -> dict:
    """The graph as it was kept for a reload."""
    return page.evaluate("JSON.parse(sessionStorage.getItem('flux page')).workflow")


def drop(page: Page, selector: str, files: list[tuple[str, str, bytes]]) -> None:
    """Drops files (name, type, content) on an element, the way a file manager does."""
    page.evaluate(
        """([selector, files]) => {
            const transfer = new DataTransfer();
            for (const [name, type, bytes] of files) {
                const content = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
                transfer.items.add(new File([content], name, { type }));
            }
            const target = document.querySelector(selector);
            const { left, top, width, height } = target.getBoundingClientRect();
            const at = { clientX: left + width / 2, clientY: top + height - 60 };
            for (const name of ["dragover", "drop"]) {
                const options = { dataTransfer: transfer, bubbles: true, cancelable: true, ...at };
                target.dispatchEvent(new DragEvent(name, options));
            }
        }""",
        [selector, [[name, kind, _base64(content)] for name, kind, content in files]],
    )


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
