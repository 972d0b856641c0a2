"""`/jobs/{id}/events` and `/events`: what happens, as Server-Sent Events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api import event_stream
from api.routes.jobs import JobId
from api.services import ServicesDep
from utils.event_bus import Subscription
from utils.job import Job

router = APIRouter(tags=["events"])

LastEventId = Annotated[
    str | None,
    Header(description="The id of the last event that was seen: the stream goes on after it."),
]


async def _job(job_id: JobId, services: ServicesDep) -> Job:
    """Looked up before the stream begins, so that an unknown one is 404."""
    return await services.job(job_id)


JobDep = Annotated[Job, Depends(_job)]


async def _to_job(job: JobDep, services: ServicesDep) -> AsyncIterator[Subscription]:
    """Ends with the response, however the client leaves; a stream's own end comes when it is collected."""
    with services.queue.bus.listening(job.id) as subscription:
        yield subscription


async def _to_everything(services: ServicesDep) -> AsyncIterator[Subscription]:
    with services.queue.bus.listening(None, services.only_of) as subscription:
        yield subscription


@router.get(
    "/jobs/{job_id}/events",
    summary="A job's way to its end, as Server-Sent Events",
    response_class=EventSourceResponse,
)
async def job_events(
    job: JobDep,
    subscription: Annotated[Subscription, Depends(_to_job)],
    services: ServicesDep,
    last_event_id: LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    last_id = _number(last_event_id)
    async for event in event_stream.job_events(services, job, subscription, last_id):
        yield event


@router.get(
    "/events",
    summary="All jobs, the queue and the GPUs, as Server-Sent Events",
    response_class=EventSourceResponse,
)
async def all_events(
    subscription: Annotated[Subscription, Depends(_to_everything)],
    services: ServicesDep,
    last_event_id: LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    last_id = _number(last_event_id)
    async for event in event_stream.all_events(services, subscription, last_id):
        yield event


def _number(last_event_id: str | None) -> int | None:
    """The id as a number; what is none counts as never seen, as the specification has it for unknown ids."""
    if last_event_id is None or not last_event_id.isascii() or not last_event_id.isdecimal():
        return None
    return int(last_event_id[:20])
