"""What the queue takes: submit rate, a long line, listeners, health under load.

    python -m scripts.bench.queue [--jobs 10000]

Starts a service of its own with the embedded model on the CPU, and beside it an application with
one empty FastAPI route on the same server (uvicorn), as the measure for this machine. Both get the
same requests from the same client, in alternating rounds; their processors' time is measured beside
the rate, because other work on the machine disturbs it less. Prints the lines of `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from config.settings import ROOT

MIB = 2**20
CONNECTIONS = 32
ROUNDS = 20
WARM_UPS = 100
LOAD_PER_SECOND = 1000
LOAD_SECONDS = 10
BODY = json.dumps({"prompt": "a red balloon over green hills at sunset", "width": 128}).encode()

EMPTY_APP = """
import sys, uvicorn
from fastapi import FastAPI
app = FastAPI()
@app.post("/empty")
async def empty() -> dict:
    return {}
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_config=None, access_log=False)
"""


@dataclass(frozen=True, slots=True)
class Address:
    """Where requests go."""

    port: int
    method: str
    path: str

    @property
    def request(self) -> bytes:
        body = BODY if self.method == "POST" else b""
        return (
            f"{self.method} {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body


class Rounds:
    """Requests to one address in several rounds, and what they cost the process that answers."""

    def __init__(self, address: Address, process: psutil.Process) -> None:
        self.rates: list[float] = []  # requests a second
        self._address = address
        self._process = process
        self._cpu_seconds = 0.0
        self._requests = 0

    async def warm_up(self) -> None:
        """Requests that do not count."""
        await _send_all(self._address, WARM_UPS)

    async def send(self, count: int) -> None:
        before = self._cpu()
        self.rates.append(count / await _send_all(self._address, count))
        self._cpu_seconds += self._cpu() - before
        self._requests += count

    @property
    def cpu_us(self) -> float:
        """Microseconds of processor time a request."""
        return self._cpu_seconds / self._requests * 1e6

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system


def main() -> None:
    """Run every measurement and print its line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs that wait at the end")
    jobs = parser.parse_args().jobs
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(Path(folder), jobs))


async def _measure(folder: Path, jobs: int) -> None:
    async with running_service(folder / "loading") as service:
        await _health_while_loading(service)
    async with running_service(folder / "queue", FLUX_MAX_QUEUE_SIZE=str(jobs + 5000)) as service:
        async with _empty_app() as empty:
            await _submit_rate(service, empty, jobs)
        await _long_line(service)
        await _listeners(service)
        await _health_under_load(service)


async def _submit_rate(service: Service, empty: EmptyApp, jobs: int) -> None:
    service.client.post("/queue/pause").raise_for_status()
    submit = Address(service.port, "POST", "/jobs")
    share = jobs // ROUNDS
    ours, theirs = Rounds(submit, service.process), Rounds(empty.address, empty.process)
    await ours.warm_up()
    await theirs.warm_up()
    for turn in range(ROUNDS):
        for one in (ours, theirs) if turn % 2 else (theirs, ours):
            await one.send(share)
    ratios = [one / other for one, other in zip(ours.rates, theirs.rates, strict=True)]
    print(
        f"submit through HTTP, {CONNECTIONS} connections: {statistics.median(ours.rates):.0f}/s; "
        f"an empty FastAPI route: {statistics.median(theirs.rates):.0f}/s; ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f} in {ROUNDS} rounds), wanted ≥ 0.5"
    )
    print(
        f"processor time of a submit, all threads: {ours.cpu_us:.0f} us; of the empty route: {theirs.cpu_us:.0f} us"
    )


async def _long_line(service: Service) -> None:
    waiting = service.client.get("/queue").json()["queued"]
    newest = service.client.get("/jobs?limit=1").json()["jobs"][0]["id"]
    for name, path in (
        ("one job with its position", f"/jobs/{newest}"),
        ("/queue", "/queue"),
        ("/jobs?limit=500", "/jobs?limit=500"),
    ):
        times = sorted(_timed(service.client, path) for _ in range(50))
        print(
            f"{waiting:,} jobs wait, {name}: median {times[25]:.1f} ms, worst of 50 {times[-1]:.1f} ms"
        )


async def _listeners(service: Service) -> None:
    job = service.client.get("/jobs?limit=1").json()["jobs"][0]["id"]
    path = f"/jobs/{job}/events"
    idle = [await _listen(service.port, path) for _ in range(200)]
    await _come_and_go(service.port, path, 100)  # what the first ones make the process take once
    before = service.memory_mib
    await _come_and_go(service.port, path, 1000)
    after = service.memory_mib
    service.client.post(f"/jobs/{job}/cancel").raise_for_status()
    told = await asyncio.gather(*(_reads_end(reader) for reader, _ in idle))
    for _, writer in idle:
        writer.close()
    print(
        f"200 idle event listeners, 1,000 that came and went: {before:.0f} MiB before, {after:.0f} MiB after; "
        f"{sum(told)} of 200 were told the end"
    )


