"""The fleet's dashboard in states that machines with GPUs have, told by a stand-in for the front door.

With a real fleet it is shown by `tests/utils/fleet/test_fleet.py`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.frontend.conftest import OpenPage
from tests.frontend.page import PHONE
from tests.frontend.test_hygiene import axe, grave_findings
from tests.service import KeyedService, RunningService

__all__ = ["axe"]

MARKUP = "<img src=x onerror=alert(1)>"
CARD = {
    "name": "NVIDIA H100 80GB HBM3",
    "memory_total_mib": 81920,
    "memory_used_mib": 20480,
    "utilization_percent": 97,
}


def replica(name: str, **values: Any) -> dict[str, Any]:
    known = {
        "name": name, "state": "idle", "precision": "bf16", "resources": ["bf16"], "job_ids": [],
        "models": [], "loading": None, "memory_mib": 0, "is_asleep": False, "processors": 0.12,
        "cards": [], "deaths_last_10_minutes": 0, "last_death": None,
    }  # fmt: skip
    return known | values


def node(name: str, *replicas: dict, is_draining: bool = False) -> dict[str, Any]:
    return {
        "node_id": name,
        "is_draining": is_draining,
        "is_drained": is_draining,
        "replicas": list(replicas),
    }


FLEET = {
    "queued": 1234,
    "running": 3,
    "held": f"the queue is paused {MARKUP}",
    "nodes": [
        node(
            "studio",
            replica(
                "studio/gpu0", state="busy", job_ids=["a"], models=["flux-dev"], cards=[CARD],
                memory_mib=19000,
            ),
            replica("studio/gpu1", precision="fp4", resources=["fp4"], job_ids=["b", "c"]),
            replica("studio/gpu2", loading={"what": "transformer 2 of 3", "fraction": 0.4}),
        ),
        node(
            "a-name-as-long-as-a-machine-in-a-rack-may-have-it.example.internal"[:63],
            replica("x/cpu0", is_asleep=True, state="stopped"),
            replica(
                "x/cpu1", state="restarting", deaths_last_10_minutes=2, last_death="killed by SIGKILL"
            ),
            is_draining=True,
        ),
        node("mac", replica("mac/apple", resources=["bf16", "mflux"])),
    ],
    "decisions": [
        {"job_id": "01a219169254", "model": MARKUP, "node_id": "studio", "reason": MARKUP}
    ],
}  # fmt: skip
STATS = {
    "total": 1234, "completed": 1230, "failed": 4, "avg_generation_ms": 1834,
    "by_node": {"studio": 900, MARKUP: 34},
    "by_model": {"flux-dev": 700},
    "by_tag": {"posters": 55, MARKUP: 12, "x" * 64: 3},
    "recent": [
        {
            "timestamp": f"2026-11-26T17:0{index}:11.123Z", "status": "completed",
            "model": "flux-dev", "node_id": "studio", "generation_ms": 1834, "width": 1024,
            "height": 1024, "tags": ["posters", MARKUP], "error": MARKUP if index else "",
        }
        for index in range(2)
    ],
}  # fmt: skip
TOLD = {"fleet": FLEET, "image-stats": STATS, "settings": {"image_generation": True}}


@pytest.fixture
def dashboard(engine_service: RunningService, open_page: OpenPage):
    """Opens the dashboard of the fleet above."""

    def opened(**options: Any) -> Page:
        page = open_page("about:blank", origins=(engine_service.url,), **options)
        page.route("**/dashboard/api/*", tell)
        page.goto(f"{engine_service.url}/ui/dashboard.html")
        expect(page.locator("#nodes .card")).to_have_count(3)
        for place in ("#day", "#recent", "#decisions"):  # each is told by itself
            expect(page.locator(place)).to_contain_text(MARKUP)
        return page

    return opened


def tell(route: Route) -> None:
    name = route.request.url.rpartition("/")[2]
    route.fulfill(content_type="application/json", body=json.dumps(TOLD[name]))


def replica_words(page: Page, name: str) -> str:
    return page.locator("#nodes li", has_text=name).first.inner_text()


def test_dashboard_replica_says_what_it_does_and_has(dashboard) -> None:
    page = dashboard()
    assert "gpu0 · BF16 · draws" in replica_words(page, "gpu0")
    assert "flux-dev · 19000 MiB" in replica_words(page, "gpu0")
    assert "H100 80GB HBM3: 20.0 of 80 GiB, 97 %" in replica_words(page, "gpu0")
    meter = page.locator("#nodes meter")
    assert meter.evaluate("meter => meter.value / meter.max") == 0.25
    assert "FP4 · draws 2 together" in replica_words(page, "gpu1")
    assert "loads transformer 2 of 3, 40 %" in replica_words(page, "gpu2")
    assert "asleep" in replica_words(page, "cpu0")
    assert "Its worker ended: killed by SIGKILL" in replica_words(page, "cpu1")
    assert "BF16 + mflux" in replica_words(page, "apple")


def test_dashboard_markup_in_what_is_told_is_text(dashboard) -> None:
    page = dashboard()
    page.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
    assert page.locator("img[src=x]").count() == 0
    for place in ("#state", "#day", "#recent", "#decisions"):
        expect(page.locator(place)).to_contain_text(MARKUP)


def test_dashboard_fits_a_phone(dashboard) -> None:
    page = dashboard(viewport=PHONE | {"width": 360})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    drain = page.get_by_role("button", name="Take part again").bounding_box()
    assert drain is not None and drain["x"] + drain["width"] <= 360


def test_dashboard_has_no_grave_finding_of_axe(dashboard, axe: str) -> None:
    assert grave_findings(dashboard(), axe) == []


def test_dashboard_asks_for_a_key_and_says_what_is_wrong_after(
    keyed_service: KeyedService, open_page: OpenPage
) -> None:
    page = open_page(f"{keyed_service.url}/ui/dashboard.html", errors_expected=True)
    page.get_by_label("Key", exact=True).fill(keyed_service.key)
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#state")).to_contain_text("this service is no fleet")
    expect(page.locator("#key-form")).to_be_hidden()
