"""The API of a fleet router: `POST /api/generate-image` → the PNG, and what its dashboard asks.

A service is a fleet of one: the node is this machine. A fleet's front door tells of its machines. Image generation is on until somebody with
the operator's key switches it off, which is remembered.
"""

from __future__ import annotations

import collections
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from api import answers, drawing
from api.dialects import bodies, native
from api.services import Services, ServicesDep
from api.version import VERSION
from config.catalog import ModelRow
from config.errors import InvalidRequest, NotFound, Unavailable
from models.types import OutputFormat
from utils.clock import rfc3339
from utils.fleet.crew import Crew
from utils.fleet.queue import FleetQueue
from utils.fleet.worker import FleetWorker
from utils.job import Job, JobStatus

router = APIRouter(tags=["Fleet router"])

SWITCH = "image_generation"
STATS_HOURS = 24
RECENT_EVENTS = 10
FIELDS = (
    "prompt", "negative_prompt", "width", "height", "steps", "guidance", "seed", "loras", "image",
    "mask", "strength", "metadata",
)  # fmt: skip
_REQUEST = bodies.json_body(
    "model prompt", model="string", prompt="string", negative_prompt="string", width="integer",
    height="integer", steps="integer", guidance="number", seed="integer", metadata="object",
)  # fmt: skip
_PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}
NAMES = {"num_inference_steps": "steps", "guidance_scale": "guidance"}


@router.post(
    "/api/generate-image", openapi_extra=_REQUEST, responses=_PICTURE, response_class=Response
)
async def generate_image(request: Request, services: ServicesDep) -> Response:
    if not await _is_on(services):
        raise Unavailable(
            'image generation is switched off; POST /dashboard/api/settings {"image_generation": true}'
        )
    body = await native.json_object(request)
    model = native.text(body, "model")
    if model is None:
        raise InvalidRequest("model is required; GET /api/image-models lists them")
    row = _row(services, model)
    native.whole(body, "quantize", 3, 8, 8)  # the weights of a service are quantized already
    wanted = native.wanted_of({**{name: body.get(name) for name in FIELDS}, "model": row.id}, NAMES)
    with native.in_words(NAMES):
        job = await drawing.drawn(request, services, wanted)
    headers = {**answers.picture_headers(job, services), "X-Fleet-Model": model}
    data = await drawing.picture(services, job)
    return Response(data, media_type=OutputFormat.PNG.media_type, headers=headers)


@router.get("/api/image-models")
async def image_models(services: ServicesDep) -> dict[str, Any]:
    return {
        "models": [
            {
                "name": row.id,
                "type": "image",
                "backend": row.backend,
                "fleet_nodes": [
                    node["node_id"] for node in _nodes(services) if row.id in node["image_models"]
                ],
            }
            for row in _there(services)
        ]
    }


@router.get("/dashboard", include_in_schema=False)
async def dashboard(services: ServicesDep) -> RedirectResponse:
    """A fleet has a page of its own, a service the one to draw with; both ask for a key where one is needed."""
    return RedirectResponse("/ui/" if services.plan.crew is None else "/ui/dashboard.html")


@router.get("/dashboard/api/fleet")
async def machines(services: ServicesDep) -> dict[str, Any]:
    """The machines of the fleet, their replicas and what each does; the last decisions and their reasons."""
    crew, queue = _crew(services), services.queue
    assert isinstance(queue, FleetQueue)
    return {
        "queued": queue.waiting,
        "running": len(queue.running_ids),
        "held": queue.why_waiting(),
        "doors": [] if services.doors is None else services.doors.to_json(),
        "nodes": [
            {
                "node_id": node,
                "is_draining": node in crew.away,
                "is_drained": node in crew.away
                and not any(worker.jobs for worker in crew.replicas_of(node)),
                "replicas": [_replica(services, worker) for worker in crew.replicas_of(node)],
            }
            for node in sorted({*crew.nodes, *crew.away})
        ],
        "decisions": [
            {
                "job_id": decision.job,
                "model": decision.model,
                "node_id": decision.node,
                "reason": decision.reason,
            }
            for decision in reversed(queue.dispatcher.last_decisions)
            if services.access.sees_all
        ][:RECENT_EVENTS],
    }


@router.post(
    "/dashboard/api/drain", openapi_extra=bodies.json_body("node", node="string", drain="boolean")
)
async def drain(request: Request, services: ServicesDep) -> dict[str, Any]:
    """A machine begins nothing new (`drain`: true, the default), or takes part again."""
    crew, body = _crew(services), await native.json_object(request)
    node, is_away = native.text(body, "node"), body.get("drain", True)
    if node is None:
        raise InvalidRequest.of("node", "is missing; GET /dashboard/api/fleet lists the machines")
    if not isinstance(is_away, bool):
        raise InvalidRequest.of("drain", "must be true or false")
    crew.drain(node, is_away=is_away)
    return {"node_id": node, "is_draining": is_away}


