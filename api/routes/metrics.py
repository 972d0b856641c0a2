"""`GET /metrics`: for Prometheus. What was counted since the start, and what a look tells now."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator, Mapping

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from api.services import Services, ServicesDep
from api.version import VERSION
from config.errors import StorageUnavailable
from utils import gpu_manager
from utils.line import Lane
from utils.worker.parent import WorkerState

router = APIRouter(tags=["service"])

GIB = 2**30
MIB = 2**20


@router.get(
    "/metrics", summary="Metrics in Prometheus' text format", response_class=PlainTextResponse
)
async def metrics(request: Request, services: ServicesDep) -> Response:
    now = [
        *_of_service(services),
        *_of_queue(services),
        *_of_workers(services),
        *await asyncio.to_thread(_of_gpus),
        *_of_disk(services),
        *await _of_cloud(services),
        *_of_cleanup(services),
        _refusals(request.app.state.refusals),
    ]
    text = generate_latest(services.queue.meter.registry) + generate_latest(_Collected(now))
    return Response(text, media_type=CONTENT_TYPE_LATEST)


class _Collected:
    """What was found now, as a registry of the library's gives it."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _gauge(name: str, what: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, what, labels=labels)


def _of_service(services: Services) -> Iterator[Metric]:
    profile = services.plan.profile
    info = _gauge("flux_info", "The service.", "service", "precision", "version", "default_model")
    info.add_metric([profile.service, profile.name, VERSION, services.plan.default.id], 1)
    yield info
    ready = _gauge("flux_ready", "1 while a job can be taken.")
    ready.add_metric([], int(services.queue.why_not_ready() is None))
    yield ready


def _of_queue(services: Services) -> Iterator[Metric]:
    queue = services.queue
    here = {Lane.LOCAL: queue.waiting_here, Lane.CLOUD: queue.waiting - queue.waiting_here}
    local = len(queue.running_here)
    at_work = {Lane.LOCAL: local, Lane.CLOUD: len(queue.running_ids) - local}
    depth = _gauge("flux_queue_depth", "Jobs in line.", "lane")
    running = _gauge("flux_jobs_running", "Jobs that workers have.", "lane")
    for lane in Lane:
        depth.add_metric([lane.value], here[lane])
        running.add_metric([lane.value], at_work[lane])
    limit = _gauge("flux_queue_limit", "Jobs that may wait in a lane.")
    limit.add_metric([], services.plan.settings.queue.max_queue_size)
    held = _gauge("flux_queue_held", "1 while no waiting job may begin: paused, stopping, no room.")
    held.add_metric([], int(queue.why_waiting() is not None))
    yield from (depth, running, limit, held)


def _of_workers(services: Services) -> Iterator[Metric]:
    states = _gauge("flux_worker_state", "1 for the state that a worker is in.", "worker", "state")
    memory = _gauge(
        "flux_worker_memory_bytes", "Memory of a worker's device that it uses.", "worker"
    )
    models = _gauge("flux_model_memory_bytes", "What a loaded model takes.", "worker", "model")
    for worker in services.queue.local_workers:
        for state in WorkerState:
            states.add_metric([worker.name, state.value], int(worker.state is state))
        if worker.memory_mib is not None:
            memory.add_metric([worker.name], worker.memory_mib * MIB)
        for model, held in worker.models.items():
            models.add_metric([worker.name, model], held.gib * GIB)
    yield from (states, memory, models)


_GPU_GAUGES = {
    "memory_used_mib": ("flux_gpu_memory_used_bytes", "Memory of a GPU in use, by whomever.", MIB),
    "memory_free_mib": ("flux_gpu_memory_free_bytes", "Memory of a GPU that is free.", MIB),
    "utilization_percent": ("flux_gpu_utilization_ratio", "How busy a GPU is, 0 to 1.", 0.01),
    "temperature_c": ("flux_gpu_temperature_celsius", "Temperature of a GPU.", 1),
    "power_w": ("flux_gpu_power_watts", "What a GPU draws.", 1),
}


def _of_gpus() -> Iterator[Metric]:
    """Blocks. No series where there is no GPU, or where it does not answer."""
    labels = ("gpu", "name")
    families = {key: _gauge(name, what, *labels) for key, (name, what, _) in _GPU_GAUGES.items()}
    for gpu in gpu_manager.list_gpus()[0]:
        load = gpu_manager.read_load(gpu)
        for key, (_, _, unit) in _GPU_GAUGES.items():
            value = load.get(key)
            if isinstance(value, int | float):
                families[key].add_metric([str(gpu.index), gpu.name], value * unit)
    return iter(list(families.values()))


def _of_disk(services: Services) -> Iterator[Metric]:
    storage = services.plan.settings.storage
    free = _gauge("flux_disk_free_bytes", "Free space where a folder lies.", "folder")
    folders = {"output": storage.output_dir, "data": storage.data_dir, "loras": storage.lora_dir}
    for name, path in folders.items():
        try:
            stats = os.statvfs(path)
        except OSError:
            continue  # a folder that is not there has no free space to tell
        free.add_metric([name], stats.f_bavail * stats.f_frsize)
    yield free


async def _of_cloud(services: Services) -> list[Metric]:
    """What was charged since the start is `flux_cost_usd_total`; this is the day's, failed jobs included."""
    day = services.plan.chance.now().strftime("%Y-%m-%d")
    spent = _gauge(
        "flux_cloud_spent_today_usd", "What the cloud cost today (UTC), as far as is known."
    )
    budget = _gauge("flux_cloud_budget_usd", "What it may cost in a day; absent: no limit.")
    try:
        [row] = await services.queue.store.read("cloud_spent", {"day": day})
        spent.add_metric([], row["usd"])
    except StorageUnavailable:
        pass  # flux_ready tells that
    if services.plan.settings.cloud.bfl_daily_budget_usd:
        budget.add_metric([], services.plan.settings.cloud.bfl_daily_budget_usd)
    return [spent, budget]


def _of_cleanup(services: Services) -> Iterator[Metric]:
    last = services.cleanup.last
    began = _gauge(
        "flux_cleanup_timestamp_seconds", "When the last cleanup began; before it, the service."
    )
    began.add_metric([], services.cleanup.started if last is None else last.began)
    interval = _gauge("flux_cleanup_interval_seconds", "How often it cleans up; absent: never.")
    minutes = services.plan.settings.cleanup.cleanup_interval_minutes
    if minutes:
        interval.add_metric([], minutes * 60)
    removed = _gauge("flux_cleanup_removed", "What the last cleanup removed.", "kind")
    if last is not None:
        for kind, tally in last.tallies.items():
            removed.add_metric([kind], tally.count)
    yield from (began, interval, removed)


def _refusals(counted: Counter[tuple[str, int]]) -> Metric:
    family = CounterMetricFamily(
        "flux_http_errors", "Answers of 400 and above, by error code.", labels=("code", "status")
    )
    found: Mapping[tuple[str, int], int] = dict(counted)
    for (code, status), count in found.items():
        family.add_metric([code, str(status)], count)
    return family
