"""The way of a job as a command goes it: into the queue, to its end, its pictures onto the disk."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import files
from cli.failures import Failure, Status
from cli.session import printable

if TYPE_CHECKING:
    from cli.client import Client


def submit(client: Client, body: dict[str, Any]) -> dict[str, Any]:
    """Put a job into the queue. Ctrl-C meanwhile cancels it, also when its id had not come yet."""
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    try:
        return client.ask("POST", "/jobs", json=body, headers=headers)
    except KeyboardInterrupt:
        # The same key: the job that was made, if it was.
        job = client.ask("POST", "/jobs", json=body, headers=headers)
        raise cancelled(client, [job["id"]]) from None


def ended(client: Client, job_id: str, tell: Any) -> dict[str, Any]:
    """The job when it has a picture. Raises Failure for one that ends without."""
    for event in client.follow(job_id):
        tell(event)
    return drawn(event.data)


def drawn(job: dict[str, Any]) -> dict[str, Any]:
    if job["status"] == "succeeded":
        return job
    more = {"job_id": job["id"]}
    if job["status"] == "cancelled":
        text = f"job {job['id']} was cancelled on the service"
        raise Failure(Status.CANCELLED, text, code="cancelled", more=more)
    error = job.get("error") or {}
    raise Failure(
        Status.FAILED,
        f"job {job['id']} failed ({error.get('code')}): {error.get('message')}",
        code=error.get("code") or "failed",
        more=more,
    )


def fetch(client: Client, job: dict[str, Any], target: files.Target) -> list[Path]:
    """Write a job's pictures where they are wanted."""
    images = job["result"]["images"]
    written = []
    for index, image in enumerate(images):
        content = client.file(f"/jobs/{job['id']}/image", params={"index": index})
        if target.is_stdout:
            sys.stdout.buffer.write(content)
            continue
        path = target.name(job["id"], index, len(images), Path(image["filename"]).suffix)
        try:
            files.write(path, content)
        except Failure as failure:
            kept = f"it is kept on the service: ./flux queue fetch {job['id']} -o FILE"
            raise Failure(
                failure.status, f"{failure.message}; {kept}", more={"job_id": job["id"]}
            ) from failure
        written.append(path)
    return written


def cancelled(client: Client, job_ids: list[str]) -> Failure:
    """Cancel what is on its way; returns how the command ends."""
    told = []
    for job_id in job_ids:
        answer = client.cancel(job_id)
        if answer["cancelled"]:
            told.append(f"job {job_id} is cancelled")
        else:
            told.append(
                f"job {job_id} had {answer['status']} already; see ./flux queue show {job_id}"
            )
    return Failure(Status.INTERRUPTED, "; ".join(told), more={"job_ids": job_ids})


def summary(job: dict[str, Any]) -> str:
    result = job["result"]
    loras = ", ".join(
        f"{printable(each['name'])}:{each['weight']:g}" for each in result.get("loras_applied", ())
    )
    return (
        f"{result['model']} ({result['precision']}, {result['engine']}), "
        f"{result['width']}x{result['height']}, {result['num_inference_steps']} steps, seed {result['seed']}"
        + (f", {loras}" if loras else "")
        + f", {result['generation_time_ms'] / 1000:.1f} s"
    )
