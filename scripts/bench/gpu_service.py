"""FLUX.1 [schnell] at full size through HTTP on this GPU, beside diffusers as anyone would call it.

    python -m scripts.bench.random_snapshot /dev/shm/flux
    python -m scripts.bench.gpu_service /dev/shm/flux [--only diffusers,bf16,...] [--size 512,1024]

Every way starts in a process of its own, loads, draws once, and is then timed: one client with new prompts,
one that repeats its prompt, and several at once. A picture is counted when its PNG is with the client, for
diffusers when Pillow has written it. Memory is the most that NVML saw in use while the way ran; the energy of a
picture is what the card's counter rose by while pictures were timed, by their number (`scripts/bench/gpu_meter.py`). The
table of both comes last.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from config.settings import ROOT
from scripts.bench.gpu_meter import Used, metered

FLOOR_MS = {512: 96, 768: 201, 1024: 369}  # of an H200 in BF16, computed from its products alone
STEPS, TEXT_TOKENS = 4, 256
# Of each way: its main file, and what differs from the defaults.
WAYS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "bf16": ("main_bf16.py", {"FLUX_COMPILE": "off"}),
    "bf16 compiled": ("main_bf16.py", {"FLUX_COMPILE": "on"}),
    "bf16 offloaded": ("main_bf16.py", {"FLUX_OFFLOAD": "on"}),
    "fp4 speed": ("main_fp4.py", {"FLUX_FP8_WEIGHTS": "speed", "FLUX_COMPILE": "on"}),
    "fp4 memory": ("main_fp4.py", {"FLUX_FP8_WEIGHTS": "memory", "FLUX_COMPILE": "auto"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default=",".join(["diffusers", *WAYS]))
    parser.add_argument("--size", default="1024", help="px; several with commas between")
    parser.add_argument("--clients", default="1,4", help="how many at once")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--draw-with-diffusers", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.draw_with_diffusers:
        options.size = int(options.size)
        return draw_with_diffusers(options)
    rows = []
    say("| | |\n|---|---|")
    for size, name in itertools.product(map(int, options.size.split(",")), options.only.split(",")):
        options.size = size
        with metered() as whole, tempfile.TemporaryDirectory() as folder:
            if name == "diffusers":
                drawing, pictures = run_diffusers(options)
            else:
                drawing, pictures = run_way(name, options, Path(folder))
        rows.append(memory_row(name, size, whole, drawing, pictures))
        say_row(f"{name}, {size} px, the GPU", f"{whole.peak()}; {drawing.per_picture(pictures)}")
    say("\n| FLUX.1 [schnell] | px | most of the GPU | energy |\n|---|---|---|---|")
    say("\n".join(rows))


def memory_row(name: str, size_px: int, whole: Used, drawing: Used, pictures: int) -> str:
    return f"| {name} | {size_px} | {whole.peak_bytes / 1e9:.1f} GB | {drawing.per_picture(pictures)} |"


def say(text: str) -> None:
    print(text, flush=True)


def say_row(what: str, found: str) -> None:
    say(f"| {what} | {found} |")


def run_way(name: str, options: argparse.Namespace, folder: Path) -> tuple[Used, int]:
    """What its pictures with new prompts used, and how many they were."""
    main_file, changes = WAYS[name]
    models = options.folder / ("bf16" if main_file == "main_bf16.py" else "fp4")
    size = {"width": options.size, "height": options.size}
    with service(main_file, {"FLUX_MODELS_DIR": str(models), **changes}, folder) as client:
        started = time.perf_counter()
        draw(client, seed=0, prompt="first", **size)
        took = time.perf_counter() - started
        say_row(f"{name}, first picture, loading and compiling included", f"{took:.1f} s")
        again = [
            draw(client, seed=seed, prompt="same", **size) for seed in range(options.images + 1)
        ]
        with metered() as drawing:
            new = [
                draw(client, seed=1, prompt=f"new {index}", **size)
                for index in range(options.images)
            ]
        floor = FLOOR_MS.get(options.size)
        for words, answers in (("new prompt", new), ("same prompt", again[1:])):
            wall = statistics.median(ms for ms, _ in answers)
            parts = {
                part: statistics.median(found[part] for _, found in answers)
                for part in ("encode", "denoise", "decode", "save")
            }
            share = f", {100 * floor / wall:.0f} % of the floor" if floor else ""
            listed = ", ".join(f"{part} {ms:.0f}" for part, ms in parts.items())
            say_row(
                f"{name}, {options.size} px, one client, {words}",
                f"{wall:.0f} ms{share} ({listed})",
            )
        for clients in map(int, options.clients.split(",")):
            count = max(options.images, 3 * clients)
            started = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                list(
                    pool.map(
                        lambda seed: draw(client, seed=seed, prompt="same", **size), range(count)
                    )
                )
            took = (time.perf_counter() - started) * 1000 / count
            say_row(f"{name}, {options.size} px, {clients} clients", f"{took:.0f} ms a picture")
    return drawing, options.images


def draw(client: httpx2.Client, **body: Any) -> tuple[float, dict[str, float]]:
    """Wall time, ms, until the PNG is here, and the service's own times."""
    started = time.perf_counter()
    answer = client.post("/generate?format=raw", json={"num_inference_steps": STEPS, **body})
    milliseconds = (time.perf_counter() - started) * 1000
    if answer.status_code != 200:
        raise SystemExit(f"{answer.status_code}: {answer.text}")
    job = client.get(f"/jobs/{answer.headers['x-job-id']}").json()
    return milliseconds, job["result"]["timings_ms"]


