"""What the service costs beside the drawing: start, memory, milliseconds per picture.

    python -m scripts.bench.service [--images 40]

Starts a service of its own on a free port with the embedded model on the CPU and prints the
lines of `docs/benchmarks.md`. Overhead is the client's wall time less what the worker spent on
encoding, denoising and decoding, so it holds HTTP, queue, commits, the pipe, PNG and disk.
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import psutil

from config.settings import ROOT

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40)
    images = parser.parse_args().images
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        starts = [_measure_start(Path(folder) / str(attempt)) for attempt in range(5)]
        print(
            f"start to /health/ready: median {statistics.median(starts):.2f} s, worst {max(starts):.2f} s"
        )
        _measure_pictures(Path(folder), images)


def _measure_start(folder: Path) -> float:
    started = time.perf_counter()
    process, client = start_service(folder)
    ready = time.perf_counter() - started
    client.close()
    process.terminate()
    process.wait(30)
    return ready


def _measure_pictures(folder: Path, images: int) -> None:
    process, client = start_service(folder)
    api = psutil.Process(process.pid)
    body = {"prompt": "a red balloon over green hills at sunset"}
    client.post("/generate", json=body).raise_for_status()
    print(f"API process resident: {api.memory_info().rss / MIB:.0f} MiB after the first picture")

    drawing, overhead, saving = [], [], []
    for seed in range(images):
        started = time.perf_counter()
        answer = (
            client.post("/generate?format=json", json={**body, "seed": seed})
            .raise_for_status()
            .json()
        )
        wall = (time.perf_counter() - started) * 1000
        ms = answer["timings_ms"]
        drawn = ms["encode"] + ms["denoise"] + ms["decode"]
        drawing.append(drawn)
        saving.append(ms["save"])
        overhead.append(wall - drawn)
    print(
        f"{images} pictures, 256 px, 4 steps: drawing {statistics.median(drawing):.0f} ms, "
        f"everything else {statistics.median(overhead):.1f} ms, of which PNG and sync {statistics.median(saving):.1f} ms (medians)"
    )
    print(
        f"API process resident: {api.memory_info().rss / MIB:.0f} MiB after {images + 1} pictures"
    )
    client.close()
    process.terminate()
    process.wait(30)


def start_service(folder: Path) -> tuple[subprocess.Popen[bytes], httpx2.Client]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {
        **os.environ,
        "FLUX_PORT": str(port),
        "FLUX_GPUS": "none",
        "FLUX_OUTPUT_DIR": str(folder / "pictures"),
        "FLUX_DATA_DIR": str(folder / "data"),
        "FLUX_LOG_LEVEL": "warning",
        "FLUX_LOG_DIR": str(folder / "logs"),
    }
    process = subprocess.Popen([sys.executable, str(ROOT / "main_bf16.py")], cwd=ROOT, env=environ)
    client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)
    while True:
        try:
            client.get("/health/ready").raise_for_status()
            return process, client
        except httpx2.TransportError:
            if process.poll() is not None:
                raise SystemExit("the service did not start") from None
            time.sleep(0.01)


if __name__ == "__main__":
    main()
