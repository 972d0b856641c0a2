"""`POST /generate`: one request, its pictures in the answer."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from api import answers, forms
from api.json_body import StrictJsonRoute
from api.middleware import owner_of
from api.schemas import GenerateBody
from api.services import Services, ServicesDep
from config.errors import ClientGone, JobFailed
from utils.job import Job, JobStatus
from utils.requests import Wanted

router = APIRouter(tags=["generate"], route_class=StrictJsonRoute)


class AnswerFormat(StrEnum):
    JSON = "json"  # the picture as base64 among its facts
    RAW = "raw"  # the picture's bytes, facts in headers


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "application/json": {},
            "image/png": {},
            "image/jpeg": {},
            "image/webp": {},
        }
    }
}
_FORM_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image", "prompt"],
                    "description": "The fields of POST /generate, `image` and `mask` as files. "
                    "`file` is another name of `image`.",
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "mask": {"type": "string", "format": "binary"},
                        "prompt": {"type": "string"},
                        "strength": {"type": "number", "minimum": 0, "maximum": 1},
                    },
                    "additionalProperties": {"type": "string"},
                }
            }
        },
    }
}


@router.post(
    "/generate",
    summary="Draw one request and wait for it",
    responses=_ANSWERS,
)
async def generate(
    request: Request,
    body: GenerateBody,
    services: ServicesDep,
    format: Annotated[AnswerFormat | None, Query(description="`json` (default) or `raw`.")] = None,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    return await _answer(request, services, body.wanted(), format, accept)


@router.post(
    "/upload-image-generate",
    summary="Draw a request that begins with a picture, sent as a form, and wait for it",
    responses=_ANSWERS,
    openapi_extra=_FORM_BODY,
)
async def upload_image_generate(
    request: Request,
    services: ServicesDep,
    format: Annotated[AnswerFormat | None, Query(description="`json` (default) or `raw`.")] = None,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    body, pictures = await forms.read_request(request)
    wanted = replace(body.wanted(), **pictures)
    return await _answer(request, services, wanted, format, accept)


async def _answer(
    request: Request,
    services: Services,
    wanted: Wanted,
    format: AnswerFormat | None,
    accept: str | None,
) -> Response:
    resolved = await services.resolve(wanted)
    services.queue.require_worker()  # who waits must know for what
    job = await services.queue.submit(resolved, owner=owner_of(request))
    done = await _wait_or_cancel(request, services, job)
    if format is AnswerFormat.RAW or (format is None and _wants_image(accept)):
        return await _raw(services, done)
    return await _json(services, done)


async def _wait_or_cancel(request: Request, services: Services, job: Job) -> Job:
    """The finished job. A client that hangs up cancels it. Raises JobFailed, ClientGone, Unavailable."""
    waiting = asyncio.create_task(services.queue.wait(job))
    hung_up = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({waiting, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            await services.queue.cancel(job.id)
            raise ClientGone("the client hung up; its job was cancelled")
        ended = await waiting
    finally:
        hung_up.cancel()
        waiting.cancel()
        await asyncio.gather(hung_up, waiting, return_exceptions=True)
    if ended.status is JobStatus.CANCELLED:
        raise JobFailed("cancelled", f"job {ended.id} was cancelled")
    if ended.error is not None:
        raise JobFailed(ended.error.code, ended.error.message)
    return ended


async def _hung_up(request: Request) -> None:
    """Returns when the client is gone. The body was read, so nothing else can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _json(services: Services, job: Job) -> JSONResponse:
    data = await asyncio.to_thread(_path(services, job).read_bytes)
    answer: dict[str, Any] = {
        **answers.result_json(job),
        "image": base64.b64encode(data).decode(),
    }
    return JSONResponse(answer)


async def _raw(services: Services, job: Job) -> Response:
    data = await asyncio.to_thread(_path(services, job).read_bytes)
    return Response(
        data,
        media_type=job.request.output_format.media_type,
        headers={
            "X-Job-Id": job.id,
            "X-Seed": str(job.request.seed),
            "X-Model": job.request.model,
            "X-Generation-Time": str(round(answers.generation_time_ms(job))),
            "X-Fleet-Node": services.plan.node,
            "X-Fleet-Model": job.request.model,
        },
    )


def _path(services: Services, job: Job) -> Path:
    assert job.result is not None
    return services.plan.settings.storage.output_dir / job.result.images[0].filename


def _wants_image(accept: str | None) -> bool:
    """Whether the client names an image type and not JSON (a browser's or curl's `*/*` is no wish)."""
    if not accept:
        return False
    kinds = [part.split(";")[0].strip().lower() for part in accept.split(",")]
    return any(kind.startswith("image/") for kind in kinds) and "application/json" not in kinds
