"""A1111's API: `/sdapi/v1/txt2img`, `img2img`, `progress`, `interrupt`, `skip`, `png-info`.

`n_iter` iterations are as many jobs of `batch_size` pictures, so that `skip` leaves one of them out and
`interrupt` ends what is left; who waits gets what was finished by then.
"""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request

from api import drawing
from api.auth import owner_of
from api.dialects import bodies, native, sdapi_request
from api.dialects.sdapi_request import Asked
from api.dialects.sdapi_runs import Run, Runs
from api.input_sources import decoded
from api.services import Services, ServicesDep
from config.errors import InvalidRequest, JobFailed
from models.types import GenerationRequest
from utils.infotext import words_of
from utils.job import Job, JobStatus
from utils.metadata import PARAMETERS_KEY, infotext, read_png_texts

router = APIRouter(prefix="/sdapi/v1", tags=["A1111"])

SAMPLER = "Euler"
_FIELDS = {
    "prompt": "string", "negative_prompt": "string", "width": "integer", "height": "integer",
    "steps": "integer", "cfg_scale": "number", "seed": "integer", "batch_size": "integer",
    "n_iter": "integer", "override_settings": "object",
}  # fmt: skip
_IMG2IMG = bodies.json_body(
    "prompt init_images", init_images="array", mask="string", denoising_strength="number", **_FIELDS
)


def runs_of(request: Request) -> Runs:
    return request.app.state.sdapi


@router.post("/txt2img", openapi_extra=bodies.json_body("prompt", **_FIELDS))
async def txt2img(request: Request, services: ServicesDep) -> dict[str, Any]:
    return await _draw(request, services, with_image=False)


@router.post("/img2img", openapi_extra=_IMG2IMG)
async def img2img(request: Request, services: ServicesDep) -> dict[str, Any]:
    return await _draw(request, services, with_image=True)


@router.get("/progress")
async def progress(
    request: Request, services: ServicesDep, skip_current_image: str = "false"
) -> dict[str, Any]:
    run = runs_of(request).current(owner_of(request))
    with_image = skip_current_image.lower() not in ("true", "1")
    return (run or Run.NONE).progress_json(services.queue, with_image=with_image)


@router.post("/interrupt")
async def interrupt(request: Request, services: ServicesDep) -> dict[str, Any]:
    run = runs_of(request).current(owner_of(request))
    if run is not None:
        run.is_interrupted = True
        for job in run.jobs:
            await services.queue.cancel(job.id)
    return {}


@router.post("/skip")
async def skip(request: Request, services: ServicesDep) -> dict[str, Any]:
    run = runs_of(request).current(owner_of(request))
    job = run.first_open if run is not None else None
    if job is not None:
        await services.queue.cancel(job.id)
    return {}


@router.post("/png-info", openapi_extra=bodies.json_body("image", image="string"))
async def png_info(request: Request) -> dict[str, Any]:
    body = await native.json_object(request)
    data = decoded("image", native.text(body, "image") or "")
    try:
        items = await asyncio.to_thread(read_png_texts, data)
    except ValueError as error:
        raise InvalidRequest.of("image", f"{error}; only a PNG carries its parameters") from error
    text = items.get(PARAMETERS_KEY, "")
    return {"info": text, "items": items, "parameters": words_of(text)}


async def _draw(request: Request, services: Services, *, with_image: bool) -> dict[str, Any]:
    body = await native.json_object(request)
    runs = runs_of(request)
    model = runs.checkpoint(services, owner_of(request))
    asked = await sdapi_request.read(services, body, model, with_image=with_image)
    with native.in_words(sdapi_request.NAMES):
        first = await services.resolve(asked.wanted)
    run = Run(owner=owner_of(request), asked=asked.iterations)
    with runs.under_way(run):
        try:
            for index in range(asked.iterations):
                each = replace(first, seed=first.seed + index * first.num_images)
                run.add(services.queue, await drawing.submitted(request, services, each))
        except Exception:
            await _cancel(services, run)
            raise
        ended = await drawing.while_there(
            request, run.ended(services.queue), lambda: _cancel(services, run)
        )
    return await _answer(services, body, asked, ended)


async def _cancel(services: Services, run: Run) -> None:
    for job in run.jobs:
        await services.queue.cancel(job.id)


async def _answer(
    services: Services, body: dict[str, Any], asked: Asked, ended: list[Job]
) -> dict[str, Any]:
    """What was finished. Raises JobFailed for a job that failed, or when nothing was finished."""
    for job in ended:
        if job.error is not None:
            raise JobFailed(job.error.code, job.error.message)
    finished = [job for job in ended if job.status is JobStatus.SUCCEEDED]
    if not finished:
        raise JobFailed("cancelled", "interrupted before the first picture was finished")
    images, seeds, texts = [], [], []
    for job in finished:
        for index in range(len(job.pictures) if asked.send_images else 0):
            images.append(base64.b64encode(await drawing.picture(services, job, index)).decode())
        for picture in job.pictures:
            seeds.append(picture.seed)
            texts.append(_infotext(job.request, picture.seed, asked))
    echoed = {name: body[name] for name in body if name not in ("init_images", "mask")}
    info = _info(finished[0].request, asked, seeds, texts)
    return {"images": images, "parameters": echoed, "info": json.dumps(info, ensure_ascii=False)}


def _infotext(request: GenerationRequest, seed: int, asked: Asked) -> str:
    said = "".join(f", {name}: {value}" for name, value in asked.said.items())
    return infotext(request, seed=seed) + said


def _info(
    request: GenerationRequest, asked: Asked, seeds: list[int], texts: list[str]
) -> dict[str, Any]:
    negative = request.negative_prompt or ""
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * len(seeds),
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * len(seeds),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": SAMPLER,
        "cfg_scale": request.true_cfg_scale if negative else request.guidance_scale,
        "steps": request.num_inference_steps,
        "batch_size": request.num_images,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": request.model,
        "sd_model_hash": "",
        "sd_vae_name": None,
        "denoising_strength": request.strength,
        "extra_generation_params": dict(asked.said),
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": datetime.now().strftime("%Y%m%d%H%M%S"),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
    }
