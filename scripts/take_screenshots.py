"""Takes the pictures of the page that the documents show, from a running service.

    python -m scripts.take_screenshots --url http://127.0.0.1:8001

Writes docs/page.png and docs/page-phone.png. The gallery shows what the service has on disk, so
start it with an empty FLUX_OUTPUT_DIR and FLUX_DATA_DIR. Needs the system's chromium.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from config.settings import ROOT

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# Each seed draws every example prompt once; the last picture is the one on the stage.
SEEDS = (3, 7, 11)
RUN_MS = 600_000
MAX_BYTES = 300_000


def take(url: str, folder: Path) -> list[Path]:
    """Both screenshots as files."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("chromium is missing; install it (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        desktop = _open(browser, url, width=1440, height=900, scale=1)
        examples = desktop.locator("#examples button").all_inner_texts()
        for seed in SEEDS:
            for prompt in reversed(examples):
                _draw(desktop, prompt, seed)
        phone = _open(browser, url, width=390, height=844, scale=2)
        _draw(phone, examples[0], SEEDS[-1] + 1)
        taken = [
            _save(desktop, folder / "page.png"),
            _save(phone, folder / "page-phone.png"),
        ]
        browser.close()
    return taken


def _open(browser: Browser, url: str, *, width: int, height: int, scale: int) -> Page:
    page = browser.new_page(
        viewport={"width": width, "height": height},
        device_scale_factor=scale,
        color_scheme="dark",
        reduced_motion="reduce",
    )
    page.goto(f"{url}/ui/")
    page.locator("#examples button").first.wait_for()
    return page


def _draw(page: Page, prompt: str, seed: int) -> None:
    page.evaluate("document.getElementById('settings').open = true")
    page.check("input[name=seed_mode][value=fixed]")
    page.fill("#seed", str(seed))
    page.evaluate("document.getElementById('settings').open = false")
    page.fill("#prompt", prompt)
    page.keyboard.press("Enter")
    page.locator("#run:not([data-phase=idle])").wait_for()
    page.locator("#run[data-phase=idle]").wait_for(timeout=RUN_MS)
    page.locator(f"#facts:has-text('{seed}')").wait_for()


def _save(page: Page, path: Path) -> Path:
    page.wait_for_function("[...document.images].every((image) => image.complete)")
    page.wait_for_timeout(500)
    page.screenshot(path=path)
    if path.stat().st_size > MAX_BYTES:  # 256 colours are near enough for a page this calm
        with Image.open(path) as image:
            image.convert("RGB").quantize(256).save(path, optimize=True)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description="Takes the screenshots of the page in docs/.")
    parser.add_argument("--url", default="http://127.0.0.1:8001", help="of a running service")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs", help="where they go")
    arguments = parser.parse_args()
    for path in take(arguments.url.rstrip("/"), arguments.folder):
        print(f"{path} {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
