"""From a request to its pictures while the client waits. A client that hangs up cancels its job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request

from api.auth import owner_of
from api.services import Services
from config.errors import ClientGone, JobFailed
from models.types import GenerationRequest
from utils.job import Job, JobStatus
from utils.requests import Wanted

T = TypeVar("T")


async def drawn(request: Request, services: Services, wanted: Wanted) -> Job:
    """The finished job of a request. Raises FluxError: why it is refused, JobFailed, ClientGone, Unavailable."""
    job = await submitted(request, services, await services.resolve(wanted))
    waiting = services.queue.wait(job)
    return done(await while_there(request, waiting, lambda: services.queue.cancel(job.id)))


async def submitted(request: Request, services: Services, resolved: GenerationRequest) -> Job:
    """The job of a request that somebody is going to wait for."""
    services.queue.require_worker(resolved.backend)  # who waits must know for what
    return await services.queue.submit(resolved, owner=owner_of(request))


def done(job: Job) -> Job:
    """A job that has ended with its pictures. Raises JobFailed for any other end."""
    if job.status is JobStatus.CANCELLED:
        raise JobFailed("cancelled", f"job {job.id} was cancelled")
    if job.error is not None:
        raise JobFailed(job.error.code, job.error.message)
    return job


async def while_there(
    request: Request, work: Coroutine[Any, Any, T], cancel: Callable[[], Awaitable[Any]]
) -> T:
    """The result of `work`. Raises ClientGone when the client hangs up before, after `cancel`.

    The request's body must have been read.
    """
    waiting = asyncio.create_task(work)
    hung_up = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({waiting, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            await cancel()
            raise ClientGone("the client hung up; its job was cancelled")
        return await waiting
    finally:
        hung_up.cancel()
        waiting.cancel()
        await asyncio.gather(hung_up, waiting, return_exceptions=True)


async def picture(services: Services, job: Job, index: int = 0) -> bytes:
    """The file of a picture of a finished job."""
    assert job.result is not None
    path = await services.picture(job.result.images[index].filename)
    return await asyncio.to_thread(path.read_bytes)


async def _hung_up(request: Request) -> None:
    """Returns when the client is gone. The body was read, so nothing else can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
