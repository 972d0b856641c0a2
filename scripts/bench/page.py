"""How quick the page is: until it can be used, and a frame while 200 nodes are panned and zoomed.

    python -m scripts.bench.page [--nodes 200] [--frames 120]

Starts a service of its own on a free port and Debian's chromium without a GPU, and prints the lines of
`docs/benchmarks.md`. A frame's cost is the processor time of everything that the page's main thread did between two
frames, from Chromium's trace: events, script, style, layout, paint, commit. Drawing the layers is
the compositor's, in threads of its own; frames that came on the screen are counted beside it.

A machine that is shared counts time to a thread in which it did nothing. How much that is shows in a page that has
nothing but the same arithmetic in every frame, under the same gestures in the same minutes: its frames would all cost
the same. What the worst frame of ours was spent on is said beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

from scripts.bench.service import start_service

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
DESKTOP = {"width": 1440, "height": 900}
CATEGORIES = "toplevel,devtools.timeline,disabled-by-default-devtools.timeline.frame"
OPENINGS = 7
# When the prompt can be typed into, by the page's own clock.
WATCH = """window.usable = new Promise((resolve) => {
    const look = () => document.activeElement?.dataset?.role === "prompt"
        ? resolve(performance.now()) : requestAnimationFrame(look);
    requestAnimationFrame(look);
});"""


# A page without a page: a few milliseconds of arithmetic in each frame.
ARITHMETIC = """() => {
    const work = () => {
        let sum = 0;
        for (let i = 0; i < 1_500_000; i++) sum += Math.sqrt(i);
        document.title = String(sum);
        requestAnimationFrame(work);
    };
    requestAnimationFrame(work);
}"""
# By what a person would call it: the trace's names, none of which lies in another of the same row.
PARTS = {
    "script": ("FireAnimationFrame", "EventDispatch", "TimerFire"),
    "style and layout": ("UpdateLayoutTree", "Layout"),
    "paint": ("PrePaint", "Paint", "Layerize", "Commit"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """What frames of a gesture cost the main thread, and how many reached the screen."""

    costs_ms: list[float]
    worst_ms: dict[str, float]  # of the dearest frame, by PARTS
    drawn: int
    seconds: float

    def words(self) -> str:
        ordered = sorted(self.costs_ms)
        at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
        return (
            f"median {statistics.median(ordered):.1f} ms, p95 {at(0.95):.1f} ms, worst {ordered[-1]:.1f} ms "
            f"of {len(ordered)} ({self.parts()}); {self.drawn / self.seconds:.0f} frames a second drawn"
        )

    def parts(self) -> str:
        return ", ".join(f"{part} {ms:.1f}" for part, ms in self.worst_ms.items())


def workflow(nodes: int) -> str:
    """A file of four-node graphs, wired, in rows."""
    kinds = ("model", "prompt", "sampler", "image")
    ends = (("model", "sampler.model"), ("text", "sampler.prompt"), ("image", "image.image"))
    listed, wires = [], []
    for row in range(nodes // 4):
        ids = {kind: f"n{4 * row + place + 1}" for place, kind in enumerate(kinds)}
        for place, kind in enumerate(kinds):
            at = {"x": place * 380 + 1700 * (row % 7), "y": 700 * (row // 7)}
            listed.append({"id": ids[kind], "kind": kind, **at, "collapsed": False, "values": {}})
        for (output, end), source in zip(ends, ("model", "prompt", "sampler"), strict=True):
            target, socket = end.split(".")
            wire = {"from": f"{ids[source]}.{output}", "to": f"{ids[target]}.{socket}"}
            wires.append({"id": f"w{len(wires) + 1}", **wire})
    file = {"format": "flux-api workflow", "version": 1, "name": "", "nodes": listed}
    return json.dumps({**file, "wires": wires})


def usable_after_ms(browser: Browser, address: str) -> float:
    """From the navigation until the prompt has the focus, in a fresh profile."""
    context = browser.new_context(viewport=DESKTOP)
    context.add_init_script(WATCH)
    page = context.new_page()
    page.goto(address)
    usable = page.evaluate("window.usable")
    context.close()
    return float(usable)


def open_graph(browser: Browser, address: str, nodes: int) -> Page:
    page = browser.new_context(viewport=DESKTOP).new_page()
    page.goto(address)
    page.locator(".pill[data-phase=ready]").first.wait_for()
    page.evaluate(
        """(text) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([text], "many.json", { type: "application/json" }));
            const at = { bubbles: true, cancelable: true, clientX: 700, clientY: 500 };
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, ...at }));
        }""",
        workflow(nodes),
    )
    page.locator(".node").nth(nodes - 1).wait_for()
    page.keyboard.press("Escape")
    return page


def traced(page: Page, act: Callable[[], None]) -> Frames:
    """The frames of a gesture, from the trace of the page's main thread."""
    session = page.context.new_cdp_session(page)
    events: list[dict] = []
    session.on("Tracing.dataCollected", lambda sent: events.extend(sent["value"]))
    session.send("Tracing.start", {"categories": CATEGORIES, "transferMode": "ReportEvents"})
    act()
    _end_trace(page, session)
    session.detach()
    return _frames(events)


