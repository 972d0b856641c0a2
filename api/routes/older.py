"""Names that flux_api had for `/jobs`: submit, look, cancel. The answers are those of `/jobs`, and have its words too."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from api.json_body import StrictJsonRoute
from api.routes import jobs
from api.routes.jobs import IDEMPOTENCY_KEY, JobId
from api.schemas import GenerateBody
from api.services import ServicesDep

router = APIRouter(tags=["older names"], route_class=StrictJsonRoute)


@router.post(
    "/submit-request",
    status_code=202,
    response_model=None,
    summary="The older name of POST /jobs",
    openapi_extra={"parameters": [IDEMPOTENCY_KEY]},
)
async def submit_request(
    request: Request, body: GenerateBody, services: ServicesDep
) -> dict[str, Any]:
    answer = await jobs.submit(request, body, services)
    return {**answer, "request_id": answer["id"], "message": "Request submitted successfully"}


@router.get("/request-status/{job_id}", summary="The older name of GET /jobs/{job_id}")
async def request_status(job_id: JobId, services: ServicesDep) -> dict[str, Any]:
    answer = await jobs.read_job(job_id, services)
    wanted = answer["request"]
    first = wanted["loras"][0] if wanted["loras"] else None
    return {
        **answer,
        "request_id": answer["id"],
        "completed_at": answer["finished_at"],
        "lora_name": first["name"] if first else None,
        "lora_weight": first["weight"] if first else None,
        **{
            name: wanted[name]
            for name in (
                "prompt",
                "num_inference_steps",
                "guidance_scale",
                "width",
                "height",
                "seed",
            )
        },
    }


@router.post("/cancel-request/{job_id}", summary="The older name of POST /jobs/{job_id}/cancel")
@router.delete("/cancel-request/{job_id}", summary="The same, as flux_api had it")
async def cancel_request(job_id: JobId, services: ServicesDep) -> dict[str, Any]:
    answer = await jobs.cancel_job(job_id, services)
    told = "cancelled successfully" if answer["cancelled"] else f"is {answer['status']} already"
    return {**answer, "request_id": answer["id"], "message": f"Request {told}"}
