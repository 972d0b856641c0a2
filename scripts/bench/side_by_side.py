"""The BF16 service beside diffusers alone: the embedded model on the CPU, in one run, in turns.

    python -m scripts.bench.side_by_side [--rounds 4] [--only throughput,one,...]

Alone is a process that loads `FluxPipeline` as its documentation has it and writes each picture with
Pillow's PNG. Both are loaded and warm but where the line says cold; each line is the median of rounds whose
order alternates, and of the rounds' ratios with the least and the greatest. Prints a table for
`docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy
import psutil
from PIL import Image

from config.settings import ROOT
from scripts.bench.picture_distance import psnr
from scripts.bench.service import start_service

EMBEDDED = ROOT / "models" / "embedded"
PROMPT = "a red balloon over green hills at sunset"
SIZE, STEPS, TEXT_TOKENS = 256, 4, 64
CLIENTS = 4


class Alone:
    """The process that draws with diffusers alone; `do` asks it and waits."""

    def __init__(self, folder: Path, beside: int) -> None:
        """`beside` is the process of the service that it is compared with."""
        command = [sys.executable, "-m", "scripts.bench.side_by_side", "--alone", str(folder)]
        self.folder, self.beside = folder, beside
        # As diffusers is by itself, also where the service is told how its threads wait.
        told = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name not in told},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, what: str, count: int) -> list[float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([what, count]), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        self._process.communicate("")


def make_loras(folder: Path) -> list[Path]:
    """Two with random factors on every layer of the transformer, as diffusers names them."""
    import torch
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import save_file

    transformer = FluxTransformer2DModel.from_pretrained(EMBEDDED / "transformer")
    made = []
    for seed in range(2):
        generator, state = torch.Generator().manual_seed(seed), {}
        for name, layer in transformer.named_modules():
            if "blocks" in name and isinstance(layer, torch.nn.Linear):
                down = torch.randn(8, layer.in_features, generator=generator) / 100
                up = torch.randn(layer.out_features, 8, generator=generator) / 100
                state |= {
                    f"transformer.{name}.lora_A.weight": down,
                    f"transformer.{name}.lora_B.weight": up,
                }
        made.append(folder / f"random-{seed}.safetensors")
        save_file(state, made[-1])
    return made


def serve_alone(loras: Path) -> None:
    """The other end of `Alone`: milliseconds of each picture, or of each change of LoRA."""
    from diffusers import FluxPipeline
    from diffusers.utils.logging import disable_progress_bar

    disable_progress_bar()
    pipeline = FluxPipeline.from_pretrained(EMBEDDED)
    pipeline.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            what, count = json.loads(line)
            found = []
            for index in range(count):
                started = time.perf_counter()
                if what == "lora":
                    pipeline.unload_lora_weights()
                    pipeline.load_lora_weights(loras / f"random-{index % 2}.safetensors")
                else:
                    # Pictures that are compared are kept.
                    name = (
                        loras / f"{index}.png" if what == "keep" else Path(folder) / "picture.png"
                    )
                    draw_alone(pipeline, index).save(name)
                found.append((time.perf_counter() - started) * 1000)
            if what == "lora":
                pipeline.unload_lora_weights()
            print(json.dumps(found), flush=True)


def draw_alone(pipeline: Any, seed: int) -> Any:
    import torch

    return pipeline(
        PROMPT,
        width=SIZE,
        height=SIZE,
        num_inference_steps=STEPS,
        max_sequence_length=TEXT_TOKENS,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]


COLD = f"""
from diffusers import FluxPipeline
import torch
pipeline = FluxPipeline.from_pretrained({str(EMBEDDED)!r})
pipeline({PROMPT!r}, width={SIZE}, height={SIZE}, num_inference_steps={STEPS},
         max_sequence_length={TEXT_TOKENS}).images[0].save("picture.png")
