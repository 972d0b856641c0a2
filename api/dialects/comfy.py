"""ComfyUI's API for workflows made of its standard FLUX nodes: a prompt becomes one request of ours.

Every route is also under `/api`. `GET /queue` is our own route, which tells ComfyUI's fields besides its own.
"""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse

from api.auth import owner_of
from api.dialects import bodies, comfy_read, comfy_system, native
from api.dialects.comfy_pictures import upload_image, view
from api.dialects.comfy_request import resolved
from api.dialects.comfy_runs import Run, Runs, queue_fields, runs_of
from api.services import Services, ServicesDep
from config.errors import InvalidRequest, NotFound
from utils.job import JobStatus

MAX_HISTORY_ITEMS = 10_000


async def post_prompt(request: Request, services: ServicesDep) -> dict[str, Any]:
    body = await native.json_object(request)
    runs = runs_of(request)
    if body.get("front"):
        raise InvalidRequest.of("front", "is not here: the queue is first in, first out")
    targets = body.get("partial_execution_targets")
    found = comfy_read.read(body.get("prompt"), targets if isinstance(targets, list) else None)
    extra = body.get("extra_data")
    if not isinstance(extra, dict | None):
        raise InvalidRequest.of("extra_data", "must be an object")
    client_id = native.text(body, "client_id") or ""
    wanted = await resolved(services, runs, found, owner_of(request))
    services.queue.require_worker()
    async with runs.registering:
        prompt_id = _prompt_id(runs, body)
        job = await services.queue.submit(wanted, owner=owner_of(request))
        run = Run(
            prompt_id=prompt_id,
            job=job,
            client_id=client_id,
            prompt=body["prompt"],
            extra_data=_kept(extra or {}),
            found=found,
            size_bytes=len(await request.body()),
        )
        runs.add(run)
    return {"prompt_id": prompt_id, "number": job.seq, "node_errors": {}, "job_id": job.id}


def _kept(extra: dict[str, Any]) -> dict[str, Any]:
    """Without the workflow as ComfyUI's own page draws it: nothing here reads it, and it is long."""
    return {name: value for name, value in extra.items() if name != "extra_pnginfo"}


async def get_prompt(services: ServicesDep) -> dict[str, Any]:
    return exec_info(services)


def exec_info(services: Services) -> dict[str, Any]:
    queue = services.queue
    return {"exec_info": {"queue_remaining": queue.waiting + len(queue.running_ids)}}


def _prompt_id(runs: Runs, body: dict[str, Any]) -> str:
    sent = native.text(body, "prompt_id")
    if sent is None:
        return str(uuid.uuid4())
    try:
        is_canonical = str(uuid.UUID(sent)) == sent
    except ValueError:
        is_canonical = False
    if not is_canonical:
        raise InvalidRequest.of("prompt_id", "must be a UUID in its canonical form")
    if runs.has(sent):
        raise InvalidRequest.of("prompt_id", "is that of an earlier prompt; send another or none")
    return sent


async def get_queue(request: Request, services: ServicesDep) -> dict[str, Any]:
    return queue_fields(services, runs_of(request))


async def post_queue(request: Request, services: ServicesDep) -> dict[str, Any]:
    """`{"clear": true}` and `{"delete": [ids]}` cancel what waits of the key's own prompts."""
    for run in await _chosen(request):
        run = await runs_of(request).looked_at(services, run)
        if run.job.status is JobStatus.QUEUED:
            await services.queue.cancel(run.job.id)
    return {}


async def _chosen(request: Request) -> list[Run]:
    """The key's own prompts that a body names in `delete`, or with `clear` all of them."""
    body = await native.json_object(request)
    clear, ids = body.get("clear"), body.get("delete")
    if not isinstance(clear, bool | None):
        raise InvalidRequest.of("clear", "must be true or false")
    if not isinstance(ids, list | None) or not all(isinstance(each, str) for each in ids or ()):
        raise InvalidRequest.of("delete", "must be a list of prompt ids")
    own = runs_of(request).own(owner_of(request))
    return [run for run in own if clear or run.prompt_id in (ids or ())]


