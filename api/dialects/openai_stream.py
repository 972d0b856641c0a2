"""OpenAI's stream of an image: previews of its steps as partial images, then the picture."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api import drawing
from api.dialects import shapes
from api.services import Services
from config.errors import FluxError
from utils.event_bus import Event
from utils.job import Job

KEEP_ALIVE_SECONDS = (
    15.0  # a comment, so that nothing on the way takes a waiting client for a dead one
)
NO_USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}


def facts(job: Job, quality: str) -> dict[str, Any]:
    """What OpenAI's answers say of a picture beside its pixels."""
    size = job.request if job.result is None else job.result.images[0]  # a cloud may draw another
    return {
        "background": "opaque",
        "output_format": job.request.output_format.value,
        "quality": quality,
        "size": f"{size.width}x{size.height}",
    }


class ImageStream(StreamingResponse):
    """The stream of a job that was just submitted. A client that leaves before its end cancels it."""

    def __init__(
        self, services: Services, job: Job, *, kind: str, partial_images: int, quality: str
    ) -> None:
        self._services = services
        self._job = job
        self._kind = kind
        self._partial_images = partial_images
        self._quality = quality
        self._is_over = False
        # At once: a preview is made for those who listen when the job begins.
        self._subscription = services.queue.bus.subscribe(job.id)
        super().__init__(
            self._events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._services.queue.bus.unsubscribe(self._subscription)
            if not self._is_over:
                await asyncio.shield(self._services.queue.cancel(self._job.id))

    async def _events(self) -> AsyncIterator[str]:
        waiting = asyncio.ensure_future(self._services.queue.wait(self._job))
        try:
            async for text in self._until_done(waiting):
                yield text
            ended = drawing.done(await waiting)
            self._is_over = True
            for index in range(len(ended.pictures)):
                picture = base64.b64encode(await drawing.picture(self._services, ended, index))
                event = self._event(picture.decode(), ended) | {"usage": NO_USAGE}
                yield _sse(f"{self._kind}.completed", event)
        except FluxError as error:
            self._is_over = True
            yield _sse("error", shapes.openai(error).body)
        finally:
            waiting.cancel()

    async def _until_done(self, waiting: asyncio.Future[Job]) -> AsyncIterator[str]:
        """Partial images, spread evenly over the steps, until the job has ended."""
        sent = 0
        while not waiting.done():
            listening = asyncio.ensure_future(self._subscription.wait(KEEP_ALIVE_SECONDS))
            await asyncio.wait({waiting, listening}, return_when=asyncio.FIRST_COMPLETED)
            listening.cancel()
            taken = self._subscription.take()
            if not taken and not waiting.done():
                yield ": waiting\n\n"
            for event in taken:
                if sent < self._partial_images and self._is_due(event, sent):
                    partial = self._event(str(event.preview), self._job) | {
                        "output_format": "jpeg",  # of the preview
                        "partial_image_index": sent,
                    }
                    yield _sse(f"{self._kind}.partial_image", partial)
                    sent += 1
            if self._subscription.is_closed:
                await waiting

    def _is_due(self, event: Event, sent: int) -> bool:
        """Whether the next partial image is this step's: the i-th of n is due after i/(n + 1) of the steps."""
        request = self._job.request
        steps = request.steps_to_run * request.num_images
        if event.preview is None:
            return False
        return event.data["step"] * (self._partial_images + 1) >= (sent + 1) * steps

    def _event(self, picture: str, job: Job) -> dict[str, Any]:
        now = int(time.time())
        return {"b64_json": picture, "created_at": now, **facts(job, self._quality)}


def _sse(kind: str, data: dict[str, Any]) -> str:
    text = json.dumps({"type": kind, **data}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {text}\n\n"
