"""What is counted while jobs go through the queue."""

from __future__ import annotations

from typing import Any

import pytest

from models.types import GenerationResult, ImageFile
from tests.utils.soak.bench import request
from utils.job import Job, JobError, JobStatus
from utils.meter import Meter, size_class

TIMINGS = {"queued": 500.0, "total": 2500.0}


def value(meter: Meter, name: str, **labels: str) -> float | None:
    return meter.registry.get_sample_value(name, labels)


def ended(status: JobStatus, *, images: int = 0, cost: float = 0.0, code: str = "", **fields: Any):
    files = tuple(
        ImageFile(filename=f"a-{n}.png", seed=1, width=1024, height=1024, size_bytes=9)
        for n in range(images)
    )
    result = GenerationResult(
        images=files, engine="e", precision="p", device="d", timings_ms=TIMINGS, cost_usd=cost
    )
    return Job(
        seq=1,
        id="a",
        status=status,
        request=request(**fields),
        created_at="",
        result=result if images else None,
        error=JobError(code=code, message="") if code else None,
    )


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(512, 512, "small"), (1024, 1024, "medium"), (768, 768, "medium"), (1536, 1024, "large")],
)
def test_size_class(width: int, height: int, size: str) -> None:
    assert size_class(width, height) == size


def test_job_ended_well_is_counted_with_its_times_and_cost() -> None:
    meter = Meter()
    meter.job_ended(ended(JobStatus.SUCCEEDED, images=2, cost=0.25))
    assert value(meter, "flux_jobs_total", model="embedded", status="succeeded") == 1
    assert value(meter, "flux_images_total", model="embedded") == 2
    assert value(meter, "flux_cost_usd_total", model="embedded") == 0.25
    assert value(meter, "flux_job_seconds_sum", model="embedded", size="medium") == 2.0
    assert value(meter, "flux_job_wait_seconds_sum", lane="local") == 0.5


def test_job_ended_badly_is_counted_by_its_code() -> None:
    meter = Meter()
    meter.job_ended(ended(JobStatus.FAILED, code="oom"))
    assert value(meter, "flux_jobs_total", model="embedded", status="failed") == 1
    assert value(meter, "flux_job_errors_total", code="oom") == 1
    assert value(meter, "flux_images_total", model="embedded") is None


def test_loras_that_change_on_a_worker_are_a_swap() -> None:
    meter = Meter()
    one, other = [{"sha256": "a", "weight": 1.0}], [{"sha256": "a", "weight": 0.5}]
    for worker, model, loras in (
        ("w", "m", []), ("w", "m", one), ("w", "m", one), ("w", "m", other), ("v", "m", one),
        ("w", "n", one),
    ):  # fmt: skip
        meter.job_begun(worker, {"model": model, "loras": loras})
    # To one, and to its other weight; another worker and another model begin anew.
    assert value(meter, "flux_lora_swaps_total") == 2


def test_step_and_load_are_timed() -> None:
    meter = Meter()
    meter.step_took("m", 512, 512, 40.0)
    meter.model_loaded("m", 1500.0)
    assert value(meter, "flux_step_seconds_bucket", model="m", size="small", le="0.05") == 1
    assert value(meter, "flux_step_seconds_bucket", model="m", size="small", le="0.025") == 0
    assert value(meter, "flux_model_load_seconds_sum", model="m") == 1.5


def test_what_is_expected_is_there_before_it_happens() -> None:
    meter = Meter()
    meter.expect(["gpu0"], ["oom"])
    assert value(meter, "flux_worker_deaths_total", worker="gpu0") == 0
    assert value(meter, "flux_job_errors_total", code="oom") == 0
    meter.worker_died("gpu0")
    assert value(meter, "flux_worker_deaths_total", worker="gpu0") == 1
