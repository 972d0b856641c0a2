"""`/jobs`: submit without waiting, read, list, cancel."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import FileResponse

from api import answers
from api.json_body import StrictJsonRoute
from api.routes.images import file_of
from api.schemas import GenerateBody
from api.services import ServicesDep
from config.errors import FluxError, NotFound
from utils.job import JobStatus

router = APIRouter(tags=["jobs"], route_class=StrictJsonRoute)

JobId = Annotated[str, Path(min_length=1, max_length=64)]


@router.post("/jobs", status_code=202, summary="Put a request into the queue")
async def submit(
    body: GenerateBody,
    services: ServicesDep,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> dict[str, Any]:
    request = services.plan.resolver.resolve(body.wanted())
    job = await services.queue.submit(
        request, idempotency_key=idempotency_key, body_sha256=body.digest()
    )
    position = await services.queue.store.position(job) if job.status is JobStatus.QUEUED else None
    return {"id": job.id, "status": job.status.value, "position": position}


@router.get("/jobs", summary="Jobs, newest first")
async def list_jobs(
    services: ServicesDep,
    status: Annotated[JobStatus | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
) -> dict[str, Any]:
    jobs = await services.queue.store.list(status=status, limit=limit, offset=offset)
    return {
        "jobs": [await answers.job_json(job, services.queue) for job in jobs],
        "limit": limit,
        "offset": offset,
    }


@router.get("/jobs/{job_id}", summary="One job")
async def read_job(job_id: JobId, services: ServicesDep) -> dict[str, Any]:
    return await answers.job_json(await services.queue.get(job_id), services.queue)


@router.post("/jobs/{job_id}/cancel", summary="Cancel a job, waiting or running")
async def cancel_job(job_id: JobId, services: ServicesDep) -> dict[str, Any]:
    job = await services.queue.cancel(job_id)
    return {
        "id": job.id,
        "cancelled": job.status is JobStatus.CANCELLED,
        "status": job.status.value,
    }


@router.get(
    "/jobs/{job_id}/image",
    summary="A picture of a finished job",
    response_class=FileResponse,
)
async def job_image(
    job_id: JobId, services: ServicesDep, index: Annotated[int, Query(ge=0, le=7)] = 0
) -> Response:
    job = await services.queue.get(job_id)
    if job.result is None:
        raise _no_image_yet(job.id, job.status)
    image = await services.queue.store.image(f"{job.id}-{index}")
    if image is None:
        raise NotFound(f"job {job.id} has no picture {index}, or it was deleted")
    return file_of(services, image)


def _no_image_yet(job_id: str, status: JobStatus) -> FluxError:
    if status.is_final:
        return NotFound(f"job {job_id} is {status.value} and has no picture")
    return NotFound(f"job {job_id} is {status.value}; its picture is not there yet")