@router.get("/dashboard/api/image-stats")
async def image_stats(services: ServicesDep) -> dict[str, Any]:
    """Of the last 24 hours, of everything that was drawn here."""
    store, owner = services.queue.store, services.only_of
    since = rfc3339(services.plan.chance.now() - timedelta(hours=STATS_HOURS))
    rows = await store.ended_by_model(since, owner)
    total = sum(jobs for _, _, jobs, _ in rows)
    done = [(jobs, ms) for _, status, jobs, ms in rows if status is JobStatus.SUCCEEDED]
    completed = sum(jobs for jobs, _ in done)
    by_model: collections.Counter[str] = collections.Counter()
    for model, _, jobs, _ in rows:
        by_model[model] += jobs
    by_node: collections.Counter[str] = collections.Counter()
    for worker, jobs in (await store.ended_by_worker(since, owner)).items():
        by_node[(worker or "").rpartition("/")[0] or services.plan.node] += jobs
    return {
        "total": total,
        "completed": completed,
        "failed": total - completed,
        "avg_generation_ms": round(sum(ms for _, ms in done) / completed) if completed else 0,
        "by_node": dict(by_node),
        "by_model": dict(by_model),
        "by_tag": await store.ended_by_tag(since, owner),
        "recent": [
            _event(services, job)
            for job in reversed(await store.ended_last(since, owner, RECENT_EVENTS))
        ],
    }


@router.get("/dashboard/api/health")
async def health(services: ServicesDep) -> dict[str, Any]:
    queue = services.queue
    reason = queue.why_not_ready()
    stats, nodes = await image_stats(services), _nodes(services)
    recommendations = [] if reason is None else [{"severity": "critical", "description": reason}]
    return {
        "status": "healthy" if reason is None else "critical",
        "vitals": {
            "nodes_total": len(nodes),
            "nodes_online": sum(node["status"] == "online" for node in nodes),
            "queued": queue.waiting,
            "running": len(queue.running_ids),
        },
        "image_generation": {
            name: stats[name] for name in ("total", "completed", "failed", "avg_generation_ms")
        },
        "recommendations": recommendations,
    }


@router.get("/dashboard/api/settings")
async def read_settings(services: ServicesDep) -> dict[str, Any]:
    server = services.plan.settings.server
    return {
        SWITCH: await _is_on(services),
        "version": VERSION,
        "config": {"host": server.host, "port": server.port},
        "nodes": _nodes(services),
    }


@router.post("/dashboard/api/settings", openapi_extra=bodies.json_body(**{SWITCH: "boolean"}))
async def write_settings(request: Request, services: ServicesDep) -> dict[str, Any]:
    body = await native.json_object(request)
    for name, value in body.items():
        if name != SWITCH:
            raise InvalidRequest.of(name[:64], f"is no setting here; there is {SWITCH}")
        if not isinstance(value, bool):
            raise InvalidRequest.of(name, "must be true or false")
    if not body:
        return {"status": "no_change", "message": f"send {SWITCH}"}
    await services.queue.store.write_state(SWITCH, "true" if body[SWITCH] else "false")
    return {"status": "updated", "updated": body}


async def _is_on(services: Services) -> bool:
    return await services.queue.store.read_state(SWITCH) != "false"


def _crew(services: Services) -> Crew:
    if services.plan.crew is None:
        raise NotFound(
            "this service is no fleet; ./start_fleet.sh starts one, whose front door is on port 8002"
        )
    return services.plan.crew


def _replica(services: Services, worker: FleetWorker) -> dict[str, Any]:
    return {
        **answers.worker_json(worker, services),
        "precision": worker.precision,
        "resources": sorted(worker.resources),
        "models": sorted(worker.models),
        "is_asleep": worker.is_asleep,
        "memory_gib": round(worker.memory_gib, 2),
        "processors": round(worker.processors, 3),
        "cards": [
            {"name": gpu.name, "memory_total_mib": gpu.memory_total_mib} | card
            for gpu, card in zip(worker.slot.gpus, worker.cards, strict=False)
        ],
    }


def _nodes(services: Services) -> list[dict[str, Any]]:
    """The machines, with the models that each can draw with."""
    plan = services.plan
    if plan.crew is None:
        is_online = services.queue.why_not_ready() is None
        models = {plan.node: (is_online, [row.id for row in _there(services)])}
    else:
        models = {
            node: (
                True,
                [
                    row.id
                    for row in plan.catalog
                    if any(row.id in each.runnable for each in plan.crew.replicas_of(node))
                ],
            )
            for node in plan.crew.nodes
        }
    return [
        {
            "node_id": node,
            "status": "online" if is_online else "offline",
            "image_models": ids,
            "image_port": plan.settings.server.port,
        }
        for node, (is_online, ids) in models.items()
    ]


def _there(services: Services) -> list[ModelRow]:
    why_not = services.plan.resolver.why_not_here
    return [row for row in services.plan.catalog if why_not(row) is None]


def _row(services: Services, name: str) -> ModelRow:
    """The model by our id, or by mflux's name of the same weights. Raises NotFound, as the router does."""
    catalog, why_not = services.plan.catalog, services.plan.resolver.why_not_here
    known = [
        row
        for each in (name, "mflux-" + name.removeprefix("flux-"))
        if (row := catalog.get(each)) is not None
    ]
    for row in known:
        if why_not(row) is None:
            return row
    reason = f" ({why_not(known[0])})" if known else ""
    there = ", ".join(row.id for row in _there(services))
    raise NotFound(
        f"image model {name[:64]!r} not available on any node{reason}. Available: {there}"
    )


def _event(services: Services, job: Job) -> dict[str, Any]:
    is_done = job.status is JobStatus.SUCCEEDED
    return {
        "timestamp": job.finished_at,
        "model": job.request.model,
        "node_id": job.node or services.plan.node,
        "status": "completed" if is_done else "failed",
        "generation_ms": round(answers.generation_time_ms(job)) if is_done else 0,
        "width": job.request.width,
        "height": job.request.height,
        "tags": list(job.request.tags),
        "error": job.error.message if job.error is not None else "",
    }
