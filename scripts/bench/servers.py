"""The BF16 service beside other servers of diffusers' pipeline: same weights, size, steps, threads and clients.

    python -m scripts.bench.servers [--rounds 3] [--only litserve,ray,...] [--clients 1,4,16]

`scripts/bench/rival_servers/` has the others; LitServe comes into an environment of its own (`rivals.py`). Each is
started, draws until it is warm, and then takes turns with ours; the one whose turn it is not rests. A picture is counted when its
PNG is with the client, and every prompt is new. Each has one process that draws, with as many threads as torch takes here by
itself. That the pictures are the same is looked at too. Prints a table for `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import itertools
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import httpx2
import numpy as np
from PIL import Image

from config.settings import ROOT
from scripts.bench import rivals
from scripts.bench.comparison import HEADER, Comparison
from scripts.bench.queue import free_port
from scripts.bench.service import start_service

SIZE_PX, STEPS = 256, 4
START_SECONDS = 240  # beside other work; one that ended is not waited for
# Of a round, by clients: several for each, because the first and the last ones find a server that is half idle.
PICTURES = {1: 10, 4: 24, 16: 32}
ENOUGH_SECONDS = 45  # for one number of clients: who needs longer gets fewer rounds
SAME_LEVELS = 2.0  # grey levels that two pictures of one seed may differ on average
_prompts = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that runs: where to ask, and what answers hold: the picture, or its address under these keys."""

    client: httpx2.Client
    path: str
    address: Sequence[str | int] = ()

    def draw(self, prompt: str, seed: int = 0) -> bytes:
        body = {
            "prompt": prompt,
            "width": SIZE_PX,
            "height": SIZE_PX,
            "num_inference_steps": STEPS,
            "seed": seed,
        }
        answer = self.client.post(self.path, json=body).raise_for_status()
        if not self.address:
            return answer.content
        where = answer.json()
        for key in self.address:
            where = where[key]
        return self.client.get(where).raise_for_status().content


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A module of `rival_servers`, its own arguments, and what it cannot be without."""

    title: str
    how: str = ""  # other than its title and version say
    module: str
    path: str
    arguments: Sequence[str] = ()
    address: Sequence[str | int] = ()
    needs: str  # the package that it is

    def name(self) -> str:
        return f"{self.title} {rivals.version(self.needs) or version(self.needs)}{self.how}"

    def python(self) -> str:
        """Raises MissingRival."""
        if self.needs == "litserve":
            rivals.install("servers")
            return rivals.python("servers")
        if importlib.util.find_spec(self.needs) is None:
            raise rivals.MissingRival(
                f"{self.needs} not installed; scripts/setup_env.sh --fleet does it"
            )
        return sys.executable


RIVALS: Mapping[str, Rival] = {
    "litserve": Rival(
        title="LitServe", module="litserve_app", path="/predict", needs="litserve"
    ),
    "litserve-batch": Rival(
        title="LitServe", how=", batches of 4", module="litserve_app", path="/predict",
        arguments=("--batch", "4"), needs="litserve",
    ),
    "ray": Rival(title="Ray Serve", module="ray_app", path="/imagine", needs="ray"),
    "ray-batch": Rival(
        title="Ray Serve", how=", batches of 4", module="ray_app", path="/imagine", arguments=("4",),
        needs="ray",
    ),
    "diffusers": Rival(
        title="`examples/server` of diffusers", module="diffusers_app", path="/v1/images/generations",
        address=("data", 0, "url"), needs="diffusers",
    ),
    "diffusers-async": Rival(
        title="`examples/server-async` of diffusers", module="diffusers_async_app",
        path="/api/diffusers/inference", address=("response", 0), needs="diffusers",
    ),
}  # fmt: skip


@dataclass(slots=True)
class Side:
    """What rounds with so many clients gave."""

    rates: list[float] = field(default_factory=list)  # pictures a second
    p50_ms: list[float] = field(default_factory=list)
    p95_ms: list[float] = field(default_factory=list)

    def add(self, server: Server, clients: int, count: int) -> None:
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            times = sorted(pool.map(lambda _: _timed(server), range(count)))
        self.rates.append(count / (time.perf_counter() - started))
        self.p50_ms.append(statistics.median(times))
        self.p95_ms.append(times[min(count - 1, int(0.95 * count))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(RIVALS), help=f"of {', '.join(RIVALS)}")
    parser.add_argument("--clients", default="1,4,16", help="how many at once")
    parser.add_argument("--pictures", type=int, help="of a round, whatever the clients")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers end with us
    wanted = options.only.split(",")
    for name in wanted:
        if name not in RIVALS:
            parser.error(f"--only: {name} is none of {', '.join(RIVALS)}")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}; {SIZE_PX} px, {STEPS} steps\n"
    )
    pictures = {
        clients: options.pictures or PICTURES.get(clients, 2 * clients)
        for clients in map(int, options.clients.split(","))
    }
    print(HEADER.format(other="the other"), flush=True)
    with tempfile.TemporaryDirectory() as folder, our_service(Path(folder)) as ours:
        warm_up(ours)
        failed = [name for name in wanted if not compare(ours, RIVALS[name], pictures, options)]
    if failed:
        raise SystemExit(f"not compared: {', '.join(failed)}")


def compare(
    ours: Server, rival: Rival, pictures: Mapping[int, int], options: argparse.Namespace
) -> bool:
    """The rows of one rival; False when it did not serve."""
    try:
        python = rival.python()
    except rivals.MissingRival as error:
        print(f"not run: {rival.title}{rival.how}: {error}", flush=True)
        return True
    name = rival.name()
    try:
        with running(rival, python) as theirs:
            warm_up(theirs)
            look_alike(name, ours, theirs)
            for clients, count in pictures.items():
                sides = take_turns(ours, theirs, clients, count, options.rounds)
                what = f"{name}, {clients} client{'s' * (clients > 1)}"
                for row in rows(what, *sides):
                    print(row, flush=True)
    except (httpx2.HTTPError, RuntimeError) as error:
        print(f"failed: {name}: {error}", flush=True)
        return False
    return True


def take_turns(
    ours: Server, theirs: Server, clients: int, count: int, rounds: int
) -> tuple[Side, Side]:
    sides, started = (Side(), Side()), time.monotonic()
    for turn in range(rounds):
        if turn and time.monotonic() - started > ENOUGH_SECONDS:
            break
        both = list(zip(sides, (ours, theirs), strict=True))
        for side, server in both if turn % 2 else reversed(both):
            side.add(server, clients, count)
    return sides


def rows(what: str, ours: Side, theirs: Side) -> Iterator[str]:
    if len(ours.rates) == 1:
        what = f"{what}, one round"
    yield Comparison(
        what=f"{what}: pictures a second", ours=ours.rates, others=theirs.rates, unit="/s", wanted="> 1"
    ).row()  # fmt: skip
    p50 = [f"(p50 {statistics.median(side.p50_ms):,.0f} ms)" for side in (ours, theirs)]
    yield Comparison(
        what=f"{what}: p95", ours=ours.p95_ms, others=theirs.p95_ms, unit="ms", wanted="< 1",
        also=(p50[0], p50[1]),
    ).row()  # fmt: skip


def warm_up(server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: _timed(server), range(8)))


def look_alike(name: str, ours: Server, theirs: Server) -> None:
    """Raises RuntimeError when a seed is not the same picture to the eye, at the size that was asked for."""
    both = []
    for server in (ours, theirs):
        with Image.open(io.BytesIO(server.draw("a red balloon over green hills", 7))) as picture:
            if picture.format != "PNG" or picture.size != (SIZE_PX, SIZE_PX):
                raise RuntimeError(f"its picture is {picture.format} of {picture.size} px")
            both.append(np.asarray(picture.convert("RGB"), np.float32))
    off = float(np.abs(both[0] - both[1]).mean())
    if off > SAME_LEVELS:
        raise RuntimeError(f"its picture is another than ours: {off:.1f} grey levels on average")


def _timed(server: Server) -> float:
    prompt = f"a red balloon over green hills at sunset, number {next(_prompts)}"
    started = time.perf_counter()
    server.draw(prompt)
    return (time.perf_counter() - started) * 1000


@contextlib.contextmanager
def our_service(folder: Path) -> Iterator[Server]:
    process, client = start_service(folder)
    try:
        yield Server(client=client, path="/generate?format=raw")
    finally:
        client.close()
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def running(rival: Rival, python: str) -> Iterator[Server]:
    """The rival's server, once it answers; its whole group ends with the block."""
    with tempfile.TemporaryFile("w+") as log:
        port = free_port()
        process = subprocess.Popen(
            [python, "-m", f"scripts.bench.rival_servers.{rival.module}", str(port), *rival.arguments],
            cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)
        server = Server(client=client, path=rival.path, address=rival.address)
        try:
            _wait(process, server, log)
            yield server
        finally:
            client.close()
            end(process)


def _wait(process: subprocess.Popen[bytes], server: Server, log: io.TextIOBase) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(httpx2.TransportError, httpx2.HTTPStatusError):
            server.draw("first")
            return
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            words = log.read().strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"it did not come up: {words[-1]}")
        time.sleep(0.1)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


if __name__ == "__main__":
    main()
