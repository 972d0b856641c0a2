"""Two services draw one request at the same time; how far their pictures are from each other."""

from __future__ import annotations

import io
import math
import queue
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cli import files
from cli.failures import Failure, Status
from cli.job import cancelled, drawn, submit
from cli.progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from cli.client import Client

GAP_PX, CAPTION_PX = 8, 20


def draw(
    clients: Sequence[Client],
    body: dict[str, Any],
    same: Sequence[str],
    *,
    preview: bool,
    quiet: bool,
) -> list[dict[str, Any]]:
    """The job of each client. What the first one chose (`same`), the others are asked for.

    Where one does not take it or fails, the rest are cancelled. Raises Failure.
    """
    ids: list[str] = []
    try:
        for client in clients:
            ids.append(submit(client, body)["id"])
            if len(ids) == 1:
                chosen = client.job(ids[0])["request"]
                body = {
                    **body,
                    **{name: chosen[name] for name in same if chosen.get(name) is not None},
                }
        with Progress(preview=preview, quiet=quiet) as shown:
            return _ended(clients, ids, shown)
    except KeyboardInterrupt:
        ends = [cancelled(client, [job]) for client, job in zip(clients, ids, strict=False)]
        text = "; ".join(end.message for end in ends)
        raise Failure(Status.INTERRUPTED, text, more={"job_ids": ids}) from None
    except Failure:
        for client, job in zip(clients, ids, strict=False):
            client.cancel(job)
        raise


def _ended(clients: Sequence[Client], ids: Sequence[str], shown: Progress) -> list[dict[str, Any]]:
    """Follow all at once, each in a thread, so that the bars move together."""
    told: queue.SimpleQueue[tuple[str, dict[str, Any] | Failure]] = queue.SimpleQueue()

    def follow(client: Client, job_id: str) -> None:
        try:
            for event in client.follow(job_id):
                shown.tell(event, client.name)
            told.put((job_id, event.data))
        except Failure as failure:
            told.put((job_id, failure))

    for client, job_id in zip(clients, ids, strict=True):
        # Daemons: neither Ctrl-C nor the failure of one waits for the other's picture.
        threading.Thread(target=follow, args=(client, job_id), daemon=True).start()
    jobs = {}
    for _ in ids:
        job_id, job = told.get()
        if isinstance(job, Failure):
            raise job
        jobs[job_id] = drawn(job)
    return [jobs[job_id] for job_id in ids]


def write(
    clients: Sequence[Client], jobs: Sequence[dict[str, Any]], target: files.Target
) -> dict[str, Any]:
    """Both pictures and both side by side; returns what is said of them."""
    from PIL import Image

    contents = [
        client.file(f"/jobs/{job['id']}/image") for client, job in zip(clients, jobs, strict=True)
    ]
    pictures = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
    first = jobs[0]["id"]
    if target.is_folder:
        together = target.path / f"{first}-compare.png"
        paths = {client.name: target.path / f"{first}-{client.name}.png" for client in clients}
    else:
        together = target.path
        paths = {client.name: target.beside(client.name) for client in clients}
    for path, content in zip(paths.values(), contents, strict=True):
        files.write(path, content)
    captions = [
        f"{client.name.upper()}  {job['result']['engine']}  {job['result']['generation_time_ms'] / 1000:.1f} s"
        for client, job in zip(clients, jobs, strict=True)
    ]
    encoded = io.BytesIO()
    kind = files.FORMATS[together.suffix.lower()]
    side_by_side(pictures, captions).save(encoded, kind.upper())
    files.write(together, encoded.getvalue())
    psnr = psnr_db(*pictures)
    return {
        "seed": jobs[0]["result"]["seed"],
        "model": jobs[0]["result"]["model"],
        "psnr_db": None if math.isinf(psnr) else round(psnr, 3),
        "identical": math.isinf(psnr),
        "files": {"compare": str(together), **{name: str(path) for name, path in paths.items()}},
        "jobs": {client.name: job["result"] for client, job in zip(clients, jobs, strict=True)},
    }


def psnr_db(one: Image, other: Image) -> float:
    """Peak signal-to-noise ratio of two RGB pictures of one size, in dB; infinite for equal ones."""
    import numpy

    if one.size != other.size:
        raise Failure(Status.FAILED, f"pictures of {one.size} and {other.size} pixels have no PSNR")
    difference = numpy.asarray(one, numpy.float64) - numpy.asarray(other, numpy.float64)
    error = float((difference**2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def side_by_side(pictures: Sequence[Image], captions: Sequence[str]) -> Image:
    from PIL import Image, ImageDraw

    width = sum(picture.width for picture in pictures) + GAP_PX * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(p.height for p in pictures) + CAPTION_PX), "white")
    pen, left = ImageDraw.Draw(sheet), 0
    for picture, caption in zip(pictures, captions, strict=True):
        sheet.paste(picture, (left, 0))
        pen.text((left + 4, picture.height + 4), caption, fill="black")
        left += picture.width + GAP_PX
    return sheet
