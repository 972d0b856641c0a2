"""What happens, as Server-Sent Events: the present state first, then every change, then one end.

A listener that comes back with `Last-Event-ID` is told what it missed; where that is no longer
known (another process, too long ago), it is told the present state instead. `bye` comes before
the service ends a stream that has not come to its end; clients connect again by themselves.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi.sse import ServerSentEvent

from api import answers
from api.services import Services
from utils.event_bus import ENDS, Event, Subscription
from utils.job import Job, JobStatus

RECONNECT_MS = 2000
# A listener is woken by events; this only bounds what a lost one would cost.
WAKE_SECONDS = 30.0
# Why a stream ends before what it tells of has.
STOPPING = "the service is stopping"
GONE_KEY = "the key does not work any more"


async def job_events(
    services: Services, job: Job, subscription: Subscription, last_id: int | None
) -> AsyncIterator[ServerSentEvent]:
    """The events of one job, to its end."""
    missed = _missed(services, subscription, last_id)
    if not missed:
        job = await _settled(services, job, subscription)
    for event in missed or list(_present(services, job)):
        yield _sse(services, event)
        if event.name in ENDS:
            return
    position = services.queue.position(job)
    while True:
        await subscription.wait(WAKE_SECONDS)
        if not services.is_welcome():
            yield _bye(GONE_KEY)
            return
        for event in subscription.take():
            yield _sse(services, event)
            if event.name in ENDS:
                return
        if subscription.is_closed:
            yield _bye(STOPPING)
            return
        job = await services.queue.get(job.id)
        if subscription.is_behind or job.status.is_final:
            subscription.is_behind = False
            job = await _settled(services, job, subscription)
            for event in list(_present(services, job)):
                yield _sse(services, event)
            if job.status.is_final:
                return
        elif subscription.is_empty:  # else the line has moved on since the row was read
            now = services.queue.position(job)
            if now not in (None, position):
                position = now
                yield _sse(services, _event(services, "queued", job.id, {"position": now}))


async def all_events(
    services: Services, subscription: Subscription, last_id: int | None
) -> AsyncIterator[ServerSentEvent]:
    """The events of all jobs, and `queue` and `gpu`, as long as the client listens."""
    missed = _missed(services, subscription, last_id)
    first = [event for event in missed or [] if subscription.may_hear(event)]
    if last_id is not None and missed is None:
        first.append(_event(services, "reset", None, {}))
    first.append(_event(services, "queue", None, {}))
    for event in first:
        yield _sse(services, event)
    async for event in _as_they_come(services, subscription):
        yield _bye(event) if isinstance(event, str) else _sse(services, event)


def _missed(
    services: Services, subscription: Subscription, last_id: int | None
) -> list[Event] | None:
    """What a listener that comes back was not told; None where nobody knows.

    From here on everything waits in the subscription: what is there already is told by this, or by
    the state that is told instead.
    """
    subscription.take()
    return None if last_id is None else services.queue.bus.since(last_id, subscription.job_id)


async def _as_they_come(
    services: Services, subscription: Subscription
) -> AsyncIterator[Event | str]:
    """Every new event; a reason when the stream is over."""
    while True:
        await subscription.wait(WAKE_SECONDS)
        if not services.is_welcome():
            yield GONE_KEY
            return
        for event in subscription.take():
            yield event
        if subscription.is_behind:
            subscription.is_behind = False
            yield Event(id=0, name="reset")
        if subscription.is_closed:
            yield STOPPING
            return


async def _settled(services: Services, job: Job, subscription: Subscription) -> Job:
    """The job, read while nothing happened to it: its state holds what waited for the listener."""
    while True:
        job = await services.queue.get(job.id)
        if not subscription.take():
            return job


def _present(services: Services, job: Job) -> Iterator[Event]:
    """The state of a job as the events that would have led to it."""
    queue = services.queue
    if job.status is JobStatus.QUEUED:
        yield _event(services, "queued", job.id, {"position": queue.position(job)})
    elif job.status is JobStatus.RUNNING:
        progress = queue.progress(job.id)
        if progress is not None and progress.stage == "loading":
            yield _event(services, "loading", job.id, _loading(services, job))
        elif progress is not None:
            yield _event(services, "started", job.id, {"worker": job.worker})
            yield _event(services, "progress", job.id, answers.progress_json(progress))
    else:
        yield Event(id=queue.bus.next_id(), name=job.status.value, job_id=job.id, job=job)


def _loading(services: Services, job: Job) -> dict[str, Any]:
    told = (answers.loading_json(each) for each in services.queue.workers if job.id in each.jobs)
    return {"model": job.request.model, **(next(told, None) or {})}


def _event(services: Services, name: str, job_id: str | None, data: dict[str, Any]) -> Event:
    return Event(id=services.queue.bus.next_id(), name=name, job_id=job_id, data=data)


def _sse(services: Services, event: Event) -> ServerSentEvent:
    return ServerSentEvent(
        raw_data=json.dumps(_data(services, event), ensure_ascii=False, separators=(",", ":")),
        event=event.name,
        id=str(event.id) if event.id else None,
        retry=RECONNECT_MS if event.name in ("queue", "queued", "started") else None,
    )


def _data(services: Services, event: Event) -> dict[str, Any]:
    if event.job is not None:
        return answers.job_json(event.job, services.queue)
    if event.name == "queue":
        return answers.queue_json(services)
    data = dict(event.data)
    if event.job_id is not None:
        data = {"job_id": event.job_id, **data}
    if event.preview is not None:
        data["preview"] = f"data:image/jpeg;base64,{event.preview}"
    return data


def _bye(reason: str) -> ServerSentEvent:
    return ServerSentEvent(
        raw_data=json.dumps({"reason": reason}, separators=(",", ":")),
        event="bye",
        retry=RECONNECT_MS,
    )