def _end_trace(page: Page, session: CDPSession) -> None:
    ended: list[bool] = []
    session.on("Tracing.tracingComplete", lambda _: ended.append(True))
    session.send("Tracing.end")
    while not ended:
        page.wait_for_timeout(20)


def _frames(events: list[dict]) -> Frames:
    fired = [each for each in events if each["name"] == "FireAnimationFrame"]
    thread = (fired[0]["pid"], fired[0]["tid"])
    mine = [each for each in events if (each["pid"], each["tid"]) == thread]
    begins = sorted(each["ts"] for each in mine if each["name"] == "BeginMainThreadFrame")
    tasks = [each for each in mine if each["name"].endswith("RunTask") and "dur" in each]
    first, last = fired[0]["ts"], fired[-1]["ts"]
    edges = [at for at in begins if first <= at <= last]
    spans = list(zip(edges, edges[1:], strict=False))
    costs = [_spent_ms(tasks, span) for span in spans]
    worst = spans[costs.index(max(costs))]
    of_worst = [
        (each["ts"], each["ts"] + each["dur"])
        for each in tasks
        if worst[0] <= each["ts"] < worst[1]
    ]
    timed = [each for each in mine if "dur" in each]
    parts = {
        part: sum(
            _spent_ms([each for each in timed if each["name"] in names], span) for span in of_worst
        )
        for part, names in PARTS.items()
    }
    drawn = [each for each in events if each["name"] == "DrawFrame" and first <= each["ts"] <= last]
    return Frames(costs_ms=costs, worst_ms=parts, drawn=len(drawn), seconds=(last - first) / 1e6)


def _spent_ms(events: list[dict], span: tuple[int, int]) -> float:
    """The processor time of what began in a span."""
    start, end = span
    return sum(each.get("tdur", each["dur"]) for each in events if start <= each["ts"] < end) / 1000


def pan(page: Page, frames: int) -> None:
    """Drags the ground, a step for each frame."""
    page.mouse.move(720, 12 + 60)
    page.mouse.down(button="middle")
    for step in range(frames):
        page.mouse.move(720 + 6 * (step % 60), 72 + 3 * (step % 80))
    page.mouse.up(button="middle")


def zoom(page: Page, frames: int) -> None:
    """Turns the wheel in and out again."""
    page.mouse.move(720, 450)
    for step in range(frames):
        page.mouse.wheel(0, -40 if step % 40 < 20 else 40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--frames", type=int, default=120)
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("chromium is missing; install it (Debian: apt install chromium)")
    print(f"{platform.machine()}, {os.cpu_count()} cores, no GPU")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        process, client = start_service(Path(folder))
        address = f"{client.base_url}/ui/".replace("//ui", "/ui")
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        try:
            times = [usable_after_ms(browser, address) for _ in range(OPENINGS)]
            print(f"chromium {browser.version}")
            print(
                f"until the prompt can be typed into, fresh profile: median {statistics.median(times):.0f} ms, "
                f"worst of {OPENINGS} {max(times):.0f} ms"
            )
            blank = browser.new_context(viewport=DESKTOP).new_page()
            page = open_graph(browser, address, arguments.nodes)
            for scale in ("fitted", "100 %"):
                page.keyboard.press("f" if scale == "fitted" else "0")
                page.wait_for_timeout(1000)
                for act in (pan, zoom):
                    page.bring_to_front()
                    found = traced(page, lambda act=act: act(page, arguments.frames))
                    print(f"{arguments.nodes} nodes, {scale}, {act.__name__}: {found.words()}")
                    blank.bring_to_front()
                    blank.evaluate(ARITHMETIC)
                    found = traced(blank, lambda act=act: act(blank, arguments.frames))
                    blank.goto("about:blank")  # ends it: else its frames would be among the page's
                    print(f"arithmetic alone, {act.__name__}: {found.words()}")
        finally:
            browser.close()
            client.close()
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
