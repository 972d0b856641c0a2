"""What ComfyUI's clients ask of a server before they send it a prompt: its nodes, its machine, its features."""

from __future__ import annotations

import platform
from typing import Any

import psutil
from fastapi import Request

from api.auth import owner_of
from api.dialects.comfy_nodes import NODES, object_info
from api.dialects.comfy_request import models_here
from api.dialects.comfy_runs import runs_of
from api.services import Services, ServicesDep
from api.version import VERSION
from models.lora.names import SUFFIX

MIB = 2**20


async def get_object_info(request: Request, services: ServicesDep) -> dict[str, Any]:
    there = await _choices(request, services)
    return {name: object_info(name, there) for name in NODES}


async def object_info_of(request: Request, node: str, services: ServicesDep) -> dict[str, Any]:
    if node not in NODES:
        return {}
    return {node: object_info(node, await _choices(request, services))}


async def _choices(request: Request, services: Services) -> dict[str, list[str]]:
    loras = [entry.name + SUFFIX for entry in await services.plan.loras.entries()]
    images = runs_of(request).uploads(owner_of(request))
    return {"models": models_here(services), "loras": loras, "images": images}


async def system_stats(services: ServicesDep) -> dict[str, Any]:
    ram = psutil.virtual_memory()
    worker = next((each for each in services.queue.workers if each.versions), None)
    return {
        "system": {
            "os": platform.system().lower(),
            "ram_total": ram.total,
            "ram_free": ram.available,
            "comfyui_version": f"flux-api {VERSION}",
            "python_version": platform.python_version(),
            "pytorch_version": "" if worker is None else worker.versions.get("torch", ""),
            "embedded_python": False,
            "argv": [],
        },
        "devices": [_device(index, worker) for index, worker in enumerate(services.queue.workers)],
    }


def _device(index: int, worker: Any) -> dict[str, Any]:
    gpus = worker.slot.gpus
    total = sum(gpu.memory_total_mib for gpu in gpus) * MIB
    free = max(0, total - (worker.memory_mib or 0) * MIB) if gpus else 0
    return {
        "name": " + ".join(gpu.name for gpu in gpus) or "cpu",
        "type": "cuda" if gpus else "cpu",
        "index": index if gpus else None,
        "vram_total": total,
        "vram_free": free,
        "torch_vram_total": total,
        "torch_vram_free": free,
    }


async def features() -> dict[str, Any]:
    return {"supports_preview_metadata": False}


async def nothing() -> list[Any]:
    return []