async def _health_under_load(service: Service) -> None:
    load = Address(service.port, "GET", "/queue")
    sending = asyncio.create_task(_send_at_rate(load))
    await asyncio.sleep(1)
    times = await _probe(service.port, LOAD_SECONDS - 2)
    sent, seconds = await sending
    print(f"/health/live under {sent / seconds:.0f} requests/s (GET /queue): {_percentiles(times)}")


async def _health_while_loading(service: Service) -> None:
    loading = asyncio.create_task(
        asyncio.to_thread(service.client.post, "/load-model", timeout=120)
    )
    times = []
    while not loading.done():
        times += await _probe(service.port, 0.2)
    loading.result().raise_for_status()
    print(f"/health/live while the model loads: {_percentiles(times)}")


def _percentiles(times: list[float]) -> str:
    times = sorted(times)
    p99 = times[int(len(times) * 0.99)]
    return (
        f"median {statistics.median(times):.1f} ms, p99 {p99:.1f} ms, worst {times[-1]:.1f} ms "
        f"of {len(times)}"
    )


async def _probe(port: int, seconds: float) -> list[float]:
    """Milliseconds of /health/live, asked every 10 ms on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request, times = Address(port, "GET", "/health/live").request, []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        await _exchange(reader, writer, request)
        times.append((time.perf_counter() - started) * 1000)
        await asyncio.sleep(0.01)
    writer.close()
    return times


async def _send_all(address: Address, count: int) -> float:
    """Send so many requests over CONNECTIONS connections; returns seconds."""
    left = count

    async def send() -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
        while left > 0:
            left -= 1
            await _exchange(reader, writer, address.request)
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(send() for _ in range(CONNECTIONS)))
    return time.perf_counter() - started


async def _send_at_rate(address: Address) -> tuple[int, float]:
    """LOAD_PER_SECOND requests for LOAD_SECONDS; returns how many and how long it took."""
    total, sent = LOAD_PER_SECOND * LOAD_SECONDS, 0
    started = time.perf_counter()

    async def send() -> None:
        nonlocal sent
        reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
        while sent < total:
            due = started + sent / LOAD_PER_SECOND
            sent += 1
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await _exchange(reader, writer, address.request)
        writer.close()

    await asyncio.gather(*(send() for _ in range(CONNECTIONS)))
    return sent, time.perf_counter() - started


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> bytes:
    """One request and its answer's body. Raises RuntimeError for anything but 2xx."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 2"):
        raise RuntimeError(head.decode())
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    return await reader.readexactly(length)


async def _listen(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A listener that has read its first event."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(Address(port, "GET", path).request)
    await reader.readuntil(b"event: queued")
    return reader, writer


async def _come_and_go(port: int, path: str, count: int) -> None:
    for _ in range(count):
        _, writer = await _listen(port, path)
        writer.close()
        await writer.wait_closed()


async def _reads_end(reader: asyncio.StreamReader) -> bool:
    with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
        async with asyncio.timeout(30):
            await reader.readuntil(b"event: cancelled")
            return True
    return False


def _timed(client: httpx2.Client, path: str) -> float:
    started = time.perf_counter()
    client.get(path).raise_for_status()
    return (time.perf_counter() - started) * 1000


class Service:
    """A running service: its port, a client, its process."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        self.process = psutil.Process(process.pid)

    @property
    def memory_mib(self) -> float:
        return self.process.memory_info().rss / MIB


@contextlib.asynccontextmanager
async def running_service(folder: Path, **environ: str) -> AsyncIterator[Service]:
    port = free_port()
    settings = {
        "FLUX_PORT": str(port),
        "FLUX_GPUS": "none",
        "FLUX_OUTPUT_DIR": str(folder / "pictures"),
        "FLUX_DATA_DIR": str(folder / "data"),
        "FLUX_LOG_LEVEL": "warning",
        "FLUX_LOG_DIR": str(folder / "logs"),
        **environ,
    }
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main_bf16.py")], cwd=ROOT, env={**os.environ, **settings}
    )
    service = Service(port, process)
    try:
        await until_up(process, port)
        while service.client.get("/queue").json()["workers"][0]["state"] == "starting":
            await asyncio.sleep(0.1)
        yield service
    finally:
        service.client.close()
        process.terminate()
        process.wait(30)


@dataclass(frozen=True, slots=True)
class EmptyApp:
    """The measure: an application with one empty route."""

    address: Address
    process: psutil.Process


@contextlib.asynccontextmanager
async def _empty_app() -> AsyncIterator[EmptyApp]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", EMPTY_APP, str(port)])
    try:
        await until_up(process, port)
        yield EmptyApp(Address(port, "POST", "/empty"), psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def until_up(process: subprocess.Popen[bytes], port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            return writer.close()
        except OSError:
            if process.poll() is not None:
                raise SystemExit("the service did not start") from None
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    main()
