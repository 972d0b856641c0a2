"""ComfyUI's websocket: what happens to the prompts of one client, step by step, with previews.

A preview is a binary frame: 1 (a preview) and 1 for JPEG or 2 for PNG, four bytes each, most significant
first, and the picture. `executing` with no node says that a prompt has come to its end.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import struct
import time
import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from api import drawing
from api.dialects.comfy import exec_info
from api.dialects.comfy_runs import Run, Runs
from api.services import Services, services_for
from utils.event_bus import Event, Subscription
from utils.job import JobStatus

router = APIRouter()

WAKE_SECONDS = 30.0
GOING_AWAY, ABNORMAL, POLICY_VIOLATION = 1001, 1006, 1008
PREVIEW, JPEG, PNG = 1, 1, 2


@router.websocket("/ws")
@router.websocket("/api/ws")
async def ws(socket: WebSocket, clientId: str = "") -> None:
    services = services_for(socket)
    client_id = clientId[:100] or uuid.uuid4().hex
    await socket.accept()
    with services.queue.bus.listening(None, services.only_of) as subscription:
        listener = Listener(socket, services, socket.app.state.comfy, client_id)
        telling = asyncio.create_task(listener.tell(subscription))
        reading = asyncio.create_task(listener.read())
        try:
            await asyncio.wait({telling, reading}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (telling, reading):
                task.cancel()
            ended = await asyncio.gather(telling, reading, return_exceptions=True)
    if ended[0] is None:
        return  # everything was told, to the end of the service: what is said meanwhile has no answer
    for error in ended:
        if isinstance(error, Exception) and not isinstance(error, WebSocketDisconnect):
            raise error


class Listener:
    """One client of the websocket."""

    def __init__(self, socket: WebSocket, services: Services, runs: Runs, client_id: str) -> None:
        self._socket = socket
        self._services = services
        self._runs = runs
        self._client_id = client_id

    async def read(self) -> None:
        """Until the client leaves. What it says is which features it knows, and is answered in kind."""
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if '"feature_flags"' in (message.get("text") or "")[:1000]:
                await self._send("feature_flags", {"supports_preview_metadata": False})

    async def tell(self, subscription: Subscription) -> None:
        """Everything that happens, until the service stops or the client's key does not work any more."""
        await self._status(sid=self._client_id)
        await self._catch_up()
        while True:
            await subscription.wait(WAKE_SECONDS)
            if not self._services.is_welcome():
                return await self._close(POLICY_VIOLATION)
            async with self._runs.registering:  # a prompt that is on its way is known after this
                events = subscription.take()
            for event in events:
                await self._tell_of(event)
            if subscription.is_behind:
                subscription.is_behind = False
                await self._catch_up()
            if subscription.is_closed:
                return await self._close(GOING_AWAY)

    async def _catch_up(self) -> None:
        """What a client that comes late, or was too slow, has not heard of its prompts."""
        for run in list(self._runs.seen(self._services.access)):
            if run.client_id == self._client_id and "end" not in run.told:
                run = await self._runs.looked_at(self._services, run)
                if run.job.status is JobStatus.RUNNING:
                    await self._executing(run, run.found.sampler)
                elif run.job.status.is_final:
                    await self._end(run)

    async def _tell_of(self, event: Event) -> None:
        if event.name == "queue" or event.name == "queued" or event.job is not None:
            await self._status()
        run = None if event.job_id is None else self._runs.of_job(event.job_id)
        is_ours = run is not None and run.client_id == self._client_id
        if run is None or not is_ours or not self._services.access.sees(run.job.owner):
            return
        if event.name == "started":
            await self._start(run)
        elif event.name == "progress":
            if event.data["stage"] == "denoising":
                await self._start(run)
                node = {"prompt_id": run.prompt_id, "node": run.found.sampler}
                await self._send(
                    "progress", {"value": event.data["step"], "max": event.data["steps"], **node}
                )
            if event.preview is not None:  # of a step: where it is told late, with a later stage
                await self._picture(JPEG, base64.b64decode(event.preview))
        elif event.job is not None:
            run.job = event.job
            await self._end(run)

    async def _start(self, run: Run) -> None:
        if "start" in run.told:
            return
        run.told.add("start")
        ids = {"prompt_id": run.prompt_id, "timestamp": _now()}
        await self._send("execution_start", ids)
        await self._send("execution_cached", {"nodes": [], **ids})
        await self._executing(run, run.found.sampler)

    async def _end(self, run: Run) -> None:
        if "end" in run.told:
            return
        run.told.add("end")
        ids = {"prompt_id": run.prompt_id, "timestamp": _now()}
        match run.job.status:
            case JobStatus.SUCCEEDED:
                await self._start(run)  # a short one may have ended before anybody was told
                await self._executing(run, run.found.decoder)
                await self._outputs(run)
                await self._send("execution_success", ids)
            case JobStatus.CANCELLED:
                await self._send("execution_interrupted", {**run.interrupted(), **ids})
            case _:
                await self._send("execution_error", {**run.failure(), **ids})
        await self._executing(run, None)

    async def _outputs(self, run: Run) -> None:
        outputs = run.outputs()
        for node in run.found.outputs:
            await self._executing(run, node)
            if run.kind(node) == "SaveImageWebsocket":
                for index in range(len(run.job.pictures)):
                    await self._picture(PNG, await drawing.picture(self._services, run.job, index))
                continue
            told = {"node": node, "display_node": node, "output": outputs[node]}
            await self._send("executed", {**told, "prompt_id": run.prompt_id})

    async def _executing(self, run: Run, node: str | None) -> None:
        told = {"node": node, "display_node": node, "prompt_id": run.prompt_id}
        await self._send("executing", told)

    async def _status(self, **more: str) -> None:
        await self._send("status", {"status": exec_info(self._services), **more})

    async def _picture(self, kind: int, data: bytes) -> None:
        with _gone_is_a_disconnect():
            await self._socket.send_bytes(struct.pack(">II", PREVIEW, kind) + data)

    async def _send(self, kind: str, data: dict[str, Any]) -> None:
        with _gone_is_a_disconnect():
            await self._socket.send_json({"type": kind, "data": data})

    async def _close(self, code: int) -> None:
        with _gone_is_a_disconnect():
            await self._socket.close(code)


@contextlib.contextmanager
def _gone_is_a_disconnect() -> Iterator[None]:
    """A client that has closed before it was sent something: the server calls that a fault of ours."""
    try:
        yield
    except RuntimeError as error:
        raise WebSocketDisconnect(ABNORMAL) from error


def _now() -> int:
    return int(time.time() * 1000)