async def interrupt(request: Request, services: ServicesDep) -> dict[str, Any]:
    """What runs, of the key's own prompts; with a `prompt_id` that one alone."""
    body = await native.json_object(request) if await request.body() else {}
    only = native.text(body, "prompt_id")
    for run in runs_of(request).own(owner_of(request)):
        if only in (None, run.prompt_id):
            run = await runs_of(request).looked_at(services, run)
            if run.job.status is JobStatus.RUNNING:
                await services.queue.cancel(run.job.id)
    return {}


async def cancel_job(request: Request, prompt_id: str, services: ServicesDep) -> dict[str, Any]:
    run = runs_of(request).find(services.access, prompt_id)
    if run is None:
        raise NotFound(f"there is no prompt {prompt_id[:64]!r}")
    job = await services.queue.cancel(run.job.id)
    return {"cancelled": job.status is JobStatus.CANCELLED}


async def history(
    request: Request, services: ServicesDep, max_items: int = Query(MAX_HISTORY_ITEMS, ge=1)
) -> dict[str, Any]:
    runs = runs_of(request)
    ended = [
        run
        for run in [await runs.looked_at(services, each) for each in runs.seen(services.access)]
        if run.job.status.is_final
    ]
    return {run.prompt_id: run.history() for run in ended[-max_items:]}


async def history_of(request: Request, prompt_id: str, services: ServicesDep) -> dict[str, Any]:
    """Empty for a prompt that has not ended, and for one that is unknown."""
    run = runs_of(request).find(services.access, prompt_id)
    if run is None:
        return {}
    run = await runs_of(request).looked_at(services, run)
    return {run.prompt_id: run.history()} if run.job.status.is_final else {}


async def post_history(request: Request, services: ServicesDep) -> dict[str, Any]:
    """Forgets prompts that have ended; their pictures stay."""
    runs = runs_of(request)
    for run in await _chosen(request):
        if (await runs.looked_at(services, run)).job.status.is_final:
            runs.forget(run)
    return {}


async def free(services: ServicesDep) -> dict[str, Any]:
    await services.queue.unload_model()
    return {}


def make_router() -> APIRouter:
    router = APIRouter(tags=["ComfyUI"])
    listed = bodies.json_body(clear="boolean", delete="array")
    written: dict[Any, dict[str, Any]] = {
        post_prompt: bodies.json_body(
            "prompt", prompt="object", client_id="string", prompt_id="string", extra_data="object"
        ),
        post_queue: listed,
        post_history: listed,
        interrupt: bodies.json_body(optional=True, prompt_id="string"),
        upload_image: bodies.form_body("image", image="file", type="string"),
    }
    routes = (
        ("POST", "/prompt", post_prompt),
        ("GET", "/prompt", get_prompt),
        ("POST", "/queue", post_queue),
        ("POST", "/interrupt", interrupt),
        ("GET", "/history", history),
        ("POST", "/history", post_history),
        ("GET", "/history/{prompt_id}", history_of),
        ("GET", "/view", view),
        ("POST", "/upload/image", upload_image),
        ("GET", "/object_info", comfy_system.get_object_info),
        ("GET", "/object_info/{node}", comfy_system.object_info_of),
        ("GET", "/system_stats", comfy_system.system_stats),
        ("GET", "/features", comfy_system.features),
        ("GET", "/embeddings", comfy_system.nothing),
        ("GET", "/extensions", comfy_system.nothing),
        ("POST", "/free", free),
    )
    for prefix in ("", "/api"):
        for method, path, endpoint in routes:
            router.add_api_route(
                prefix + path,
                endpoint,
                methods=[method],
                response_model=None,
                response_class=FileResponse if endpoint is view else JSONResponse,
                openapi_extra=written.get(endpoint),
            )
    router.add_api_route("/api/queue", get_queue, methods=["GET"])
    router.add_api_route("/api/jobs/{prompt_id}/cancel", cancel_job, methods=["POST"])
    return router


router = make_router()
