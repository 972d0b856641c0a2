"""Resident memory of every process, by model and setting, on the CPU.

    python -m scripts.bench.memory [--pictures 100] [--only bf16,fp4,...]

Starts each thing by itself and reads /proc: *resident* is what the process has in memory, *its own* the part of it that
no other process shares, which is what one more of it would take. Prints a table for `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx2
import psutil

from config.settings import ROOT
from scripts.bench.queue import free_port

MIB = 2**20
WAIT_SECONDS = 120
BODY = {"prompt": "a red balloon over green hills at sunset"}
LORAS = ROOT / "models" / "embedded-loras"


class Memory:
    """Prints a row for each process as soon as it is known."""

    def __init__(self) -> None:
        print("| process | when | resident MiB | its own MiB |\n|---|---|---|---|", flush=True)

    def add(self, process: str, when: str, *pids: int) -> None:
        found = [psutil.Process(pid).memory_full_info() for pid in pids]
        resident, own = (sum(getattr(each, key) for each in found) / MIB for key in ("rss", "uss"))
        print(f"| {process} | {when} | {resident:.0f} | {own:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--only", default=",".join(WHO), help=f"of {', '.join(WHO)}")
    options = parser.parse_args()
    wanted = options.only.split(",")
    for name in wanted:
        if name not in WHO:
            parser.error(f"--only: {name} is none of {', '.join(WHO)}")
    memory = Memory()
    for name in wanted:
        with tempfile.TemporaryDirectory() as folder:
            WHO[name](memory, Path(folder), options.pictures)


def bf16(memory: Memory, folder: Path, pictures: int) -> None:
    with started("main_bf16.py", folder) as service:
        _first_pictures(memory, "BF16", service, pictures)
        service.draw(width=512, height=512)
        service.add(memory, "BF16", "and one of 512 x 512 px", is_api=False)
        service.draw(num_images=4)
        service.add(memory, "BF16", "and four of 256 x 256 px together", is_api=False)
        names = [service.upload(path) for path in sorted(LORAS.glob("*.safetensors"))]
        service.draw(loras=[{"name": name} for name in names])
        service.add(memory, "BF16", f"and one with {len(names)} LoRAs", is_api=False)


def fp4(memory: Memory, folder: Path, pictures: int) -> None:
    with started("main_fp4.py", folder) as service:
        _first_pictures(memory, "FP4", service, pictures)


def one_thread(memory: Memory, folder: Path, pictures: int) -> None:
    with started("main_bf16.py", folder, FLUX_THREADS="1") as service:
        for seed in range(4):
            service.draw(seed=seed)
        service.add(memory, "BF16, `FLUX_THREADS=1`", "after 4 pictures", is_api=False)


def page(memory: Memory, folder: Path, pictures: int) -> None:
    del folder, pictures
    port = free_port()
    command = ["-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", "frontend"]
    with running(command, {}) as process:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            _until(lambda: _answers(client, "/"), process)
            for path in sorted((ROOT / "frontend").rglob("*.js")):
                client.get(f"/{path.relative_to(ROOT / 'frontend')}").raise_for_status()
        memory.add("page server", "every module was read", process.pid)


def cleanup(memory: Memory, folder: Path, pictures: int) -> None:
    """It ends by itself: the most it had."""
    del memory, pictures
    process = subprocess.Popen(
        [sys.executable, "-m", "utils.cleanup_service"], cwd=ROOT, env=_environ(folder),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the cleanup service ended with status {process.returncode}")
    print(f"| cleanup service | the most of a run | {usage.ru_maxrss / 1024:.0f} | |", flush=True)


def fleet(memory: Memory, folder: Path, pictures: int) -> None:
    """A front door with one replica of this machine."""
    del pictures
    settings = {
        "FLUX_FLEET_PORT": str(free_port()),
        "FLUX_FAKE_GPUS": "1",
        "FLUX_GPUS": "auto",
        "FLUX_FLEET_OBJECT_STORE_MIB": "80",
        "FLUX_MODEL": "embedded",
    }
    with started("main_fleet.py", folder, **settings) as service:
        service.settle()
        family = psutil.Process(service.process.pid).children(recursive=True)
        workers = [each.pid for each in family if _is_worker(each)]
        ray = [each.pid for each in family if each.pid not in workers]
        memory.add("fleet's front door", "before a picture", service.process.pid)
        replicas = [pid for pid in ray if "ServeReplica" in _words(pid)]
        memory.add("replica, without its worker", "before a picture", *replicas)
        rest = [pid for pid in ray if pid not in replicas]
        memory.add(f"Ray's own {len(rest)} processes together", "before a picture", *rest)
        memory.add("replica's worker", "no model loaded", *workers)
        for seed in range(4):
            service.draw(seed=seed)
        memory.add("fleet's front door", "after 4 pictures", service.process.pid)
        memory.add("replica's worker", "after 4 pictures", *workers)


def _first_pictures(memory: Memory, who: str, service: Service, pictures: int) -> None:
    service.settle()
    service.add(memory, who, "no model loaded")
    service.draw(seed=0)
    service.add(memory, who, "after the first picture")
    for seed in range(1, pictures):
        service.draw(seed=seed)
    service.add(memory, who, f"after {pictures} pictures")


class Service:
    """A service that runs: its process, its workers', and pictures from it."""

    def __init__(self, process: subprocess.Popen[bytes], client: httpx2.Client) -> None:
        self.process = process
        self.client = client

    def draw(self, **body: object) -> None:
        self.client.post("/generate?format=raw", json={**BODY, **body}).raise_for_status()

    def upload(self, path: Path) -> str:
        answer = self.client.put(f"/loras/{path.name}", content=path.read_bytes())
        return answer.raise_for_status().json()["name"]

    def settle(self) -> None:
        """Until every worker is idle and has imported what it imports: no processor time goes there."""
        _until(self._workers_are_idle, self.process)
        _until(self._workers_rest, self.process)

    def _workers_are_idle(self) -> bool:
        workers = self.client.get("/queue").raise_for_status().json()["workers"]
        return bool(workers) and all(each["state"] == "idle" for each in workers)

    def _workers_rest(self) -> bool:
        before = self._workers_seconds()
        time.sleep(1)
        return self._workers_seconds() - before < 0.1

    def _workers_seconds(self) -> float:
        return sum(sum(each.cpu_times()[:2]) for each in self.workers())

    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in children if _is_worker(each)]

    def add(self, memory: Memory, who: str, when: str, *, is_api: bool = True) -> None:
        if is_api:
            memory.add(f"{who}: API", when, self.process.pid)
        memory.add(f"{who}: worker", when, *(each.pid for each in self.workers()))


