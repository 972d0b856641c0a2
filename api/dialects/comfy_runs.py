"""Prompts of ComfyUI's clients: which job each is, whose, and for which client of the websocket.

Kept in memory and bounded, as ComfyUI keeps its own: the jobs are on disk, and after a restart a prompt
id is unknown, never done. Uploads are known by the names they came with, for clients that go on to use those.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from starlette.requests import HTTPConnection

from api.auth import Access
from api.dialects.comfy_read import Found
from api.services import Services
from utils.job import Job, JobStatus

MAX_RUNS = 200
MAX_KEPT_BYTES = 16 * 2**20  # of prompts as they came
MAX_UPLOADS = 1000
MAX_PENDING = 100  # of what waits, told by GET /queue


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """One prompt and its job."""

    prompt_id: str
    job: Job  # as it was last seen
    client_id: str
    prompt: dict[str, Any]
    extra_data: dict[str, Any]
    found: Found
    size_bytes: int  # of its body
    told: set[str] = field(default_factory=set)  # what its websocket was told

    @property
    def item(self) -> list[Any]:
        """As ComfyUI's queue and history have it."""
        return [self.job.seq, self.prompt_id, self.prompt, self.extra_data, self.found.outputs]

    def kind(self, node: str) -> str:
        return self.prompt[node]["class_type"]

    def outputs(self) -> dict[str, Any]:
        """The pictures of each output node; those that were sent over the websocket have none."""
        assert self.job.result is not None
        told = {}
        for node in self.found.outputs:
            if self.kind(node) != "SaveImageWebsocket":
                folder = "temp" if self.kind(node) == "PreviewImage" else "output"
                images = [
                    {"filename": image.filename, "subfolder": "", "type": folder}
                    for image in self.job.result.images
                ]
                told[node] = {"images": images}
        return told

    def history(self) -> dict[str, Any]:
        is_done = self.job.status is JobStatus.SUCCEEDED
        start, end = milliseconds(self.job.started_at), milliseconds(self.job.finished_at)
        ids = {"prompt_id": self.prompt_id}
        messages: list[Any] = [["execution_start", {**ids, "timestamp": start}]]
        if is_done:
            messages.append(["execution_success", {**ids, "timestamp": end}])
        elif self.job.status is JobStatus.CANCELLED:
            messages.append(["execution_interrupted", {**self.interrupted(), "timestamp": end}])
        else:
            messages.append(["execution_error", {**self.failure(), "timestamp": end}])
        return {
            "prompt": self.item,
            "outputs": self.outputs() if is_done else {},
            "status": {
                "status_str": "success" if is_done else "error",
                "completed": is_done,
                "messages": messages,
            },
            "meta": {},
        }

    def interrupted(self) -> dict[str, Any]:
        node = self.found.sampler
        ids = {"prompt_id": self.prompt_id, "node_id": node, "node_type": self.kind(node)}
        return {**ids, "executed": []}

    def failure(self) -> dict[str, Any]:
        error = self.job.error
        return {
            **self.interrupted(),
            "exception_message": "" if error is None else error.message,
            "exception_type": "" if error is None else error.code,
            "traceback": [],
            "current_inputs": {},
            "current_outputs": {},
        }


class Runs:
    """`registering` is held while a prompt becomes a job, so that nobody hears of a job before its prompt is known."""

    def __init__(self) -> None:
        self.registering = asyncio.Lock()
        self._runs: collections.OrderedDict[str, Run] = collections.OrderedDict()
        self._by_job: dict[str, Run] = {}
        self._kept_bytes = 0
        self._uploads: collections.OrderedDict[tuple[str, str], str] = collections.OrderedDict()

    def add(self, run: Run) -> None:
        self._runs[run.prompt_id] = run
        self._by_job[run.job.id] = run
        self._kept_bytes += run.size_bytes
        while len(self._runs) > MAX_RUNS or self._kept_bytes > MAX_KEPT_BYTES:
            self._forget(next(iter(self._runs)))

    def of_job(self, job_id: str) -> Run | None:
        return self._by_job.get(job_id)

    def seen(self, access: Access) -> Iterator[Run]:
        """The prompts of a caller, oldest first."""
        return (run for run in list(self._runs.values()) if access.sees(run.job.owner))

    def own(self, owner: str) -> Iterator[Run]:
        """The prompts of a key, oldest first."""
        return (run for run in list(self._runs.values()) if run.job.owner == owner)

    def find(self, access: Access, prompt_id: str) -> Run | None:
        run = self._runs.get(prompt_id)
        return run if run is not None and access.sees(run.job.owner) else None

    def has(self, prompt_id: str) -> bool:
        return prompt_id in self._runs

    def forget(self, run: Run) -> None:
        self._forget(run.prompt_id)

    def _forget(self, prompt_id: str) -> None:
        run = self._runs.pop(prompt_id)
        self._kept_bytes -= run.size_bytes
        self._by_job.pop(run.job.id, None)

    async def looked_at(self, services: Services, run: Run) -> Run:
        """With its job as it is now."""
        if not run.job.status.is_final:
            run.job = await services.queue.get(run.job.id)
        return run

    # Uploads

    def note_upload(self, owner: str, name: str, sha256: str) -> None:
        self._uploads[owner, name] = sha256
        self._uploads.move_to_end((owner, name))
        while len(self._uploads) > MAX_UPLOADS:
            self._uploads.popitem(last=False)

    def upload(self, owner: str, name: str) -> str | None:
        """The content of an upload by the name that it came with."""
        return self._uploads.get((owner, name))

    def uploads(self, owner: str) -> list[str]:
        return [name for whose, name in self._uploads if whose == owner]


def runs_of(connection: HTTPConnection) -> Runs:
    return connection.app.state.comfy


def queue_fields(services: Services, runs: Runs) -> dict[str, Any]:
    """What runs and waits as ComfyUI tells it; jobs that came by another way have no graph."""

    def item(job_id: str, seq: int) -> list[Any]:
        run = runs.of_job(job_id)
        return [seq, job_id, {}, {}, []] if run is None else run.item

    queue, access = services.queue, services.access
    running = [each for each in queue.running_ids if access.sees(queue.owner_of(each) or "")]
    waiting = queue.waiting_jobs(MAX_PENDING, services.only_of)
    return {
        "queue_running": [item(job_id, 0) for job_id in running],
        "queue_pending": [item(job_id, seq) for seq, job_id in waiting],
    }


def milliseconds(moment: str | None) -> int:
    return 0 if moment is None else round(datetime.fromisoformat(moment).timestamp() * 1000)
