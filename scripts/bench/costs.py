"""How time and memory grow: with pixels, steps, pictures at once, LoRAs, jobs that wait, clients.

    python -m scripts.bench.costs [--write] [--only pixels,steps,...]

A BF16 service with the embedded model on the CPU, a fresh one for each. Of a picture the time is what the worker says it
took, in rounds that go up and down in turns. Its memory is the most that the worker had in main memory meanwhile, on the way
up before them: what a process had once it mostly keeps. Prints a table for each, and with `--write` draws the plots into `docs/costs` and
puts them, with what they show, into `docs/costs.md`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from config.settings import ROOT
from scripts.bench import document, machine
from scripts.bench.memory import Service, started
from scripts.bench.plots import Curve, Panel, draw
from scripts.bench.random_loras import random_loras

FOLDER = ROOT / "docs" / "costs"
PAGE = ROOT / "docs" / "costs.md"
PROMPT = "a red balloon over green hills at sunset"
ROUNDS = 3
MIB = 2**20
SIZES_PX = (128, 256, 320, 384, 448, 512)  # to the embedded model's largest
STEPS = (1, 2, 4, 8, 16, 32)
IMAGES = (1, 2, 4, 6, 8)
LORAS = (0, 1, 2, 4, 8)
WAITING = (0, 2500, 5000, 7500, 10_000)
CLIENTS = (1, 4, 8, 16, 32)
SUBMITTERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """One plot: what varies, and the figures of every place, by curve."""

    name: str
    title: str
    along: str
    places: Sequence[float]
    words: Sequence[str]
    panels: Sequence[tuple[str, Mapping[str, Sequence[Sequence[float]]]]]  # unit up, curves
    seen: str  # what the curves show, in a sentence

    def draw(self, folder: Path) -> None:
        panels = [
            Panel(
                along=self.along, up=up, words=self.words,
                curves=[Curve(name=name, places=self.places, values=found) for name, found in curves.items()],
            )
            for up, curves in self.panels
        ]  # fmt: skip
        draw(folder / f"{self.name}.svg", self.title, panels)

    def table(self) -> str:
        columns = [(f"{name}, {up}" if name else up, found) for up, curves in self.panels for name, found in curves.items()]  # fmt: skip
        lines = [f"| {self.along} | {' | '.join(name for name, _ in columns)} |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        for place, word in enumerate(self.words):
            cells = [_figure(found[place]) for _, found in columns]
            lines.append(f"| {word} | {' | '.join(cells)} |")
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(GROWTHS), help=f"of {', '.join(GROWTHS)}")
    parser.add_argument("--write", action="store_true", help="into docs/costs and docs/costs.md")
    parser.add_argument("--quick", action="store_true", help="two places of each, once")
    options = parser.parse_args()
    wanted = options.only.split(",")
    for name in wanted:
        if name not in GROWTHS:
            parser.error(f"--only: {name} is none of {', '.join(GROWTHS)}")
    if options.write and options.quick:
        parser.error("--quick measures nothing that could be written: leave out --quick or --write")
    about = f"{machine.describe()}, load {machine.load():.1f} at the start"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = measure(folder, wanted, quick=options.quick)
        for growth in found:
            growth.draw(folder)  # also where nothing is kept, so that a look finds what fails
        if options.write:
            write(found, about, FOLDER, PAGE)


def measure(folder: Path, wanted: Sequence[str], *, quick: bool) -> list[Growth]:
    found = []
    for each in wanted:
        own = folder / each
        own.mkdir()
        with started("main_bf16.py", own, FLUX_MAX_QUEUE_SIZE="20000") as service:
            growth = GROWTHS[each](Bench(service, own, quick=quick))
        print(f"{growth.table()}\n\n{growth.seen}\n", flush=True)
        found.append(growth)
    return found


def write(found: Sequence[Growth], about: str, folder: Path, page: Path) -> None:
    """The plots, and the part of the page that shows them. Raises document.NoPlace."""
    folder.mkdir(exist_ok=True)
    for growth in found:
        growth.draw(folder)
        text = f"{about}.\n\n![{growth.title}]({folder.name}/{growth.name}.svg)\n\n{growth.seen}\n\n{growth.table()}"
        document.write(growth.name, text, page)


class Bench:
    """The service, its worker, and a look at what a picture costs."""

    def __init__(self, service: Service, folder: Path, *, quick: bool) -> None:
        self.service = service
        self.folder = folder
        self.quick = quick
        self.rounds = 1 if quick else ROUNDS
        service.draw()  # it has a worker now, and the model is loaded
        (worker,) = service.workers()
        self._worker = Path("/proc") / str(worker.pid)
        self._api = Path("/proc") / str(service.process.pid)

    def places(self, all_of_them: Sequence[int]) -> Sequence[int]:
        return all_of_them[:2] if self.quick else all_of_them

    def sweep(
        self, places: Sequence[int], body: Callable[[int], dict[str, Any]]
    ) -> tuple[list[list[float]], list[list[float]]]:
        """Milliseconds of each round, and MiB, at every place; the places must rise."""
        memory = []
        for place in places:
            (self._worker / "clear_refs").write_text("5")  # the most it had counts from here
            self._draw(body(place))
            memory.append([self._most_mib()])
        times: list[list[float]] = [[] for _ in places]
        for turn in range(self.rounds):
            order = list(enumerate(places))
            for index, place in order if turn % 2 else reversed(order):
                times[index].append(self._draw(body(place)))
        return times, memory

    def _draw(self, body: dict[str, Any]) -> float:
        job = self.service.client.post("/generate?format=json", json={"prompt": PROMPT, **body})
        took = job.raise_for_status().json()["timings_ms"]
        return sum(took[part] for part in ("encode", "denoise", "decode"))

    def _most_mib(self) -> float:
        return _status_mib(self._worker, "VmHWM")

    def api_mib(self) -> float:
        return _status_mib(self._api, "VmRSS")


def pixels(bench: Bench) -> Growth:
    sizes = bench.places(SIZES_PX)
    times, memory = bench.sweep(sizes, lambda size: {"width": size, "height": size})
    counts = [size * size / 1e6 for size in sizes]
    exponent = _exponent(counts[-2:], times[-2:])
    return Growth(
        name="pixels",
        title="A picture by its size, 4 steps",
        along="megapixels",
        places=counts,
        words=[f"{count:.2f}" for count in counts],
        panels=[("ms", {"": times}), ("MiB of the worker", {"": memory})],
        seen=(
            f"Between the two largest sizes time grows with pixels to the power of {exponent:.2f}"
            f"{': attention, which grows with their square, has a part in it' if exponent > 1.05 else ''}. {sizes[-1]} px take {_median(memory[-1]) - _median(memory[0]):.0f} MiB more than {sizes[0]} px."
        ),
    )


def steps(bench: Bench) -> Growth:
    counts = bench.places(STEPS)
    times, memory = bench.sweep(counts, lambda count: {"num_inference_steps": count})
    each = (_median(times[-1]) - _median(times[0])) / (counts[-1] - counts[0])
    return Growth(
        name="steps",
        title="A picture of 256 x 256 px by its steps",
        along="steps",
        places=counts,
        words=[str(count) for count in counts],
        panels=[("ms", {"": times}), ("MiB of the worker", {"": memory})],
        seen=(
            f"A step takes {each:.0f} ms; what is left without steps (text, decoding) is "
            f"{_median(times[0]) - each * counts[0]:.0f} ms. Memory does not depend on steps "
            f"(from {_least(memory):.0f} to {_most(memory):.0f} MiB)."
        ),
    )


def batch(bench: Bench) -> Growth:
    counts = bench.places(IMAGES)
    times, memory = bench.sweep(counts, lambda count: {"num_images": count})
    alone, last = _median(times[0]), _median(times[-1]) / counts[-1]
    return Growth(
        name="batch",
        title="Pictures of one request, 256 x 256 px, 4 steps",
        along="num_images",
        places=counts,
        words=[str(count) for count in counts],
        panels=[("ms", {"": times}), ("MiB of the worker", {"": memory})],
        seen=(
            f"One of {counts[-1]} takes {last:.0f} ms, one alone {alone:.0f} ms: {last / alone:.2f} of it. "
            f"{counts[-1]} take {_median(memory[-1]) - _median(memory[0]):.0f} MiB more than one."
        ),
    )


def loras(bench: Bench) -> Growth:
    counts = bench.places(LORAS)
    folder = bench.folder / "made"
    folder.mkdir()
    names = [bench.service.upload(path) for path in random_loras(folder, max(counts), rank=8)]
    times, memory = bench.sweep(
        counts, lambda count: {"loras": [{"name": n, "weight": 0.2} for n in names[:count]]}
    )
    first, last = _median(times[0]), _median(times[-1])
    return Growth(
        name="loras",
        title="A picture with LoRAs of rank 8 on every layer, 256 x 256 px, 4 steps",
        along="LoRAs",
        places=counts,
        words=[str(count) for count in counts],
        panels=[("ms", {"": times}), ("MiB of the worker", {"": memory})],
        seen=(
            f"Each adds {(last - first) / counts[-1]:.0f} ms on average, {(last / first - 1) / counts[-1]:.0%} of a picture without. "
            f"{counts[-1]} of them take {_median(memory[-1]) - _median(memory[0]):.0f} MiB."
        ),
    )


def queue(bench: Bench) -> Growth:
    """Jobs wait, and nothing is drawn meanwhile."""
    counts = [0, 100] if bench.quick else list(WAITING)
    client = bench.service.client
    client.post("/queue/pause").raise_for_status()
    asked: dict[str, list[list[float]]] = {name: [] for name in ("submit", "a job with its place", "/jobs, a page", "/queue")}  # fmt: skip
    body = {"prompt": PROMPT, "width": 128, "height": 128}
    waiting, memory = 0, []
    for count in counts:
        submit_many(client, body, count - waiting)
        waiting = count
        memory.append([bench.api_mib()])
        for found in asked.values():
            found.append([])
        for turn in range(31):
            began = time.perf_counter()
            job = client.post("/jobs", json=body).raise_for_status().json()["id"]
            took = {"submit": (time.perf_counter() - began) * 1000}
            pages = (f"/jobs/{job}", "/jobs", "/queue")
            for name, path in zip(list(asked)[1:], pages, strict=True):
                took[name] = _asked_ms(client, path)
            client.post(f"/jobs/{job}/cancel").raise_for_status()
            if turn:
                for name, found in asked.items():
                    found[-1].append(took[name])
    # Of thirty the middle half: a stray commit would be all that is seen.
    for found in asked.values():
        found[:] = [_middle_half(values) for values in found]
    client.post("/queue/clear").raise_for_status()
    client.post("/queue/resume").raise_for_status()
    submit = asked["submit"]
    return Growth(
        name="queue",
        title="Answers while jobs wait",
        along="jobs that wait",
        places=counts,
        words=[f"{count:,}" for count in counts],
        panels=[("MiB of the API's process", {"": memory}), ("ms", asked)],
        seen=(
            f"A submit takes {_median(submit[0]):.1f} ms while nothing waits and {_median(submit[-1]):.1f} ms while {counts[-1]:,} jobs do; "
            f"the first page of jobs {_median(asked['/jobs, a page'][0]):.1f} and {_median(asked['/jobs, a page'][-1]):.1f} ms. "
            f"All of them take {memory[-1][0] - memory[0][0]:.0f} MiB of the API's process, or {1024 * (memory[-1][0] - memory[0][0]) / counts[-1]:.1f} KiB each."
        ),
    )


def clients(bench: Bench) -> Growth:
    counts = bench.places(CLIENTS)
    rates: list[list[float]] = [[] for _ in counts]
    p95: list[list[float]] = [[] for _ in counts]
    memory: list[list[float]] = [[] for _ in counts]
    for turn in range(bench.rounds):
        order = list(enumerate(counts))
        for index, count in order if turn % 2 == 0 else reversed(order):
            rate, late = _load(bench.service.client, count, 2 if bench.quick else max(12, count))
            rates[index].append(rate)
            p95[index].append(late)
            memory[index].append(bench.api_mib())
    return Growth(
        name="clients",
        title="Clients at once, 256 x 256 px, 4 steps",
        along="clients",
        places=counts,
        words=[str(count) for count in counts],
        panels=[
            ("pictures a second", {"": rates}),
            ("ms until a picture is there, p95", {"": p95}),
            ("MiB of the API's process", {"": memory}),
        ],
        seen=(
            f"One client gets {_median(rates[0]):.2f} pictures a second, {counts[-1]} get {_median(rates[-1]):.2f} together: the machine is "
            f"busy from {_busy(counts, rates)} on, and everyone waits for those before: p95 {_median(p95[0]) / 1000:.2f} s with one, "
            f"{_median(p95[-1]) / 1000:.1f} s with {counts[-1]}."
        ),
    )


def _status_mib(process: Path, key: str) -> float:
    lines = (process / "status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def submit_many(client: httpx2.Client, body: dict[str, Any], count: int) -> None:
    with ThreadPoolExecutor(SUBMITTERS) as pool:
        for answer in pool.map(lambda _: client.post("/jobs", json=body), range(count)):
            answer.raise_for_status()


def _load(client: httpx2.Client, clients: int, count: int) -> tuple[float, float]:
    """Pictures a second, and milliseconds that 95 of 100 were there within."""

    def draw_one(seed: int) -> float:
        began = time.perf_counter()
        body = {"prompt": PROMPT, "seed": seed}
        client.post("/generate?format=raw", json=body, timeout=300).raise_for_status()
        return (time.perf_counter() - began) * 1000

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = sorted(pool.map(draw_one, range(count)))
    return count / (time.perf_counter() - began), times[min(count - 1, int(0.95 * count))]


def _asked_ms(client: httpx2.Client, path: str) -> float:
    began = time.perf_counter()
    client.get(path).raise_for_status()
    return (time.perf_counter() - began) * 1000


def _busy(counts: Sequence[int], rates: Sequence[Sequence[float]]) -> str:
    """From how many clients on nothing is gained but a tenth."""
    most = max(map(_median, rates))
    count = next(c for c, found in zip(counts, rates, strict=True) if _median(found) >= 0.9 * most)
    return f"{count} client{'s' * (count > 1)}"


def _exponent(places: Sequence[float], values: Sequence[Sequence[float]]) -> float:
    low, high = map(_median, values)
    return math.log(high / low) / math.log(places[1] / places[0])


def _middle_half(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 4 : -(len(ordered) // 4) or None]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _least(values: Sequence[Sequence[float]]) -> float:
    return min(map(_median, values))


def _most(values: Sequence[Sequence[float]]) -> float:
    return max(map(_median, values))


def _figure(values: Sequence[float]) -> str:
    digits = 0 if _median(values) >= 100 else 1 if _median(values) >= 10 else 2
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{_median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


GROWTHS: Mapping[str, Callable[[Bench], Growth]] = {
    "pixels": pixels,
    "steps": steps,
    "batch": batch,
    "loras": loras,
    "queue": queue,
    "clients": clients,
}

if __name__ == "__main__":
    main()
