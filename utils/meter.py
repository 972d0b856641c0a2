"""What is counted and timed for Prometheus while jobs go through the queue.

Labels are few and have few values: models of the catalog, sizes in three classes, error codes. What a moment's
look tells (who waits, memory) is no matter of this module: `api/routes/metrics.py` looks when it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from utils.job import Job
from utils.line import Lane

JOB_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800)
WAIT_SECONDS = (0.05, 0.25, 1, 5, 15, 60, 300, 900, 3600)
STEP_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LOAD_SECONDS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
# Megapixels up to which a picture is of a class; what is larger is `large`.
SIZES = (("small", 0.3), ("medium", 1.1))


def size_class(width: int, height: int) -> str:
    """`small` up to about 512x512 px, `medium` up to about 1024x1024, `large` above."""
    megapixels = width * height / 1e6
    return next((name for name, most in SIZES if megapixels <= most), "large")


class Meter:
    """One service's counters. All calls from the event loop's thread."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series for every counter, which nobody asks for
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._jobs = self._counter("flux_jobs", "Jobs that ended.", "model", "status")
        self._errors = self._counter("flux_job_errors", "Failed jobs by error code.", "code")
        self._images = self._counter("flux_images", "Pictures that were drawn.", "model")
        self._cost = self._counter(
            "flux_cost_usd", "What clouds charged for pictures, US dollars.", "model"
        )
        self._swaps = self._counter(
            "flux_lora_swaps", "Jobs that a worker began with other LoRAs than the one before."
        )
        self._deaths = self._counter("flux_worker_deaths", "Worker processes that died.", "worker")
        self._job_seconds = self._histogram(
            "flux_job_seconds",
            "From a job's begin to its pictures on disk; waiting in line not counted.",
            JOB_SECONDS,
            "model",
            "size",
        )
        self._wait_seconds = self._histogram(
            "flux_job_wait_seconds", "How long jobs waited in line.", WAIT_SECONDS, "lane"
        )
        self._step_seconds = self._histogram(
            "flux_step_seconds", "One step of the sampler.", STEP_SECONDS, "model", "size"
        )
        self._load_seconds = self._histogram(
            "flux_model_load_seconds", "Loading a model.", LOAD_SECONDS, "model"
        )
        self._loras: dict[str, tuple[Any, ...]] = {}  # by worker, as of its last job

    def expect(self, workers: Sequence[str], errors: Sequence[str]) -> None:
        """Begin to count at 0: what appears with its first event has no increase that an alert could see."""
        for worker in workers:
            self._deaths.labels(worker)
        for code in errors:
            self._errors.labels(code)

    def job_ended(self, job: Job) -> None:
        model = job.request.model
        self._jobs.labels(model, job.status.value).inc()
        if job.error is not None:
            self._errors.labels(job.error.code).inc()
        if job.result is None:
            return
        timings, first = job.result.timings_ms, job.result.images[0]
        size = size_class(first.width, first.height)
        self._images.labels(model).inc(len(job.result.images))
        self._cost.labels(model).inc(job.result.cost_usd)
        self._job_seconds.labels(model, size).observe((timings["total"] - timings["queued"]) / 1000)
        self._wait_seconds.labels(Lane.of(job.request.backend).value).observe(
            timings["queued"] / 1000
        )

    def job_begun(self, worker: str, request: Mapping[str, Any]) -> None:
        """A worker is at a job: `request` is GenerationRequest.to_json()."""
        loras: Sequence[Mapping[str, Any]] = request.get("loras", ())
        wanted = (request["model"], *((each["sha256"], each["weight"]) for each in loras))
        before = self._loras.get(worker)
        if before is not None and before[0] == wanted[0] and before != wanted:
            self._swaps.inc()
        self._loras[worker] = wanted

    def step_took(self, model: str, width: int, height: int, milliseconds: float) -> None:
        size = size_class(width, height)
        self._step_seconds.labels(model, size).observe(milliseconds / 1000)

    def model_loaded(self, model: str, milliseconds: float) -> None:
        self._load_seconds.labels(model).observe(milliseconds / 1000)

    def worker_died(self, worker: str) -> None:
        self._deaths.labels(worker).inc()
        self._loras.pop(worker, None)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(name, what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, what, labels, buckets=buckets, registry=self.registry)
