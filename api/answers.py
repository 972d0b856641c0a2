"""Jobs, pictures and workers as JSON for clients."""

from __future__ import annotations

from typing import Any

from config.settings import Settings
from models.types import GenerationRequest
from utils.job import Job, StoredImage
from utils.queue_manager import JobProgress, QueueManager
from utils.worker.parent import Worker


def request_json(request: GenerationRequest) -> dict[str, Any]:
    values = request.to_json()
    values["metadata"] = {"tags": list(values.pop("tags"))}
    values["loras"] = []
    return values


def image_urls(image_id: str, filename: str) -> dict[str, str]:
    return {"image_url": f"/images/{image_id}", "download_url": f"/download/{filename}"}


def result_images(job: Job) -> list[dict[str, Any]]:
    """The pictures of a finished job, in order."""
    assert job.result is not None
    return [
        {
            "id": f"{job.id}-{index}",
            "filename": image.filename,
            **image_urls(f"{job.id}-{index}", image.filename),
            "seed": image.seed,
            "width": image.width,
            "height": image.height,
            "size_bytes": image.size_bytes,
        }
        for index, image in enumerate(job.result.images)
    ]


def result_json(job: Job) -> dict[str, Any]:
    """What a finished job made, in the words of `POST /generate`'s answer, without the pixels."""
    assert job.result is not None
    request, result = job.request, job.result
    images = result_images(job)
    return {
        "id": job.id,
        "status": job.status.value,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "width": request.width,
        "height": request.height,
        "model": request.model,
        "backend": request.backend,
        "precision": result.precision,
        "engine": result.engine,
        "device": result.device,
        "seed": request.seed,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "true_cfg_scale": request.true_cfg_scale,
        "images": images,
        "filename": images[0]["filename"],
        "image_url": images[0]["image_url"],
        "download_url": images[0]["download_url"],
        "loras_applied": [],
        "timings_ms": dict(result.timings_ms),
        "generation_time_ms": generation_time_ms(job),
    }


def generation_time_ms(job: Job) -> float:
    """Milliseconds from the start of the job to its picture on disk; waiting in line not counted."""
    assert job.result is not None
    return round(job.result.timings_ms["total"] - job.result.timings_ms["queued"], 1)


def job_json(job: Job, queue: QueueManager) -> dict[str, Any]:
    progress = queue.progress(job.id)
    return {
        "id": job.id,
        "status": job.status.value,
        "request": request_json(job.request),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "position": queue.position(job),
        "attempts": job.attempts,
        "progress": (progress_json(progress) if progress and not job.status.is_final else None),
        "result": result_json(job) if job.result else None,
        "error": ({"code": job.error.code, "message": job.error.message} if job.error else None),
        "node": None,
        "gpu": job.worker,
    }


def worker_json(worker: Worker) -> dict[str, Any]:
    return {
        "name": worker.name,
        "state": worker.state.value,
        "job_id": worker.job_id,
        "job_ids": list(worker.jobs),
        "model": worker.model,
        "engine": worker.engine,
        "compute": worker.compute,
        "device": worker.device,
        "memory_mib": worker.memory_mib,
        "pid": worker.pid,
        "deaths_last_10_minutes": worker.deaths,
        "last_death": worker.last_death,
    }


def queue_json(queue: QueueManager, settings: Settings) -> dict[str, Any]:
    return {
        "paused": queue.is_paused,
        "held": queue.why_held(),
        "running": queue.running_ids,
        "queued": queue.waiting,
        "max_queue_size": settings.queue.max_queue_size,
        "workers": [worker_json(worker) for worker in queue.workers],
    }


def stored_image_json(image: StoredImage) -> dict[str, Any]:
    return {
        "id": image.id,
        "job_id": image.job_id,
        "filename": image.filename,
        **image_urls(image.id, image.filename),
        "thumbnail_url": f"/images/{image.id}/thumbnail",
        "seed": image.seed,
        "width": image.width,
        "height": image.height,
        "size_bytes": image.size_bytes,
        "created_at": image.created_at,
        "generation_time_ms": image.generation_time_ms,
        "prompt": image.request.prompt,
        "precision": image.precision,
        "engine": image.engine,
        "request": {**request_json(image.request), "seed": image.seed, "num_images": 1},
    }


def progress_json(progress: JobProgress) -> dict[str, Any]:
    return {
        "stage": progress.stage,
        "step": progress.step,
        "steps": progress.steps,
        "eta_ms": None if progress.eta_ms is None else round(progress.eta_ms),
    }
