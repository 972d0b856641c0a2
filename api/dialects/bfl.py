"""BFL's API: `POST /v1/<model>` → `{id, polling_url}`, `GET /v1/get_result?id=`. Client code of BFL runs on one's own GPU.

The name in the path is a model: BFL's name of one that runs here, an id of ours, `default` for the
service's default, or a model that only BFL's cloud has, where a key for it is set. No model stands in for
another: one that cannot run here is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse

from api.auth import owner_of
from api.delivery import delivery_of
from api.dialects import bodies, native
from api.dialects.shapes import BLOCKED
from api.services import Services, ServicesDep
from config.catalog import ModelRow
from config.errors import FluxError, InvalidRequest, NotFound
from utils.job import Job, JobStatus
from utils.requests import Wanted

router = APIRouter(prefix="/v1", tags=["BFL"])

DEFAULT = "default"
CLOUD = "bfl/"
# BFL's names of models whose weights are open, and ours.
OPEN_MODELS = {
    "flux-2-klein-4b": "flux2-klein-4b",
    "flux-2-klein-9b": "flux2-klein-9b",
    "flux-2-klein-base-4b": "flux2-klein-base-4b",
}
NAMES = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "image": "input_image",
    "reference_images": "input_image",
}
# Taken as they are.
OURS = (
    "prompt", "negative_prompt", "width", "height", "seed", "steps", "guidance", "true_cfg_scale",
    "loras", "strength", "metadata",
)  # fmt: skip
# What would change the picture, or what its client waits for, and is not here.
NOT_HERE = ("prompt_upsampling", "raw", "webhook_url", "image_prompt", "control_image", "finetune_id",
            "transparent_bg")  # fmt: skip
WIDEST = 21 / 9
MAX_PICTURES = 8
MAX_ID_CHARACTERS = 100  # of an unknown id, told back
STATUSES = {
    JobStatus.QUEUED: "Pending",
    JobStatus.RUNNING: "Pending",
    JobStatus.SUCCEEDED: "Ready",
    JobStatus.FAILED: "Error",
    JobStatus.CANCELLED: "Error",
}

_REQUEST = bodies.json_body(
    "prompt", prompt="string", width="integer", height="integer", aspect_ratio="string", seed="integer",
    steps="integer", guidance="number", input_image="string", output_format="string",
)  # fmt: skip
ModelName = Annotated[str, Path(max_length=100)]


@router.post("/bfl/{model}", openapi_extra=_REQUEST)
async def submit_to_cloud(
    request: Request, model: ModelName, services: ServicesDep
) -> dict[str, Any]:
    return await submit(request, CLOUD + model, services)


@router.post("/{model}", openapi_extra=_REQUEST)
async def submit(request: Request, model: ModelName, services: ServicesDep) -> dict[str, Any]:
    row = _row(services, model)
    body = await native.json_object(request)
    with native.in_words(NAMES):
        resolved = await services.resolve(_wanted(row, body))
        job = await services.queue.submit(resolved, owner=owner_of(request))
    base = str(request.base_url).rstrip("/")
    return {"id": job.id, "polling_url": f"{base}/v1/get_result?id={job.id}"}


@router.get("/get_result")
async def get_result(request: Request, services: ServicesDep, id: str = "") -> Response:
    try:
        job = await services.job(id)
    except NotFound:
        return JSONResponse(_answer(id[:MAX_ID_CHARACTERS], "Task not found"), 404)
    progress = services.queue.progress(job.id)
    share = progress.step / progress.steps if progress is not None and progress.steps else 0.0
    if job.status is JobStatus.SUCCEEDED:
        return JSONResponse(_answer(job.id, "Ready", result=_result(request, job), progress=1.0))
    if not job.status.is_final:
        return JSONResponse(_answer(job.id, STATUSES[job.status], progress=round(share, 3)))
    code = job.error.code if job.error is not None else "cancelled"
    words = job.error.message if job.error is not None else "the job was cancelled"
    status = "Content Moderated" if code in BLOCKED else STATUSES[job.status]
    return JSONResponse(_answer(job.id, status, details={"code": code, "error": words}))


def _answer(job_id: str, status: str, **more: Any) -> dict[str, Any]:
    empty = {"result": None, "progress": None, "details": None, "preview": None}
    return {"id": job_id, "status": status, **empty, **more}


def _result(request: Request, job: Job) -> dict[str, Any]:
    assert job.result is not None and job.started_at and job.finished_at
    image = job.result.images[0]
    started, ended = (
        datetime.fromisoformat(moment).timestamp() for moment in (job.started_at, job.finished_at)
    )
    return {
        "sample": delivery_of(request).link(request, f"{job.id}-0", image.filename),
        "prompt": job.request.prompt,
        "seed": image.seed,
        "start_time": started,
        "end_time": ended,
        "duration": round(ended - started, 3),
    }


def _row(services: Services, name: str) -> ModelRow:
    """The model of a path. Raises NotFound for a name that nobody has, and why one does not run here."""
    catalog = services.plan.catalog
    if name == DEFAULT:
        return catalog[services.plan.default.id]
    row = catalog.get(OPEN_MODELS.get(name, name)) or catalog.get(CLOUD + name)
    if row is None:
        raise NotFound(
            f"there is no model {name!r}; GET /api/models lists them, and POST /v1/{DEFAULT} asks the default"
        )
    try:
        services.plan.resolver.require_runs_here(row)
    except FluxError as error:
        if row.cloud is None and CLOUD + name in catalog:
            error.message += f"; POST /v1/{CLOUD}{name} asks BFL's cloud"
        error.message += (
            f"; POST /v1/{DEFAULT} asks this service's default, {services.plan.default.id}"
        )
        error.fields = ()
        raise
    return row


def _wanted(row: ModelRow, body: Mapping[str, Any]) -> Wanted:
    for name in NOT_HERE:
        if body.get(name) not in (None, False, "", 0):
            raise InvalidRequest.of(name, "is not here; leave it out")
    native.whole(body, "safety_tolerance", 0, 6, 2)
    values = {name: body.get(name) for name in OURS}
    if values["width"] is None and values["height"] is None:
        values |= _of_ratio(row, native.text(body, "aspect_ratio"))
    values["output_format"] = native.text(body, "output_format") or "jpeg"  # BFL's default
    has_picture = any(body.get(name) for name in ("image", "input_image"))
    values |= {"model": row.id, "image": "comes later" if has_picture else None}
    wanted = native.wanted_of(values, NAMES)
    return _with_pictures(row, wanted, body)


def _of_ratio(row: ModelRow, ratio: str | None) -> dict[str, int]:
    """A size of as many pixels as the model's default, in a shape such as 16:9."""
    if ratio is None:
        return {}
    across, _, down = ratio.partition(":")
    is_ratio = all(
        part.isascii() and part.isdecimal() and 0 < int(part[:6]) for part in (across, down)
    )
    if not is_ratio or not 1 / WIDEST <= int(across) / int(down) <= WIDEST:
        raise InvalidRequest.of("aspect_ratio", "must be from 21:9 to 9:21, such as 16:9")
    shape = math.sqrt(int(across) / int(down))
    side = math.sqrt(row.default_width * row.default_height)
    width, height = native.fitted(row, round(side * shape), round(side / shape))
    return {"width": width, "height": height}


def _with_pictures(row: ModelRow, wanted: Wanted, body: Mapping[str, Any]) -> Wanted:
    """`image` and `mask` as they are. `input_image…` are looked at where the model can; else one is begun with."""
    image, mask = native.text(body, "image"), native.text(body, "mask")
    names = ["input_image", *(f"input_image_{number}" for number in range(2, MAX_PICTURES + 1))]
    inputs = [picture for name in names if (picture := native.text(body, name)) is not None]
    if inputs and "references" in row.ways:
        return replace(wanted, reference_images=tuple(inputs), image=image, mask=mask)
    if len(inputs) + (image is not None) > 1:
        raise InvalidRequest.of("input_image", f"model {row.id} takes one picture")
    return replace(wanted, image=image or next(iter(inputs), None), mask=mask)
