"""What A1111's clients ask before they draw: models, samplers, options, memory. Lists of what is not here are empty."""

from __future__ import annotations

import asyncio
from typing import Any

import psutil
from fastapi import APIRouter, Request

from api.auth import owner_of
from api.dialects import bodies, native
from api.dialects.sdapi import SAMPLER, runs_of
from api.dialects.sdapi_request import model_of
from api.services import Services, ServicesDep
from config.errors import NotBuilt
from utils import gpu_manager

router = APIRouter(prefix="/sdapi/v1", tags=["A1111"])

MIB = 2**20
SAMPLERS = [{"name": SAMPLER, "aliases": ["euler", "k_euler"], "options": {}}]
SCHEDULERS = [
    {
        "name": "simple",
        "label": "Simple",
        "aliases": None,
        "default_rho": -1.0,
        "need_inner_model": False,
    }
]
_EMPTY: dict[str, Any] = {
    "samplers": SAMPLERS,
    "schedulers": SCHEDULERS,
    "upscalers": [],
    "latent-upscale-modes": [],
    "sd-vae": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "prompt-styles": [],
    "artist-categories": [],
    "artists": [],
    "embeddings": {"loaded": {}, "skipped": {}},
    "scripts": {"txt2img": [], "img2img": []},
    "script-info": [],
    "extensions": [],
    "cmd-flags": {"api": True},
}
_REFRESHES = ("refresh-checkpoints", "refresh-loras", "refresh-vae", "refresh-embeddings")
NOT_HERE = (
    "extra-single-image", "extra-batch-images", "interrogate", "create/embedding",
    "create/hypernetwork", "train/embedding", "train/hypernetwork",
)  # fmt: skip


@router.get("/sd-models")
async def sd_models(services: ServicesDep) -> list[dict[str, Any]]:
    resolver = services.plan.resolver
    return [
        {
            "title": row.id,
            "model_name": row.id,
            "hash": None,
            "sha256": None,
            "filename": row.source,
            "config": None,
        }
        for row in services.plan.catalog
        if resolver.why_not_here(row) is None
    ]


@router.get("/loras")
async def loras(services: ServicesDep) -> list[dict[str, Any]]:
    return [
        {
            "name": entry.name,
            "alias": entry.name,
            "path": entry.filename,
            "metadata": {
                "trigger_words": list(entry.trigger_words),
                "base_model": entry.info.base.name,
            },
        }
        for entry in await services.plan.loras.entries()
    ]


@router.get("/options")
async def read_options(request: Request, services: ServicesDep) -> dict[str, Any]:
    return _options(runs_of(request).checkpoint(services, owner_of(request)))


@router.post("/options", openapi_extra=bodies.json_body(sd_model_checkpoint="string"))
async def write_options(request: Request, services: ServicesDep) -> dict[str, Any]:
    """Sets the model of this key's later calls. Clients send whole sets of options: others change nothing."""
    body = await native.json_object(request)
    title = native.text(body, "sd_model_checkpoint")
    if title is not None:
        runs_of(request).set_checkpoint(owner_of(request), model_of(services, title).id)
    return {}


@router.get("/memory")
async def memory(services: ServicesDep) -> dict[str, Any]:
    ram = psutil.virtual_memory()
    return {
        "ram": {"free": ram.available, "used": ram.total - ram.available, "total": ram.total},
        "cuda": await _cuda(services),
    }


@router.post("/unload-checkpoint")
async def unload_checkpoint(services: ServicesDep) -> dict[str, Any]:
    await services.queue.unload_model()
    return {}


@router.post("/reload-checkpoint")
async def reload_checkpoint(request: Request, services: ServicesDep) -> dict[str, Any]:
    """Loads the key's model. A model of the cloud is nowhere but there, so for it nothing is to be done."""
    row = services.plan.resolver.model(runs_of(request).checkpoint(services, owner_of(request)))
    if row.cloud is None:
        await services.load(row)
    return {}


async def constant(request: Request) -> Any:
    return _EMPTY[_last_part(request)]


async def refresh() -> None:
    """Nothing is kept here that would have to be read anew."""


async def not_here(request: Request) -> None:
    raise NotBuilt(f"{request.url.path} is not here: nothing in this service does it")


def _last_part(request: Request) -> str:
    return request.url.path.removeprefix(router.prefix + "/")


for _name in _EMPTY:
    router.add_api_route(f"/{_name}", constant, methods=["GET"])
for _name in _REFRESHES:
    router.add_api_route(f"/{_name}", refresh, methods=["POST"])
for _name in NOT_HERE:
    router.add_api_route(f"/{_name}", not_here, methods=["POST"], include_in_schema=False)


def _options(model: str) -> dict[str, Any]:
    return {
        "sd_model_checkpoint": model,
        "sd_checkpoint_hash": "",
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_save": True,
        "samples_format": "png",
        "enable_pnginfo": True,
        "live_previews_enable": True,
    }


async def _cuda(services: Services) -> dict[str, Any]:
    gpus = [gpu for worker in services.queue.workers for gpu in worker.slot.gpus]
    if not gpus:
        return {"error": "no GPU is used"}
    load = await asyncio.to_thread(gpu_manager.read_load, gpus[0])
    if "error" in load:
        return load
    free, used = int(load["memory_free_mib"]) * MIB, int(load["memory_used_mib"]) * MIB
    return {"system": {"free": free, "used": used, "total": gpus[0].memory_total_mib * MIB}}
