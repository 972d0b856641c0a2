"""`GET /metrics` of a real service, and what it tells of GPUs that a stand-in has."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.routes import metrics
from tests.service import KeyedService, RunningService
from utils import gpu_manager
from utils.gpu_manager import Gpu


def told(service: RunningService) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample, by its name and labels."""
    answer = service.client.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def sample(service: RunningService, name: str, **labels: str) -> float | None:
    return told(service).get((name, tuple(sorted(labels.items()))))


def test_metrics_of_a_finished_job(engine_service: RunningService) -> None:
    labels = {"model": "embedded", "status": "succeeded"}
    assert (
        engine_service.generate(width=128, height=128).status_code == 200
    )  # what came before is counted
    before = sample(engine_service, "flux_jobs_total", **labels)
    assert engine_service.generate(width=128, height=128).status_code == 200
    assert sample(engine_service, "flux_jobs_total", **labels) == before + 1
    assert sample(engine_service, "flux_job_seconds_count", model="embedded", size="small") >= 1
    assert sample(engine_service, "flux_queue_depth", lane="local") == 0
    assert sample(engine_service, "flux_ready") == 1


def test_metrics_of_a_failed_job_have_its_code(engine_service: RunningService) -> None:
    code = engine_service.generate(prompt="raise").json()["code"]
    assert sample(engine_service, "flux_job_errors_total", code=code) >= 1


@pytest.mark.parametrize(
    ("method", "path", "code", "status"),
    [
        ("GET", "/jobs/none", "not_found", "404"),
        ("GET", "/nothing/here", "not_found", "404"),
        ("POST", "/generate", "invalid_request", "400"),
        ("PATCH", "/info", "method_not_allowed", "405"),
    ],
)
def test_metrics_count_refusals_by_code(
    engine_service: RunningService, method: str, path: str, code: str, status: str
) -> None:
    before = sample(engine_service, "flux_http_errors_total", code=code, status=status) or 0
    engine_service.client.request(method, path)
    after = sample(engine_service, "flux_http_errors_total", code=code, status=status)
    assert after >= before + 1


def test_metrics_of_a_running_job(engine_service: RunningService) -> None:
    job = engine_service.submit("hold metrics")
    engine_service.wait_until_at_work(job)
    assert sample(engine_service, "flux_jobs_running", lane="local") == 1
    engine_service.release("metrics")
    engine_service.wait_for_job(job)


def test_metrics_ask_for_a_key_that_may_everything(keyed_service: KeyedService) -> None:
    assert keyed_service.client.get("/metrics").status_code == 200
    with keyed_service.as_key(keyed_service.make_key("generate", "loras")) as client:
        assert client.get("/metrics").status_code == 403


def test_metrics_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(index=1, uuid="GPU-1", name="H100", memory_total_mib=80_000)
    load = {
        "memory_used_mib": 1024,
        "memory_free_mib": 2048,
        "utilization_percent": 50,
        "temperature_c": None,  # not every card says it
        "power_w": 300.5,
    }
    monkeypatch.setattr(gpu_manager, "list_gpus", lambda: ([gpu], ""))
    monkeypatch.setattr(gpu_manager, "read_load", lambda asked: load)
    found = {family.name: family.samples for family in metrics._of_gpus()}
    [used] = found["flux_gpu_memory_used_bytes"]
    assert (used.labels, used.value) == ({"gpu": "1", "name": "H100"}, 2**30)
    assert found["flux_gpu_utilization_ratio"][0].value == 0.5
    assert found["flux_gpu_temperature_celsius"] == []


def test_metrics_of_a_driver_that_fails_have_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(index=0, uuid="GPU-0", name="H100", memory_total_mib=80_000)
    monkeypatch.setattr(gpu_manager, "list_gpus", lambda: ([gpu], ""))
    monkeypatch.setattr(gpu_manager, "read_load", lambda asked: {"error": "it fell off the bus"})
    assert all(family.samples == [] for family in metrics._of_gpus())
