"""What Prometheus and Grafana are given: their own tools check it, against what a service really tells."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from config.settings import ROOT, leaves
from scripts.monitoring import write_dashboard
from tests.service import RunningService

FOLDER = ROOT / "scripts" / "monitoring"
NAME = re.compile(r"\b(?:flux|process)_[a-z_]+\b")
# Absent where there is no GPU, no budget, and before a first refusal or change.
SOMETIMES = re.compile(r"flux_gpu_.*|flux_cloud_budget_usd|flux_http_errors_total")


def promtool(*arguments: str, stdin: str = "") -> None:
    done = subprocess.run(
        ["promtool", *arguments],
        cwd=FOLDER,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
        ("test", "rules", "alerts_day_test.yml"),
    ],
)
def test_rules_are_sound_and_fire_when_they_should(arguments: tuple[str, ...]) -> None:
    promtool(*arguments)


def test_every_alert_is_tried() -> None:
    alerts = set(re.findall(r"alert: (\w+)", (FOLDER / "alerts.yml").read_text()))
    tests = "".join(path.read_text() for path in FOLDER.glob("alerts_*test.yml"))
    tried = set(re.findall(r"alertname: (\w+)", tests))
    assert alerts == tried


def test_dashboard_is_what_its_table_says() -> None:
    assert write_dashboard.PATH.read_text(encoding="utf-8") == write_dashboard.text()


def test_dashboard_panels_do_not_overlap_and_have_queries() -> None:
    panels = json.loads(write_dashboard.PATH.read_text())["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels) and all(panel["targets"] for panel in panels)


def until_told(service: RunningService, names: set[str]) -> None:
    """A service that has drawn tells them all; of a job that has just ended some are counted a moment later."""

    def missing() -> set[str]:
        return names - set(NAME.findall(service.client.get("/metrics").text))

    service.wait_for_job(service.submit())
    try:
        service.wait_until(lambda: not missing())
    except AssertionError:
        raise AssertionError(f"not told: {missing()}") from None


@pytest.mark.parametrize("name", ["alerts.yml", "dashboard.json"])
def test_metrics_that_are_asked_for_are_told(engine_service: RunningService, name: str) -> None:
    asked = {
        found
        for found in NAME.findall((FOLDER / name).read_text())
        if not SOMETIMES.fullmatch(found)
    }
    assert len(asked) > 5
    until_told(engine_service, asked)


def test_answer_of_a_service_is_what_prometheus_reads(engine_service: RunningService) -> None:
    promtool("check", "metrics", stdin=engine_service.client.get("/metrics").text)


# What docs/operations.md tells


def test_operations_page_names_every_setting_of_cleanup() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    names = {f"FLUX_{key.upper()}" for section, key, _ in leaves() if section == "cleanup"}
    assert names and names <= set(re.findall(r"FLUX_CLEANUP_[A-Z_]+", page))


def test_operations_page_names_no_metric_that_is_not_told(engine_service: RunningService) -> None:
    table = (ROOT / "docs" / "operations.md").read_text().partition("## Metrics")[2]
    named = {name for name in re.findall(r"flux_[a-z_]+", table) if not SOMETIMES.fullmatch(name)}
    assert len(named) > 15
    until_told(engine_service, named)
