"""Models: what there is, what is loaded, load and unload."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, get_args

from fastapi import APIRouter

from api import answers
from api.json_body import StrictJsonRoute
from api.schemas import ModelBody
from api.services import Services, ServicesDep
from config.catalog import Catalog, ModelRow, Way
from models.hub import on_disk
from utils.clock import rfc3339
from utils.queue_manager import WorkerOutcome
from utils.worker.parent import Worker

_WAYS = get_args(Way)
router = APIRouter(tags=["models"], route_class=StrictJsonRoute)


@router.get("/api/models", summary="The catalog, with what runs here and why not")
async def list_models(services: ServicesDep) -> dict[str, Any]:
    plan = services.plan
    on_the_disk = await asyncio.to_thread(_look_at_disk, services)
    return {
        "models": [
            _model_json(services, row) | on_the_disk.get(row.id, _NOT_OURS) for row in plan.catalog
        ],
        "default_model": plan.default.id,
        "default_model_reason": plan.default.reason,
    }


@router.get("/api/backends", summary="Backends of this service")
async def list_backends(services: ServicesDep) -> dict[str, Any]:
    catalog = services.plan.catalog
    backends = sorted({row.backend for row in catalog})
    on_the_disk = await asyncio.to_thread(_look_at_disk, services)
    return {
        "backends": [
            _backend_json(services, backend)
            | {"downloaded": _downloaded_of(catalog, backend, on_the_disk)}
            for backend in backends
        ],
        "default_backend": catalog[services.plan.default.id].backend,
    }


@router.get("/model-status", summary="What each worker has loaded")
async def model_status(services: ServicesDep) -> dict[str, Any]:
    workers = services.queue.local_workers
    is_loaded = any(worker.model is not None or worker.models for worker in workers)
    return {
        "loaded": is_loaded,
        # The older words.
        "model_loaded": is_loaded,
        "model_type": services.plan.profile.name,
        "default_model": services.plan.default.id,
        "precision": services.plan.profile.name,
        "workers": [
            {
                "name": worker.name,
                "state": worker.state.value,
                "model": worker.model,
                "engine": worker.engine,
                "compute": worker.compute,
                "loading": answers.loading_json(worker),
                "models": _held_json(worker, services.plan.chance.now()),
                "device": worker.device,
                "memory_mib": worker.memory_mib,
                "load_error": worker.last_load_error,
            }
            for worker in workers
        ],
    }


@router.post("/load-model", summary="Load a model on every idle worker; answers when it is there")
async def load_model(services: ServicesDep, body: ModelBody | None = None) -> dict[str, Any]:
    wanted = body.model if body is not None and body.model is not None else services.plan.default.id
    row = services.plan.resolver.model(wanted)
    outcomes = await services.load(row)
    return {"model": row.id, "loaded": True, "workers": _outcomes(outcomes)}


@router.post("/unload-model", summary="Have every idle worker let go of a model, or of all")
async def unload_model(services: ServicesDep, body: ModelBody | None = None) -> dict[str, Any]:
    """`model` names one; left out: all that are loaded."""
    wanted = None if body is None or body.model is None else body.model
    if wanted is not None:
        services.plan.resolver.model(wanted)
    outcomes = await services.queue.unload_model(wanted)
    return {
        "model": wanted,
        "unloaded": all(outcome.done for outcome in outcomes),
        "workers": _outcomes(outcomes),
    }


def _backend_json(services: Services, backend: str) -> dict[str, Any]:
    resolver = services.plan.resolver
    rows = [row for row in services.plan.catalog if row.backend == backend]
    reasons = [resolver.why_not_here(row) for row in rows]
    is_available = None in reasons
    return {
        "id": backend,
        "models": [row.id for row in rows],
        "default_model": resolver.default_of(backend),
        "ways": [way for way in _WAYS if any(way in row.ways for row in rows)],
        "available": is_available,
        "reason": None if is_available else "; ".join(dict.fromkeys(filter(None, reasons))),
    }


def _price_json(services: Services, row: ModelRow) -> dict[str, Any] | None:
    """What a model of the cloud costs, and one picture of its default size; None for one that is free."""
    price = services.plan.prices.of(row)
    if price is None:
        return None
    return {
        **price.model_dump(exclude_none=True),
        "as_of": services.plan.prices.as_of,
        "default_size": price.of_picture(row.default_width, row.default_height),
    }


def _price_in_words(services: Services, row: ModelRow) -> str | None:
    price = services.plan.prices.of(row)
    return None if price is None else price.in_words(row.default_width, row.default_height)


def _model_json(services: Services, row: ModelRow) -> dict[str, Any]:
    reason = services.plan.resolver.why_not_here(row)
    return {
        "id": row.id,
        "title": row.title,
        "description": row.description,
        "backend": row.backend,
        "family": row.family,
        "source": row.source,
        "licence": row.licence,
        "precision": services.plan.profile.name,
        "precisions": services.plan.resolver.precisions_of(row),
        "is_default": row.id == services.plan.default.id,
        "available": reason is None,
        "reason": reason,
        "defaults": {
            "width": row.default_width,
            "height": row.default_height,
            "num_inference_steps": row.num_inference_steps,
            "guidance_scale": row.guidance_scale,
            "true_cfg_scale": row.true_cfg_scale,
        },
        "limits": {
            "min_size": row.min_size,
            "max_size": row.max_size,
            "size_multiple": row.size_multiple,
            "max_pixels": None if row.cloud is None else row.cloud.max_pixels,
        },
        "ways": list(row.ways),
        "requires": list(row.requires),
        "max_references": row.max_references if "references" in row.ways else 0,
        "takes_loras": row.loras,
        "takes_negative_prompt": row.negative_prompt,
        "uses_guidance_scale": row.guidance,
        "uses_steps": row.cloud is None or row.cloud.steps is not None,
        "uses_seed": row.cloud is None or row.cloud.seed,
        "price": _price_in_words(services, row),
        "price_usd": _price_json(services, row),
        "memory_gib": row.memory_gib.get(services.plan.profile.name),
        "example_prompts": list(row.example_prompts),
    }


# What a model of the cloud has on the disk.
_NOT_OURS: Mapping[str, Any] = {"downloaded": None, "disk_bytes": None}


def _look_at_disk(services: Services) -> dict[str, dict[str, Any]]:
    """By model: whether its files are on this machine and whole, and what they take."""
    models, precision = services.plan.settings.models, services.plan.profile.name
    hub = on_disk.hub_folder(models.models_dir)
    looked = {
        row.id: on_disk.files_of(row, hub, precision, models.models_dir)
        for row in services.plan.catalog
        if row.cloud is None
    }
    return {
        model: {"downloaded": is_here, "disk_bytes": size}
        for model, (is_here, size) in looked.items()
    }


def _downloaded_of(
    catalog: Catalog, backend: str, on_the_disk: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """The models of a backend whose files are here."""
    mine = [row.id for row in catalog if row.backend == backend and row.id in on_the_disk]
    return [model for model in mine if on_the_disk[model]["downloaded"]]


def _held_json(worker: Worker, now: datetime) -> list[dict[str, Any]]:
    """What is loaded, most recently used first."""
    held = sorted(worker.models, key=worker.idle_seconds)
    return [
        {
            "model": model,
            "memory_gib": worker.models[model].gib,
            "idle_seconds": round(worker.idle_seconds(model), 1),
            "last_used_at": rfc3339(now - timedelta(seconds=worker.idle_seconds(model))),
        }
        for model in held
    ]


def _outcomes(outcomes: list[WorkerOutcome]) -> list[dict[str, Any]]:
    return [
        {"name": outcome.worker, "done": outcome.done, "reason": outcome.reason}
        for outcome in outcomes
    ]
