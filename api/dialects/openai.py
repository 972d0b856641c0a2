"""OpenAI's Images API: `/v1/images/generations`, `/v1/images/edits`, `/v1/models`.

Any model name is accepted, because clients send names of OpenAI's: one of ours is that model, every
other is the default, and the answer says which drew. Sizes that the model does not draw become the
nearest it does; the answer says that, too. Our own fields (`seed`, `steps`, `loras`, …) may be sent
beside OpenAI's; fields that mean nothing here are ignored, as OpenAI's clients expect.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from api import drawing
from api.delivery import delivery_of
from api.dialects import bodies, native, openai_pictures, openai_stream
from api.input_sources import decoded
from api.services import Services, ServicesDep
from config.catalog import ModelRow
from config.errors import InvalidRequest, NotFound
from models.types import MAX_IMAGES
from utils.job import Job
from utils.requests import Wanted
from utils.retouch import Retouch, retouched

router = APIRouter(prefix="/v1", tags=["OpenAI Images"])

MAX_PARTIAL_IMAGES = 3
NAMES = {
    "num_images": "n",
    "output_quality": "output_compression",
    "width": "size",
    "height": "size",
    "reference_images": "image",
}
# Ours, taken as they are.
OURS = (
    "negative_prompt", "backend", "num_inference_steps", "steps", "guidance_scale", "guidance",
    "true_cfg_scale", "seed", "loras", "lora_name", "lora_weight", "strength", "metadata",
)  # fmt: skip
QUALITIES = frozenset({"low", "medium", "high", "xhigh", "max"})
_FIELDS = {
    "prompt": "string", "model": "string", "n": "integer", "size": "string", "quality": "any",
    "output_format": "string", "output_compression": "integer", "response_format": "string",
    "stream": "boolean", "partial_images": "integer",
}  # fmt: skip
_GENERATION = bodies.json_body("prompt", **_FIELDS)
_EDIT = bodies.either(
    bodies.form_body("prompt image", image="file", mask="file", **_FIELDS),
    bodies.json_body("prompt images", images="array", mask="any", **_FIELDS),
)
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {}, "text/event-stream": {}}}
}
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


@router.post("/images/generations", openapi_extra=_GENERATION, responses=_ANSWERS)
async def generations(request: Request, services: ServicesDep) -> Response:
    body = await native.json_object(request)
    row, wanted = _wanted(services, body)
    return await _answer(request, services, body, wanted, "image_generation")


@router.post("/images/edits", openapi_extra=_EDIT, responses=_ANSWERS)
async def edits(request: Request, services: ServicesDep) -> Response:
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        body, pictures, mask = await openai_pictures.of_form(request)
    else:
        body = await native.json_object(request)
        pictures = openai_pictures.of_body(body)
        mask = openai_pictures.reference("mask", body.get("mask"))
    if not pictures:
        raise InvalidRequest.of("image", "is missing: send the picture to edit")
    row, wanted = _wanted(services, body, has_picture=True)
    wanted = openai_pictures.with_pictures(row, wanted, pictures, is_masked=mask is not None)
    if mask is not None:
        data = mask if isinstance(mask, bytes) else decoded("mask", mask)
        mask = await retouched("mask", data, Retouch(mask_from="alpha"))
        wanted = replace(wanted, mask=mask)
    return await _answer(request, services, body, wanted, "image_edit")


@router.get("/models")
async def models(services: ServicesDep) -> dict[str, Any]:
    """The models that run here."""
    resolver = services.plan.resolver
    rows = [row for row in services.plan.catalog if resolver.why_not_here(row) is None]
    rows.sort(key=lambda row: row.id != services.plan.default.id)
    return {"object": "list", "data": [_model(row) for row in rows]}


@router.get("/models/{model:path}")
async def model(model: str, services: ServicesDep) -> dict[str, Any]:
    row = services.plan.catalog.get(model)
    if row is None:
        raise NotFound.of("model", f"there is no model {model[:64]!r}; GET /v1/models lists them")
    if reason := services.plan.resolver.why_not_here(row):
        raise NotFound.of("model", f"{reason}; GET /v1/models lists those that draw here")
    return _model(row)


def _model(row: ModelRow) -> dict[str, Any]:
    return {"id": row.id, "object": "model", "created": 0, "owned_by": row.backend}


def _wanted(
    services: Services, body: Mapping[str, Any], *, has_picture: bool = False
) -> tuple[ModelRow, Wanted]:
    model = native.text(body, "model")
    known = model if model is not None and model in services.plan.catalog else None
    row = native.row_of(services, known)
    native.whole(body, "n", 1, MAX_IMAGES, 1)
    if body.get("background") == "transparent":
        raise InvalidRequest.of("background", "cannot be transparent here; send opaque or auto")
    size = _size(row, native.text(body, "size"))
    compression = native.whole(body, "output_compression", 0, 100, 100)
    output_format = native.text(body, "output_format")
    values = {
        **{name: body.get(name) for name in OURS},
        "prompt": body.get("prompt"),
        "model": known,
        "image": "comes later" if has_picture else None,  # `strength` goes with it
        "num_images": native.whole(body, "n", 1, MAX_IMAGES, 1),
        "width": size and size[0],
        "height": size and size[1],
        "output_format": output_format,
        "output_quality": max(1, compression) if output_format in ("jpeg", "webp") else None,
    }
    return row, native.wanted_of(values, NAMES)


def _size(row: ModelRow, size: str | None) -> tuple[int, int] | None:
    if size in (None, "auto"):
        return None
    found = _SIZE.fullmatch(size)
    if found is None:
        raise InvalidRequest.of("size", f"must be auto or WIDTHxHEIGHT, not {size[:40]!r}")
    return native.fitted(row, int(found[1]), int(found[2]))


async def _answer(
    request: Request, services: Services, body: Mapping[str, Any], wanted: Wanted, kind: str
) -> Response:
    response_format = native.text(body, "response_format") or "b64_json"
    if response_format not in ("b64_json", "url"):
        raise InvalidRequest.of("response_format", "must be b64_json or url")
    partial_images = native.whole(body, "partial_images", 0, MAX_PARTIAL_IMAGES, 0)
    asked = body.get("quality")
    quality = asked if isinstance(asked, str) and asked in QUALITIES else "auto"
    if not isinstance(body.get("stream"), bool | None):
        raise InvalidRequest.of("stream", "must be true or false")
    if body.get("stream"):
        with native.in_words(NAMES):
            resolved = await services.resolve(wanted)
        job = await drawing.submitted(request, services, resolved)
        return openai_stream.ImageStream(
            services, job, kind=kind, partial_images=partial_images, quality=quality
        )
    with native.in_words(NAMES):
        job = await drawing.drawn(request, services, wanted)
    data = [
        await _datum(request, services, job, index, response_format)
        for index in range(len(job.pictures))
    ]
    answer = {
        "created": int(time.time()),
        "data": data,
        **openai_stream.facts(job, quality),
        "usage": openai_stream.NO_USAGE,
        "model": job.request.model,
        "id": job.id,
    }
    return JSONResponse(answer)


async def _datum(
    request: Request, services: Services, job: Job, index: int, response_format: str
) -> dict[str, Any]:
    assert job.result is not None
    image = job.result.images[index]
    if response_format == "url":
        link = delivery_of(request).link(request, f"{job.id}-{index}", image.filename)
        return {"url": link, "seed": image.seed}
    data = await drawing.picture(services, job, index)
    return {"b64_json": base64.b64encode(data).decode(), "seed": image.seed}