def run_diffusers(options: argparse.Namespace) -> tuple[Used, int]:
    with tempfile.TemporaryDirectory() as name:
        told = Path(name) / "millijoules.json"
        command = [sys.executable, "-m", "scripts.bench.gpu_service", str(options.folder), "--draw-with-diffusers",
                   str(told), "--size", str(options.size), "--images", str(options.images)]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True)
        return Used(millijoules=json.loads(told.read_text())), options.images


def draw_with_diffusers(options: argparse.Namespace) -> None:
    """As its documentation has it; nothing set but the numbers' type and the device."""
    import torch
    from diffusers import FluxPipeline

    snapshot = next((options.folder / "bf16").glob("models--*/snapshots/*"))
    started = time.perf_counter()
    pipeline = FluxPipeline.from_pretrained(snapshot, dtype=torch.bfloat16).to("cuda")
    pipeline.set_progress_bar_config(disable=True)

    def draw_one(index: int) -> tuple[float, float]:
        """Milliseconds until the file is there, and until it was drawn."""
        begun = time.perf_counter()
        picture = pipeline(
            f"new {index}",
            width=options.size,
            height=options.size,
            num_inference_steps=STEPS,
            guidance_scale=0.0,
            max_sequence_length=TEXT_TOKENS,
            generator=torch.Generator("cpu").manual_seed(index),
        ).images[0]
        drawn = time.perf_counter()
        picture.save(options.draw_with_diffusers.with_name("picture.png"))
        return (time.perf_counter() - begun) * 1000, (drawn - begun) * 1000

    draw_one(0)
    took = time.perf_counter() - started
    say_row("diffusers, first picture, loading included", f"{took:.1f} s")
    with metered() as used:
        found = [draw_one(index) for index in range(1, options.images + 1)]
    options.draw_with_diffusers.write_text(json.dumps(used.millijoules))
    wall, drawing = (statistics.median(each) for each in zip(*found, strict=True))
    peak = torch.cuda.max_memory_allocated() / 1e9
    say_row(
        f"diffusers as it is, {options.size} px",
        f"{wall:.0f} ms, of which Pillow's PNG {wall - drawing:.0f}; peak {peak:.1f} GB",
    )


@contextmanager
def service(main_file: str, changes: Mapping[str, str], folder: Path) -> Iterator[httpx2.Client]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {
        **os.environ,
        "FLUX_PORT": str(port),
        "FLUX_MODEL": "flux-schnell",
        "FLUX_GPUS": "0",
        "FLUX_ALLOW_DOWNLOAD": "false",
        "FLUX_OUTPUT_DIR": str(folder / "pictures"),
        "FLUX_DATA_DIR": str(folder / "data"),
        "FLUX_LOG_DIR": str(folder / "logs"),
        "FLUX_LOG_LEVEL": "warning",
        **changes,
    }
    process = subprocess.Popen([sys.executable, str(ROOT / main_file)], cwd=ROOT, env=environ)
    client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=400)
    try:
        _wait(process, lambda: client.get("/health/ready").status_code == 200)
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(60)


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    while True:
        try:
            if ready():
                return
        except httpx2.TransportError:
            if process.poll() is not None:
                raise SystemExit("the service did not start") from None
        time.sleep(0.05)


if __name__ == "__main__":
    main()
