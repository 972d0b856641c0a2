"""The queue as a whole."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from api import answers
from api.dialects.comfy_runs import queue_fields
from api.services import ServicesDep

router = APIRouter(tags=["queue"])


@router.get("/queue", summary="What runs, how many wait, how the workers are")
async def read_queue(request: Request, services: ServicesDep) -> dict[str, Any]:
    """With ComfyUI's fields beside ours, because its clients ask the same path."""
    return {**answers.queue_json(services), **queue_fields(services, request.app.state.comfy)}


@router.post("/queue/pause", summary="Begin no more jobs; running ones end")
async def pause(services: ServicesDep) -> dict[str, Any]:
    await services.queue.pause()
    return answers.queue_json(services)


@router.post("/queue/resume", summary="Go on")
async def resume(services: ServicesDep) -> dict[str, Any]:
    await services.queue.resume()
    return answers.queue_json(services)


@router.post("/queue/clear", summary="Cancel every job that waits")
async def clear(services: ServicesDep) -> dict[str, Any]:
    cleared = await services.queue.clear()
    return {**answers.queue_json(services), "cleared": cleared}


@router.get("/queue-stats", summary="Counts of jobs by status, and how long one takes")
async def queue_stats(services: ServicesDep) -> dict[str, Any]:
    queue = services.queue
    counts = await queue.store.counts()
    mean = queue.pace.job_seconds
    return {
        **counts,
        "max_queue_size": services.plan.settings.queue.max_queue_size,
        "workers": len(queue.local_workers),
        "mean_job_seconds": None if mean is None else round(mean, 3),
        # The older words.
        "queue_size": queue.waiting,
        "active_requests": counts["running"],
        "completed_requests": counts["succeeded"] + counts["failed"] + counts["cancelled"],
        "max_concurrent": len(queue.workers),
        "estimated_wait_seconds": round(
            queue.wait_seconds(queue.waiting_here + len(queue.running_here)), 1
        ),
    }
