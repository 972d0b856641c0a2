"""A year of use in one database: how long a start, the first pages and a cleanup take.

    python -m scripts.bench.year [--jobs 1000000] [--files 100000]

Writes a database of as many jobs, the newest of which have a picture each (a small file), 350 days of them older
than cleanup keeps; starts a service on it, asks for the first pages, draws while it cleans up, and prints the lines
of `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2

from models.types import GenerationRequest, OutputFormat
from scripts.bench.service import start_service
from utils.clock import rfc3339
from utils.job_store import JobStore

REQUEST = GenerationRequest(
    prompt="a red balloon over green hills at sunset, with a small house beside a lake",
    negative_prompt=None,
    model="embedded",
    backend="flux",
    width=1024,
    height=1024,
    num_inference_steps=4,
    guidance_scale=0.0,
    true_cfg_scale=1.0,
    seed=1,
    num_images=1,
    output_format=OutputFormat.PNG,
    output_quality=95,
    tags=("year",),
)
SPAN = timedelta(days=365)
PAGES = ("/images", "/jobs", "/jobs?status=failed", "/jobs?status=succeeded", "/queue-stats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_year(folder, options.jobs, options.files)
        size = (folder / "data" / "bf16.sqlite3").stat().st_size / 2**20
        print(f"database of {options.jobs:,} jobs and {options.files:,} pictures: {size:,.0f} MiB")
        _measure(folder)


def _write_year(folder: Path, jobs: int, files: int) -> None:
    (folder / "data").mkdir()
    (folder / "pictures").mkdir()
    path = folder / "data" / "bf16.sqlite3"
    asyncio.run(_make_schema(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("BEGIN")
        db.executemany(
            "INSERT INTO job (id, status, request, model, owner, created_at, started_at, finished_at, attempts, "
            "worker, result, error_code, error_message) VALUES (?, ?, ?, 'embedded', '', ?, ?, ?, 1, 'gpu0', ?, ?, ?)",
            _job_rows(jobs),
        )
        db.executemany(
            "INSERT INTO image (id, job_id, filename, seed, width, height, size_bytes, created_at, precision, engine) "
            "VALUES (?, ?, ?, 1, 1024, 1024, 1000, ?, 'bf16', 'diffusers')",
            _picture_rows(jobs, files, folder / "pictures"),
        )
        db.execute(
            "INSERT INTO usage (job_id, day, owner, backend, model, tags, images, megapixels, gpu_seconds, cost_usd, "
            "finished_at) SELECT id, substr(finished_at, 1, 10), '', 'flux', model, '[]', 1, 1, 1, 0, finished_at FROM job "
            "WHERE status = 'succeeded'"
        )
        db.execute("COMMIT")


async def _make_schema(path: Path) -> None:
    await (await JobStore.open(path)).close()


def _moments(count: int) -> Iterator[str]:
    """Evenly over the year that ends now."""
    now = datetime.now(UTC)
    return (rfc3339(now - SPAN * (1 - number / count)) for number in range(count))


def _job_rows(jobs: int) -> Iterator[tuple[Any, ...]]:
    text = json.dumps(REQUEST.to_json())
    for number, at in enumerate(_moments(jobs)):
        job_id = f"{number:026x}"
        if number % 50 == 0:  # one in fifty fails
            yield job_id, "failed", text, at, at, at, None, "oom", "too large for the device"
            continue
        yield job_id, "succeeded", text, at, at, at, json.dumps(_result(job_id)), None, None


def _result(job_id: str) -> dict[str, Any]:
    image = {"filename": f"{job_id}-0.png", "seed": 1, "width": 1024, "height": 1024}
    return {
        "images": [{**image, "size_bytes": 1000, "nsfw_flagged": None}],
        "engine": "diffusers",
        "precision": "bf16",
        "device": "cuda",
        "timings_ms": {
            "queued": 5.0,
            "encode": 9.0,
            "denoise": 800.0,
            "decode": 60.0,
            "total": 900.0,
        },
        "loras": [],
        "cost_usd": 0.0,
    }


def _picture_rows(jobs: int, files: int, folder: Path) -> Iterator[tuple[Any, ...]]:
    """The pictures of the newest jobs that have one, evenly over their time."""
    numbers = [number for number in range(jobs) if number % 50][-files:]
    first = numbers[0]
    for number, at in enumerate(_moments(jobs)):
        if number < first or number % 50 == 0:
            continue
        job_id = f"{number:026x}"
        (folder / f"{job_id}-0.png").write_bytes(b"x" * 1000)
        yield f"{job_id}-0", job_id, f"{job_id}-0.png", at


def _measure(folder: Path) -> None:
    os.environ["FLUX_CLEANUP_INTERVAL_MINUTES"] = "0"  # when it is asked to
    began = time.perf_counter()
    process, client = start_service(folder)
    print(f"start to /health/ready: {time.perf_counter() - began:.2f} s")
    for page in PAGES:
        _print_times(page, [_ask(client, page) for _ in range(20)])
    body = {"prompt": "a red balloon", "width": 128, "height": 128}
    client.post("/generate", json=body).raise_for_status()
    alone = [_draw(client, body, seed) for seed in range(10)]
    _print_times("a picture, nothing beside it", alone)

    report: dict[str, Any] = {}
    cleaner = threading.Thread(target=lambda: report.update(_clean(client)))
    cleaner.start()
    drawn, pages = [], []
    while cleaner.is_alive():
        drawn.append(_draw(client, body, len(drawn)))
        pages.append(_ask(client, "/images"))
    cleaner.join()
    removed = {kind: tally["count"] for kind, tally in report["removed"].items() if tally["count"]}
    print(f"cleanup: {report['seconds']:.1f} s, removed {removed or 'nothing'}")
    _print_times("a picture while it cleans up", drawn)
    _print_times("/images while it cleans up", pages)
    client.close()
    process.terminate()
    process.wait(60)


def _clean(client: httpx2.Client) -> dict[str, Any]:
    with httpx2.Client(base_url=client.base_url, timeout=600) as own:
        return own.post("/admin/cleanup").raise_for_status().json()


def _ask(client: httpx2.Client, path: str) -> float:
    began = time.perf_counter()
    client.get(path).raise_for_status()
    return (time.perf_counter() - began) * 1000


def _draw(client: httpx2.Client, body: dict[str, Any], seed: int) -> float:
    began = time.perf_counter()
    client.post("/generate", json={**body, "seed": seed}).raise_for_status()
    return (time.perf_counter() - began) * 1000


def _print_times(what: str, milliseconds: list[float]) -> None:
    print(
        f"{what}: median {statistics.median(milliseconds):.1f} ms, worst of {len(milliseconds)} {max(milliseconds):.1f} ms"
    )


if __name__ == "__main__":
    main()
