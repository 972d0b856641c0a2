"""A job as routing sees it."""

from __future__ import annotations

import json

from fleet.wanted import Wanted
from models.types import GenerationRequest


def lora_set(request: GenerationRequest) -> str:
    """Names the LoRAs of a request and their weights: equal for equal sets."""
    return ",".join(f"{lora.sha256[:16]}:{lora.weight:g}" for lora in request.loras)


def wanted_of(
    job_id: str, seq: int, request: GenerationRequest, avoid: frozenset[str] = frozenset()
) -> Wanted:
    return Wanted(job=job_id, seq=seq, model=request.model, lora_set=lora_set(request), avoid=avoid)


def wanted_of_json(job_id: str, request: str) -> Wanted:
    return wanted_of(job_id, 0, GenerationRequest.from_json(json.loads(request)))
