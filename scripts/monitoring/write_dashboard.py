"""Writes `dashboard.json`, the Grafana dashboard: one row here is one panel there.

Run `python -m scripts.monitoring.write_dashboard` after a panel was changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "dashboard.json"
SOURCE = {"type": "prometheus", "uid": "${source}"}
ON = '{instance=~"$instance"}'


def by(metric: str, *labels: str, q: float) -> str:
    """A quantile of a histogram over the last minutes."""
    kept = ", ".join((*labels, "le"))
    return f"histogram_quantile({q}, sum by ({kept}) (rate({metric}_bucket{ON}[$__rate_interval])))"


# Title, unit of Grafana, [(query, legend)].
PANELS: tuple[tuple[str, str, list[tuple[str, str]]], ...] = (
    ("Takes jobs", "bool_yes_no", [(f"flux_ready{ON}", "{{instance}}")]),
    (
        "Jobs in line and running",
        "short",
        [
            (f"flux_queue_depth{ON}", "waits: {{instance}} {{lane}}"),
            (f"flux_jobs_running{ON}", "runs: {{instance}} {{lane}}"),
        ],
    ),
    (
        "Pictures a minute",
        "short",
        [(f"sum by (model) (rate(flux_images_total{ON}[$__rate_interval])) * 60", "{{model}}")],
    ),
    (
        "Seconds of a job",
        "s",
        [
            (by("flux_job_seconds", "model", "size", q=0.5), "median {{model}} {{size}}"),
            (by("flux_job_seconds", "model", "size", q=0.95), "95 % {{model}} {{size}}"),
        ],
    ),
    (
        "Seconds in line",
        "s",
        [
            (by("flux_job_wait_seconds", "lane", q=0.5), "median {{lane}}"),
            (by("flux_job_wait_seconds", "lane", q=0.95), "95 % {{lane}}"),
        ],
    ),
    (
        "Seconds of a step",
        "s",
        [(by("flux_step_seconds", "model", "size", q=0.5), "{{model}} {{size}}")],
    ),
    ("Seconds of a load", "s", [(by("flux_model_load_seconds", "model", q=0.5), "{{model}}")]),
    (
        "Changes of LoRAs a minute",
        "short",
        [(f"rate(flux_lora_swaps_total{ON}[$__rate_interval]) * 60", "{{instance}}")],
    ),
    (
        "Memory of GPUs",
        "bytes",
        [
            (f"flux_gpu_memory_used_bytes{ON}", "used: {{gpu}} {{name}}"),
            (f"flux_gpu_memory_free_bytes{ON}", "free: {{gpu}} {{name}}"),
        ],
    ),
    ("Use of GPUs", "percentunit", [(f"flux_gpu_utilization_ratio{ON}", "{{gpu}} {{name}}")]),
    (
        "Temperature of GPUs",
        "celsius",
        [(f"flux_gpu_temperature_celsius{ON}", "{{gpu}} {{name}}")],
    ),
    ("Power of GPUs", "watt", [(f"flux_gpu_power_watts{ON}", "{{gpu}} {{name}}")]),
    (
        "Memory of workers and models",
        "bytes",
        [
            (f"flux_worker_memory_bytes{ON}", "{{instance}} {{worker}}"),
            (f"flux_model_memory_bytes{ON}", "{{worker}} {{model}}"),
        ],
    ),
    (
        "Failed jobs by code, an hour",
        "short",
        [(f"sum by (code) (increase(flux_job_errors_total{ON}[1h]))", "{{code}}")],
    ),
    (
        "Refused requests by code, an hour",
        "short",
        [
            (
                f"sum by (code, status) (increase(flux_http_errors_total{ON}[1h]))",
                "{{status}} {{code}}",
            )
        ],
    ),
    (
        "Workers that died, an hour",
        "short",
        [(f"increase(flux_worker_deaths_total{ON}[1h])", "{{instance}} {{worker}}")],
    ),
    (
        "Cost of the cloud",
        "currencyUSD",
        [
            (f"flux_cloud_spent_today_usd{ON}", "today: {{instance}}"),
            (f"flux_cloud_budget_usd{ON}", "budget: {{instance}}"),
            (f"sum by (model) (increase(flux_cost_usd_total{ON}[24h]))", "24 h: {{model}}"),
        ],
    ),
    ("Free disk", "bytes", [(f"flux_disk_free_bytes{ON}", "{{instance}} {{folder}}")]),
    ("Last cleanup removed", "short", [(f"flux_cleanup_removed{ON}", "{{instance}} {{kind}}")]),
    (
        "The service's own memory",
        "bytes",
        [('process_resident_memory_bytes{job="flux", instance=~"$instance"}', "{{instance}}")],
    ),
)


def dashboard() -> dict[str, Any]:
    return {
        "uid": "flux-api",
        "title": "FLUX API",
        "tags": ["flux"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus", "label": "Source"},
                {
                    "name": "instance",
                    "type": "query",
                    "datasource": SOURCE,
                    "query": "label_values(flux_info, instance)",
                    "label": "Service",
                    "multi": True,
                    "includeAll": True,
                    "refresh": 2,
                },
            ]
        },
        "panels": [_panel(number, *panel) for number, panel in enumerate(PANELS)],
    }


def _panel(number: int, title: str, unit: str, queries: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": SOURCE,
        "gridPos": {"x": number % 3 * 8, "y": number // 3 * 8, "w": 8, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "expr": expression, "legendFormat": legend}
            for place, (expression, legend) in enumerate(queries)
        ],
    }


def text() -> str:
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
