"""What tests do with the page, in one word each."""

from __future__ import annotations

import base64

from playwright.sync_api import Locator, Page, expect

from tests.service import RunningService

PHONE = {"width": 390, "height": 844}
PICTURE_MS = 60_000


def ui(service: RunningService, fp4: RunningService | None = None) -> str:
    """The page as a service serves it, with the other service or without."""
    return f"{service.url}/ui/" + (f"?fp4={fp4.url}" if fp4 else "")


def is_ready(page: Page, name: str = "bf16") -> None:
    pill = page.locator(f".pill[data-service={name}]")
    expect(pill).to_have_attribute("data-phase", "ready", timeout=20_000)


def node(page: Page, kind: str, nth: int = 0) -> Locator:
    """A node of a kind, in the view that is open."""
    return page.locator(f":is(.node, .card)[data-kind={kind}]").nth(nth)


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
    expect(picture).to_have_js_property("naturalWidth", px, timeout=10_000)


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
