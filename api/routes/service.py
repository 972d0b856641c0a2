"""The service itself: health, what it is, the hardware under it."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Response

from api import answers
from api.services import Services, ServicesDep
from api.version import VERSION
from config.catalog import CLOUD_BACKEND
from models import safety
from models.hub import on_disk
from utils import gpu_manager
from utils.line import Lane

router = APIRouter(tags=["service"])


@router.get("/health/live", summary="200 while the process answers")
async def live(services: ServicesDep) -> dict[str, str]:
    return {"status": "ok", "service": services.plan.profile.service}


@router.get("/health/ready", summary="200 while a job can be taken, else 503 with the reason")
async def ready(services: ServicesDep, response: Response) -> dict[str, str | None]:
    reason = services.queue.why_not_ready()
    _status(response, reason)
    return {"status": "ok" if reason is None else "unavailable", "reason": reason}


@router.get(
    "/health",
    summary="200 while it can serve, else 503 with the reason; with the workers",
)
async def health(services: ServicesDep, response: Response) -> dict[str, Any]:
    plan, queue = services.plan, services.queue
    reason = queue.why_not_ready()
    _status(response, reason)
    return {
        "status": "ok" if reason is None else "unavailable",
        "reason": reason,
        "service": plan.profile.service,
        "precision": plan.profile.name,
        "default_model": plan.default.id,
        "model_loaded": any(worker.model or worker.models for worker in queue.local_workers),
        "queued": queue.waiting,
        "running": len(queue.running_ids),
        "workers": [answers.worker_json(worker, services) for worker in queue.workers],
    }


@router.get("/info", summary="What this service is, and what it draws with and why")
async def info(services: ServicesDep) -> dict[str, Any]:
    plan = services.plan
    return {
        "service": plan.profile.service,
        "version": VERSION,
        "precision": plan.profile.name,
        "weights": plan.profile.weights,
        "engines": list(plan.profile.engines),
        "node": plan.node,
        "default_model": plan.default.id,
        "default_model_reason": plan.default.reason,
        "models": list(plan.catalog.ids),
        "devices": _devices(services),
        "libraries": next(
            (worker.versions for worker in services.queue.workers if worker.versions),
            {},
        ),
        "cloud": {
            "backend": CLOUD_BACKEND,
            "available": bool(plan.resolver.cloud_models),
            "default_model": plan.resolver.default_of(CLOUD_BACKEND),
            "daily_budget_usd": plan.settings.cloud.bfl_daily_budget_usd or None,
        },
        "max_queue_size": plan.settings.queue.max_queue_size,
        "output_formats": ["png", "jpeg", "webp"],
        "safety_checker": _safety_json(services),
        "key_needed": plan.keys.are_needed,
        "not_built": {"fields": [], "routes": []},
    }


@router.get("/gpu-info", summary="The GPUs, their memory and load, and which worker is where")
async def gpu_info(services: ServicesDep) -> dict[str, Any]:
    if services.plan.crew is not None:
        return _gpus_of_fleet(services)
    gpus, why_none = await asyncio.to_thread(gpu_manager.list_gpus)
    workers = {gpu.uuid: worker for worker in services.queue.workers for gpu in worker.slot.gpus}
    return {
        "gpus": [
            {
                "index": gpu.index,
                "uuid": gpu.uuid,
                "name": gpu.name,
                "memory_total_mib": gpu.memory_total_mib,
                **await asyncio.to_thread(gpu_manager.read_load, gpu),
                "worker": workers[gpu.uuid].name if gpu.uuid in workers else None,
                "model": workers[gpu.uuid].model if gpu.uuid in workers else None,
            }
            for gpu in gpus
        ],
        "reason": why_none or None,
        "devices": _devices(services),
    }


def _gpus_of_fleet(services: Services) -> dict[str, Any]:
    """The same of all machines, as their replicas told last."""
    return {
        "gpus": [
            {
                "index": gpu.index,
                "uuid": gpu.uuid,
                "name": gpu.name,
                "memory_total_mib": gpu.memory_total_mib,
                **load,
                "worker": worker.name,
                "model": worker.model,
            }
            for worker in services.queue.local_workers
            for gpu, load in zip(worker.slot.gpus, worker.read_cards(), strict=True)
        ],
        "reason": None,
        "devices": _devices(services),
    }


def _safety_json(services: Services) -> dict[str, Any]:
    """Whether all pictures are looked at, with what, and where they are not, why."""
    models = services.plan.settings.models
    # What a worker of ours has is known when it is up; the cloud's checker is at hand from the start.
    workers = [each for each in services.queue.workers if each.versions or each.lane is Lane.CLOUD]
    name = next((each.safety for each in workers if each.safety is not None), None)
    unseen = [each.name for each in workers if each.safety is None]
    reason = None
    if models.safety_checker == "off":
        reason = "FLUX_SAFETY_CHECKER is off"
    elif not workers:
        reason = "no worker is up yet"
    elif unseen and name is not None:
        reason = f"of what {', '.join(unseen)} draws nothing is looked at: the weights of a safety checker are not there"
    elif unseen:
        hub = on_disk.hub_folder(models.models_dir)
        found, reason = safety.find(models.safety_model, hub, services.plan.catalog)
        if found is not None:
            reason = "its weights came after the start; start the service again"
    return {
        "mode": models.safety_checker,
        "active": bool(workers) and not unseen,
        "model": name,
        "reason": reason,
    }


def _devices(services: Services) -> list[dict[str, Any]]:
    return [
        {
            "worker": worker.name,
            "kind": "gpu" if worker.slot.gpus else "cpu",
            "name": " + ".join(gpu.name for gpu in worker.slot.gpus) or "CPU",
            "memory_mib": worker.memory_mib,
            "engine": worker.engine,
            "compute": worker.compute,
        }
        for worker in services.queue.local_workers
    ]


def _status(response: Response, reason: str | None) -> None:
    if reason is not None:
        response.status_code = 503
        response.headers["Retry-After"] = "10"