"""


def draw(client: httpx2.Client, seed: int, prompt: str = PROMPT, **more: Any) -> dict[str, float]:
    """A picture; its wall time, ms, with the service's own times."""
    body = {"prompt": prompt, "width": SIZE, "height": SIZE, "num_inference_steps": STEPS}
    started = time.perf_counter()
    answer = client.post("/generate?format=raw", json=body | {"seed": seed} | more)
    wall = (time.perf_counter() - started) * 1000
    answer.raise_for_status()
    job = client.get(f"/jobs/{answer.headers['x-job-id']}").raise_for_status().json()
    return job["result"]["timings_ms"] | {"wall": wall}


def per_second(client: httpx2.Client, count: int) -> float:
    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda seed: draw(client, seed), range(count)))
    return count / (time.perf_counter() - started)


class Table:
    """Prints a line for each comparison as soon as it is done."""

    def __init__(self) -> None:
        print("| | ours | alone | ratio (least to greatest) | wanted |\n|---|---|---|---|---|")

    def add(
        self, what: str, ours: Sequence[float], others: Sequence[float], unit: str, wanted: str
    ) -> None:
        ratios = [one / other for one, other in zip(ours, others, strict=True)]
        self.line(
            what,
            f"{statistics.median(ours):.3g} {unit}",
            f"{statistics.median(others):.3g} {unit}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            wanted,
        )

    def line(self, *cells: str) -> None:
        print(f"| {' | '.join(cells)} |", flush=True)


