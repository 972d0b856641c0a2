"""Jobs, pictures and workers as JSON for clients."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from api.services import Services
from models.lora.entry import MAX_UNKNOWN_KEYS, LoraEntry
from models.lora.library import Library
from models.lora.names import SUFFIX
from models.types import GenerationRequest
from utils.job import Job, StoredImage
from utils.lora_choice import DefaultLora
from utils.lora_fetcher import Fetching
from utils.queue_manager import JobProgress, QueueManager
from utils.worker.parent import Worker


def request_json(request: GenerationRequest) -> dict[str, Any]:
    values = request.to_json()
    values["metadata"] = {"tags": list(values.pop("tags"))}
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
            "nsfw_flagged": image.nsfw_flagged,
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
        # Of the picture: a cloud may draw another size than it was asked for.
        "width": images[0]["width"],
        "height": images[0]["height"],
        "dimensions": {name: images[0][name] for name in ("width", "height")},
        "model": request.model,
        "backend": request.backend,
        "precision": result.precision,
        "engine": result.engine,
        "device": result.device,
        "node": job.node,
        "seed": request.seed,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "true_cfg_scale": request.true_cfg_scale,
        "images": images,
        # Those that did not come; a picture's place in the request is that of its seed.
        "failed_images": [asdict(image) for image in result.failed],
        "nsfw_flagged": _any_flagged(job),
        "filename": images[0]["filename"],
        "image_url": images[0]["image_url"],
        "download_url": images[0]["download_url"],
        "loras_applied": [asdict(lora) for lora in result.loras],
        "timings_ms": dict(result.timings_ms),
        "generation_time_ms": generation_time_ms(job),
        "cost_usd": result.cost_usd,
    }


def _any_flagged(job: Job) -> bool | None:
    """Whether one of its pictures was flagged as not safe for work; None: nobody looked."""
    assert job.result is not None
    verdicts = [image.nsfw_flagged for image in job.result.images]
    return True if True in verdicts else None if None in verdicts else False


def fleet_headers(job: Job, services: Services) -> dict[str, str]:
    """Who drew a finished job, and how often it was tried before."""
    return {
        "X-Fleet-Node": job.node or services.plan.node,
        "X-Fleet-Model": job.request.model,
        "X-Fleet-Retries": str(max(0, job.attempts - 1)),
        "X-Generation-Time": str(round(generation_time_ms(job))),
    }


def picture_headers(job: Job, services: Services) -> dict[str, str]:
    """What an answer says of a finished job beside its pictures."""
    return {
        "X-Job-Id": job.id,
        "X-Seed": str(job.request.seed),
        "X-Model": job.request.model,
        **fleet_headers(job, services),
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
        "node": job.node,
        "gpu": job.worker,
    }


def lora_json(entry: LoraEntry, compatible_models: list[str]) -> dict[str, Any]:
    info = entry.info
    return {
        "name": entry.name,
        "filename": entry.filename,
        "stored_filename": f"{entry.sha256}{SUFFIX}",
        "sha256": entry.sha256,
        "size_bytes": info.size_bytes,
        "status": "ready",
        "format": info.format,
        "base_model": info.base.name,
        "family": info.base.family.value,
        "hidden_size": info.base.hidden_size,
        "rank": max(info.ranks, default=None),
        "ranks": list(info.ranks),
        "alpha": max(info.alphas, default=None),
        "alphas": list(info.alphas),
        "targets": list(info.targets),
        "text_encoders": list(info.text_encoders),
        "modules": info.modules,
        "tensors": info.tensors,
        "unknown_keys": list(info.unknown_keys[:MAX_UNKNOWN_KEYS]),
        "trigger_words": list(entry.trigger_words),
        "compatible_models": compatible_models,
        "refusal": info.refusal,
        "builtin": entry.is_builtin,
        "source": entry.source,
        "hub_ids": list(entry.hub_ids),
        "created_at": entry.created_at,
    }


def default_lora_json(default: DefaultLora, library: Library) -> dict[str, Any]:
    """`available` is false when it was deleted by another service: requests are refused then."""
    entry = library.by_sha256(default.sha256)
    words = () if entry is None else entry.trigger_words
    if default.trigger_word is not None:
        words = (default.trigger_word,) if default.trigger_word else ()
    return {
        "name": default.name if entry is None else entry.name,
        "sha256": default.sha256,
        "weight": default.weight,
        "trigger_words": list(words),
        "available": entry is not None,
    }


def fetching_json(fetching: Fetching) -> dict[str, Any]:
    """A LoRA that is on its way into the library."""
    return {
        "name": fetching.name,
        "status": "fetching",
        "size_bytes": fetching.size_bytes,
        "received_bytes": fetching.received_bytes,
        "fraction": fetching.fraction,
    }


def worker_json(worker: Worker, services: Services) -> dict[str, Any]:
    """Of its jobs those that the caller may see."""
    jobs = _seen(list(worker.jobs), services)
    return {
        "name": worker.name,
        "state": worker.state.value,
        "job_id": worker.job_id if worker.job_id in jobs else None,
        "job_ids": jobs,
        "model": worker.model,
        "engine": worker.engine,
        "compute": worker.compute,
        "loading": loading_json(worker),
        "device": worker.device,
        "memory_mib": worker.memory_mib,
        "pid": worker.pid,
        "deaths_last_10_minutes": worker.deaths,
        "last_death": worker.last_death,
    }


def loading_json(worker: Worker) -> dict[str, Any] | None:
    """What a worker fetches or loads now, and how much of it is done where that is known."""
    if worker.loading is None:
        return None
    what, fraction = worker.loading
    return {"what": what, "fraction": fraction}


def queue_json(services: Services) -> dict[str, Any]:
    queue = services.queue
    return {
        "paused": queue.is_paused,
        "held": queue.why_waiting(),
        "running": _seen(queue.running_ids, services),
        "queued": queue.waiting,
        "max_queue_size": services.plan.settings.queue.max_queue_size,
        "workers": [worker_json(worker, services) for worker in queue.workers],
    }


def _seen(job_ids: list[str], services: Services) -> list[str]:
    """Of jobs that have not ended those that the caller may see."""
    access, queue = services.access, services.queue
    return [each for each in job_ids if access.sees_all or access.owner == queue.owner_of(each)]


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
        "pinned": image.is_pinned,
        "nsfw_flagged": image.nsfw_flagged,
        "request": {**request_json(image.request), "seed": image.seed, "num_images": 1},
    }


def progress_json(progress: JobProgress) -> dict[str, Any]:
    return {
        "stage": progress.stage,
        "step": progress.step,
        "steps": progress.steps,
        "eta_ms": None if progress.eta_ms is None else round(progress.eta_ms),
    }
