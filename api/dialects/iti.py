"""The ITI image service's API: `POST /api/txt2img` with a `backend` per request. Its other routes are ours.

Its fields are those of `POST /generate`, and so is the answer; some are also known by older names.
"""

from __future__ import annotations

import base64
from typing import Any

from fastapi import APIRouter, Request

from api import answers, drawing
from api.dialects import bodies, native
from api.services import ServicesDep
from config.errors import InvalidRequest

router = APIRouter(tags=["ITI"])

# Its word, and ours.
ALIASES = {"cfg_scale": "guidance_scale", "batch_size": "num_images", "n": "num_images"}

_REQUEST = bodies.json_body(
    "prompt", prompt="string", backend="string", model="string", width="integer", height="integer",
    steps="integer", cfg_scale="number", seed="integer",
)  # fmt: skip


@router.post("/api/txt2img", openapi_extra=_REQUEST)
async def txt2img(request: Request, services: ServicesDep) -> dict[str, Any]:
    body = await native.json_object(request)
    names: dict[str, str] = {}
    for alias, name in ALIASES.items():
        if alias in body:
            if name in body:
                raise InvalidRequest.of(alias, f"is the same field as {name}; send one")
            names[name] = alias
            body[name] = body.pop(alias)
    with native.in_words(names):
        job = await drawing.drawn(request, services, native.wanted_of(body, names))
    data = await drawing.picture(services, job)
    return {**answers.result_json(job), "image": base64.b64encode(data).decode()}