def in_turns(
    rounds: int, ours: Callable[[], float], alone: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Both, the one first that was second before."""
    found: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            found[which].append((ours, alone)[which]())
    return found


def throughput(rounds: int, client: httpx2.Client, alone: Alone, table: Table) -> None:
    count = 16

    def loop() -> float:
        return count / (sum(alone.do("draw", count)) / 1000)

    ours, others = in_turns(rounds, lambda: per_second(client, count), loop)
    table.add(f"pictures a second, {CLIENTS} clients; a loop", ours, others, "/s", "≥ 1.3")


def one(rounds: int, client: httpx2.Client, alone: Alone, table: Table) -> None:
    count = 8
    ours, others = in_turns(
        rounds,
        lambda: statistics.median(draw(client, seed)["wall"] for seed in range(count)),
        lambda: statistics.median(alone.do("draw", count)),
    )
    table.add("one picture, one client", ours, others, "ms", "≤ 0.9")


def processor(rounds: int, client: httpx2.Client, alone: Alone, table: Table) -> None:
    """User and system time of all processes: what other load on the machine changes least."""
    count = 12

    def ours() -> float:
        before = processor_seconds(alone.beside)
        per_second(client, count)
        return (processor_seconds(alone.beside) - before) / count * 1000

    def theirs() -> float:
        before = processor_seconds(alone.pid)
        alone.do("draw", count)
        return (processor_seconds(alone.pid) - before) / count * 1000

    found = in_turns(rounds, ours, theirs)
    table.add(f"processor time of a picture, {CLIENTS} clients; a loop", *found, "ms", "")


def processor_seconds(pid: int) -> float:
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return sum(sum(each.cpu_times()[:2]) for each in family)


def distance(rounds: int, client: httpx2.Client, alone: Alone, table: Table) -> None:
    """How far our pictures are from those of the same seeds."""
    count = 8 * rounds
    alone.do("keep", count)
    found, off = [], []
    for seed in range(count):
        body = {"prompt": PROMPT, "width": SIZE, "height": SIZE, "num_inference_steps": STEPS}
        answer = client.post("/generate?format=raw", json=body | {"seed": seed})
        with Image.open(io.BytesIO(answer.raise_for_status().content)) as picture:
            ours = picture.convert("RGB")
        with Image.open(alone.folder / f"{seed}.png") as picture:
            theirs = picture.convert("RGB")
        found.append(psnr(ours, theirs))
        off.append(float((numpy.asarray(ours) != numpy.asarray(theirs)).mean()))
    table.line(
        f"PSNR of our picture to that of the same seed, {count} pictures",
        f"median {statistics.median(found):.0f} dB, least {min(found):.0f} dB",
        "",
        f"{statistics.mean(off):.4%} of values are off",
        "",
    )


def prompt(rounds: int, client: httpx2.Client, alone: Alone, table: Table) -> None:
    del alone
    stamp = time.time_ns()
    new = [draw(client, 1, f"{PROMPT} {stamp} {index}")["encode"] for index in range(4 * rounds)]
    again = [draw(client, seed)["encode"] for seed in range(4 * rounds)]
    table.add("encoding a prompt seen before; a new one", again, new, "ms", "gone")


def lora(rounds: int, client: httpx2.Client, alone: Alone, table: Table) -> None:
    names = []
    for file in make_loras(alone.folder):
        answer = client.put(f"/loras/{file.name}", content=file.read_bytes())
        names.append(answer.raise_for_status().json()["name"])

    def change() -> float:
        each = [draw(client, 1, loras=[{"name": names[i % 2]}])["lora"] for i in range(8)]
        return statistics.median(each)

    change()  # both are read
    ours, others = in_turns(rounds, change, lambda: statistics.median(alone.do("lora", 8)))
    table.add(
        "another LoRA; `unload_lora_weights`, `load_lora_weights`", ours, others, "ms", "≤ 0.1"
    )


def ready(rounds: int, table: Table, folder: Path) -> None:
    def start() -> float:
        started = time.perf_counter()
        process, client = start_service(folder / str(time.time_ns()))
        took = time.perf_counter() - started
        client.close()
        process.terminate()
        process.wait(30)
        return took

    ours, others = in_turns(
        rounds, start, lambda: run("from diffusers import FluxPipeline", folder)
    )
    table.add("start to `/health/ready`; `import FluxPipeline`", ours, others, "s", "≤ 0.2")


def cold(rounds: int, table: Table, folder: Path) -> None:
    def start_and_draw() -> float:
        started = time.perf_counter()
        process, client = start_service(folder / str(time.time_ns()))
        draw(client, 1)
        took = time.perf_counter() - started
        client.close()
        process.terminate()
        process.wait(30)
        return took

    ours, others = in_turns(rounds, start_and_draw, lambda: run(COLD, folder))
    table.add("first picture, cold; the bare script", ours, others, "s", "≤ 1.1")


def workers(rounds: int, table: Table, folder: Path) -> None:
    os.environ["FLUX_THREADS"] = "1"
    services = []
    for count in (2, 1):
        os.environ["FLUX_FAKE_GPUS"] = str(count)
        services.append(start_service(folder / f"workers{count}"))
    for name in ("FLUX_THREADS", "FLUX_FAKE_GPUS"):
        del os.environ[name]
    for _, client in services:
        per_second(client, 12)
    ours, others = in_turns(rounds, *(lambda c=client: per_second(c, 16) for _, client in services))
    table.add("pictures a second, two workers of one thread; one", ours, others, "/s", "≥ 1.6")
    for process, client in services:
        client.close()
        process.terminate()
        process.wait(30)


def run(code: str, folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - started


WARM: dict[str, Callable[[int, httpx2.Client, Alone, Table], None]] = {
    "throughput": throughput,
    "one": one,
    "processor": processor,
    "distance": distance,
    "prompt": prompt,
    "lora": lora,
}
STARTS: dict[str, Callable[[int, Table, Path], None]] = {
    "ready": ready,
    "cold": cold,
    "workers": workers,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", default=",".join([*WARM, *STARTS]))
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        return serve_alone(options.alone)
    wanted = options.only.split(",")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}\n"
    )
    table = Table()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FLUX_LORA_DIR"] = str(folder / "loras")
        for part in STARTS:
            if part in wanted:
                STARTS[part](options.rounds, table, folder)
        if not set(wanted) & set(WARM):
            return
        process, client = start_service(folder / "warm")
        alone = Alone(folder, process.pid)
        try:
            per_second(client, 8)
            alone.do("draw", 3)
            for part in WARM:
                if part in wanted:
                    WARM[part](options.rounds, client, alone, table)
        finally:
            alone.close()
            client.close()
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
