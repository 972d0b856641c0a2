"""`POST /generate`: one request, its pictures in the answer."""

from __future__ import annotations

import base64
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from api import answers, drawing, forms
from api.json_body import StrictJsonRoute
from api.schemas import GenerateBody
from api.services import Services, ServicesDep
from config.catalog import MAX_REFERENCES
from utils.job import Job
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
                    "required": ["prompt"],
                    "description": "The fields of POST /generate, `image`, `mask` and `reference_images` as "
                    "files, the last as often as there are pictures; an image or a reference must be there. "
                    "`file` is another name of `image`.",
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "mask": {"type": "string", "format": "binary"},
                        "reference_images": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "maxItems": MAX_REFERENCES,
                        },
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
    done = await drawing.drawn(request, services, wanted)
    if format is AnswerFormat.RAW or (format is None and _wants_image(accept)):
        return await _raw(services, done)
    return await _json(services, done)


async def _json(services: Services, job: Job) -> JSONResponse:
    data = await drawing.picture(services, job)
    answer: dict[str, Any] = {
        **answers.result_json(job),
        "image": base64.b64encode(data).decode(),
    }
    return JSONResponse(answer, headers=answers.picture_headers(job, services))


async def _raw(services: Services, job: Job) -> Response:
    data = await drawing.picture(services, job)
    return Response(
        data,
        media_type=job.request.output_format.media_type,
        headers=answers.picture_headers(job, services),
    )


def _wants_image(accept: str | None) -> bool:
    """Whether the client names an image type and not JSON (a browser's or curl's `*/*` is no wish)."""
    if not accept:
        return False
    kinds = [part.split(";")[0].strip().lower() for part in accept.split(",")]
    return any(kind.startswith("image/") for kind in kinds) and "application/json" not in kinds
