"""A job as routing sees it."""

from __future__ import annotations

import json

from fleet.wanted import Wanted
from models.types import GenerationRequest
from utils.fleet.machine import MFLUX

UNIT_OF_WORK = 4 * 2**20  # four steps of a picture of 1024x1024 px


def lora_set(request: GenerationRequest) -> str:
    """Names the LoRAs of a request and their weights: equal for equal sets."""
    return ",".join(f"{lora.sha256[:16]}:{lora.weight:g}" for lora in request.loras)


def work_of(request: GenerationRequest) -> float:
    """How much there is to draw; a model's seconds are measured for one unit of it."""
    pixels = request.width * request.height * request.num_images
    return request.steps_to_run * pixels / UNIT_OF_WORK


def wanted_of(
    job_id: str, seq: int, request: GenerationRequest, avoid: frozenset[str] = frozenset()
) -> Wanted:
    return Wanted(
        job=job_id,
        seq=seq,
        model=request.model,
        work=work_of(request),
        lora_set=lora_set(request),
        # What another program draws goes where that program is, a precision where it is had.
        resources=frozenset({MFLUX} & {request.backend} | {request.precision} - {None}),
        avoid=avoid,
    )


def wanted_of_json(job_id: str, request: str) -> Wanted:
    return wanted_of(job_id, 0, GenerationRequest.from_json(json.loads(request)))
