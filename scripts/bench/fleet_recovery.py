"""How long a fleet needs to go on when a part of it is killed, and what it costs in memory.

    python -m scripts.bench.fleet_recovery [--runs 3]

Starts a fleet of its own: a front door with two CPU replicas and a second machine with one, on this host, all
with the stand-in model of the tests, whose load takes nothing, so that the times are the fleet's own.
Each part is killed with SIGKILL while every replica holds a job. Printed are medians in seconds.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.fleet_service import RunningFleet

ALL = ("first/cpu0", "first/cpu1", "second/cpu0")
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        fleet = RunningFleet(Path(folder))
        started = time.monotonic()
        fleet.start()
        _until(lambda: len(fleet.states()) == 2)
        print(f"start to two replicas in the fleet: {time.monotonic() - started:.1f} s")
        fleet.wait_for(*ALL[:2])
        print(
            f"memory of Ray, front door and two replicas without their workers: {_pss(fleet)} MiB"
        )
        started = time.monotonic()
        fleet.join("second")
        fleet.wait_for(*ALL)
        print(f"a machine joins, until its worker is up: {time.monotonic() - started:.1f} s")
        try:
            for name, measure in (
                ("replica", _replica),
                ("machine", _machine),
                ("front door", _front_door),
            ):
                times = [measure(fleet, f"{name} {run}".replace(" ", "-")) for run in range(runs)]
                for what in times[0]:
                    median = statistics.median(row[what] for row in times)
                    print(f"{name} killed, {what}: {median:.2f} s")
        finally:
            fleet.close()


def _held(fleet: RunningFleet, mark: str) -> dict[str, dict]:
    """A job on every replica, by replica."""
    fleet.wait_for(*ALL)
    jobs = [fleet.submit(f"hold {mark}", seed=1) for _ in ALL]
    held = [fleet.wait_for_job(job, "running") for job in jobs]
    return {job["gpu"]: job for job in held}


def _replica(fleet: RunningFleet, mark: str) -> dict[str, float]:
    job = _held(fleet, mark)[ALL[0]]
    (pid,) = (worker["pid"] for worker in fleet.workers() if worker["name"] == ALL[0])
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    _until(
        lambda: fleet.job(job["id"])["status"] == "queued" or fleet.job(job["id"])["attempts"] == 2
    )
    back = time.monotonic() - killed
    fleet.release(mark)
    _until(lambda: fleet.job(job["id"])["status"] == "succeeded")
    _until(lambda: fleet.states().get(ALL[0]) == "idle")
    return {"its job is back in line": back, "a new replica is up": time.monotonic() - killed}


def _machine(fleet: RunningFleet, mark: str) -> dict[str, float]:
    job = _held(fleet, mark)[ALL[2]]
    killed = time.monotonic()
    fleet.kill_machine("second")
    _until(
        lambda: fleet.job(job["id"])["status"] == "queued" or fleet.job(job["id"])["attempts"] == 2
    )
    back = time.monotonic() - killed
    fleet.release(mark)
    _until(lambda: fleet.job(job["id"])["status"] == "succeeded")
    fleet.join("second")
    return {"its job is back in line": back}


def _front_door(fleet: RunningFleet, mark: str) -> dict[str, float]:
    jobs = _held(fleet, mark)
    fleet.kill_front_door()
    fleet.release(mark)
    started = time.monotonic()
    fleet.start()
    answers = time.monotonic() - started
    _until(lambda: len(fleet.states()) == len(ALL))
    found = time.monotonic() - started
    _until(lambda: all(fleet.job(job["id"])["status"] == "succeeded" for job in jobs.values()))
    return {
        "it answers again": answers,
        "it has its replicas again": found,
        "all jobs it had have ended": time.monotonic() - started,
    }


def _pss(fleet: RunningFleet) -> int:
    """Of all processes of the fleet but its workers; what several share is counted once."""
    door = psutil.Process(fleet.process.pid)
    family = {door, *door.children(recursive=True)}
    workers = {p for p in family if "utils.worker.child" in " ".join(p.cmdline())}
    return sum(p.memory_full_info().pss for p in family - workers) // MIB


def _until(condition: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it does not come")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