@contextlib.contextmanager
def started(main_file: str, folder: Path, **environ: str) -> Iterator[Service]:
    port = free_port()
    settings = {**_environ(folder), "FLUX_PORT": str(port), **environ}
    with running([str(ROOT / main_file)], settings) as process:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_SECONDS) as client:
            _until(lambda: _answers(client, "/health/ready"), process)
            yield Service(process, client)


@contextlib.contextmanager
def running(arguments: list[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _environ(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "FLUX_GPUS": "none",
        "FLUX_OUTPUT_DIR": str(folder / "pictures"),
        "FLUX_DATA_DIR": str(folder / "data"),
        "FLUX_LORA_DIR": str(folder / "loras"),
        "FLUX_LOG_DIR": str(folder / "logs"),
        "FLUX_LOG_LEVEL": "warning",
        "FLUX_ALLOW_DOWNLOAD": "false",
    }


def _is_worker(process: psutil.Process) -> bool:
    return "utils.worker.child" in _words(process.pid)


def _words(pid: int) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(psutil.Process(pid).cmdline())
    return ""


def _answers(client: httpx2.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx2.TransportError:
        return False


def _until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{process.args} ended or did not become ready")
        time.sleep(0.05)


WHO: Mapping[str, Callable[[Memory, Path, int], None]] = {
    "bf16": bf16,
    "fp4": fp4,
    "one-thread": one_thread,
    "page": page,
    "cleanup": cleanup,
    "fleet": fleet,
}

if __name__ == "__main__":
    main()
