"""`/jobs`: submit without waiting, read, list, cancel."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import FileResponse

from api import answers
from api.auth import owner_of
from api.json_body import StrictJsonRoute
from api.routes.images import file_of
from api.schemas import GenerateBody
from api.services import Services, ServicesDep
from config.errors import FluxError, InvalidRequest, NotFound
from models.types import MAX_IMAGES
from utils.job import Job, JobStatus
from utils.line import Lane

router = APIRouter(tags=["jobs"], route_class=StrictJsonRoute)

MAX_KEY_CHARACTERS = 200
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key and body again: the same job. Remembered for 24 hours.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS},
}

JobId = Annotated[str, Path(min_length=1, max_length=64)]


@router.post(
    "/jobs",
    status_code=202,
    response_model=None,
    summary="Put a request into the queue",
    openapi_extra={"parameters": [IDEMPOTENCY_KEY]},
)
async def submit(request: Request, body: GenerateBody, services: ServicesDep) -> dict[str, Any]:
    owner, key = owner_of(request), _idempotency_key(request)
    digest = body.digest() if key is not None else None
    if key is not None:
        # Before the request is looked at: what it names may be gone since, its job is not.
        earlier = await services.queue.earlier(owner, key, digest)
        if earlier is not None:
            return _submitted(services, earlier)
    job = await services.queue.submit(
        await services.resolve(body.wanted()),
        owner=owner,
        idempotency_key=key,
        body_sha256=digest,
    )
    return _submitted(services, job)


@router.get("/jobs", summary="Jobs, newest first")
async def list_jobs(
    services: ServicesDep,
    status: Annotated[JobStatus | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
) -> dict[str, Any]:
    jobs = await services.queue.store.list(
        status=status, limit=limit, offset=offset, owner=services.only_of
    )
    return {
        "jobs": [answers.job_json(job, services.queue) for job in jobs],
        "limit": limit,
        "offset": offset,
    }


@router.get("/jobs/{job_id}", summary="One job")
async def read_job(job_id: JobId, services: ServicesDep) -> dict[str, Any]:
    return answers.job_json(await services.job(job_id), services.queue)


@router.post("/jobs/{job_id}/cancel", summary="Cancel a job, waiting or running")
async def cancel_job(job_id: JobId, services: ServicesDep) -> dict[str, Any]:
    job = await services.queue.cancel((await services.job(job_id)).id)
    return {
        "id": job.id,
        "cancelled": job.status is JobStatus.CANCELLED,
        "status": job.status.value,
        **_charged_all_the_same(job),
    }


def _charged_all_the_same(job: Job) -> dict[str, str]:
    """A cancel ends our waiting, not what a cloud has begun."""
    was_asked = job.status is JobStatus.CANCELLED and job.started_at is not None
    if not was_asked or Lane.of(job.request.backend) is Lane.LOCAL:
        return {}
    return {"note": "BFL's cloud was asked for it, and may draw it and charge for it all the same"}


@router.post("/jobs/{job_id}/retry", status_code=202, summary="The same request as a new job")
async def retry_job(request: Request, job_id: JobId, services: ServicesDep) -> dict[str, Any]:
    job = await services.job(job_id)
    resolver = services.plan.resolver
    resolver.require_runs_here(resolver.model(job.request.model))  # now, not when it was submitted
    return _submitted(services, await services.queue.retry(job.id, owner=owner_of(request)))


@router.get(
    "/jobs/{job_id}/image",
    summary="A picture of a finished job",
    response_class=FileResponse,
)
async def job_image(
    job_id: JobId, services: ServicesDep, index: Annotated[int, Query(ge=0, lt=MAX_IMAGES)] = 0
) -> Response:
    job = await services.job(job_id)
    if job.result is None:
        raise _no_image_yet(job.id, job.status)
    image = await services.queue.store.image(f"{job.id}-{index}")
    if image is None:
        raise NotFound(f"job {job.id} has no picture {index}, or it was deleted")
    answer = await file_of(services, image)
    told = answers.picture_headers(job, services) | {"X-Seed": str(image.seed)}
    answer.headers.update(told)
    return answer


def _idempotency_key(request: Request) -> str | None:
    """Read by hand: the framework's way costs a submit a twentieth of its time."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise InvalidRequest.of(
            "idempotency-key", f"is {len(key)} long; 1 to {MAX_KEY_CHARACTERS} characters are taken"
        )
    return key


def _submitted(services: Services, job: Job) -> dict[str, Any]:
    return {"id": job.id, "status": job.status.value, "position": services.queue.position(job)}


def _no_image_yet(job_id: str, status: JobStatus) -> FluxError:
    if status.is_final:
        return NotFound(f"job {job_id} is {status.value} and has no picture")
    return NotFound(f"job {job_id} is {status.value}; its picture is not there yet")
