"""What several front doors cost that each route for themselves, and what a router keeps in memory.

    python -m scripts.bench.fleet_doors

Jobs are dealt to the doors in turn. Each has a line and a router of its own and knows of the others' jobs
only what the cards report, 2 ms late or more. Two may send to the same card at the same moment; the second
job waits there. Prints the lines of `docs/scaling.md`.
"""

from __future__ import annotations

import dataclasses
import time
import tracemalloc
from collections.abc import Iterator, Sequence

from fleet.replica import ReplicaStats
from fleet.routing import Router
from fleet.simulator import OurPolicy, SimCard, SimJob, World
from fleet.wanted import Wanted
from scripts.bench.fleet_traces import STEP_SHARE, Hardware, Trace, capacity, traffic, zipf


class Doors:
    """A policy of several front doors."""

    def __init__(self, count: int) -> None:
        self._doors = [OurPolicy() for _ in range(count)]
        self._door_of: dict[str, OurPolicy] = {}
        self._heard: dict[tuple[int, str], str] = (
            {}
        )  # by door and replica: the last job of that door

    def begin(self, world: World) -> None:
        for door in self._doors:
            door.begin(world)

    def came(self, job: SimJob) -> None:
        door = self._doors[len(self._door_of) % len(self._doors)]
        self._door_of[job.job] = door
        door.came(job)

    def reported(self, card: SimCard, stats: ReplicaStats) -> None:
        for place, door in enumerate(self._doors):
            if self._door_of.get(stats.heard) is door:
                self._heard[(place, stats.replica)] = stats.heard
            heard = self._heard.get((place, stats.replica), "")
            door.reported(card, dataclasses.replace(stats, heard=heard))

    def ended(self, job: SimJob, card: SimCard) -> None:
        self._door_of[job.job].ended(job, card)

    def died(self, replica: str, jobs: Sequence[SimJob]) -> None:
        for door in self._doors:
            door.died(replica, [job for job in jobs if self._door_of[job.job] is door])


def main() -> None:
    for line in (*door_rows(Hardware()), "", *memory_rows()):
        print(line, flush=True)


def door_rows(hardware: Hardware) -> Iterator[str]:
    cards = (hardware.h100,) * 40 + (hardware.rtx5090,) * 60
    popular = zipf([model for model in STEP_SHARE if model in hardware.rtx5090.model_gib])
    yield "| front doors that route | load | mean wait s | p95 wait s | model loads |"
    yield "|---|---|---|---|---|"
    for load in (0.5, 0.8):
        jobs = traffic(2000, popular, load * capacity(cards, popular), 8)
        trace = Trace(name="", cards=cards, jobs=jobs)
        for count in (1, 2, 4):
            result = World(
                cards=trace.make_cards(), jobs=jobs, policy=Doors(count), reports_arrivals=True
            ).run()
            yield (
                f"| {count} | {load} | {result.mean_wait:.2f} | {result.p95_wait:.2f} |"
                f" {result.loads} |"
            )


def memory_rows(replicas: int = 1000, waiting: int = 100_000) -> Iterator[str]:
    gib = {f"model{i}": 8.0 for i in range(10)}
    tracemalloc.start()
    router = Router()
    for place in range(replicas):
        router.report(
            ReplicaStats(
                replica=f"r{place}",
                node=f"n{place}",
                model_gib=dict(gib),
                memory_gib=31.0,
                models=(f"model{place % 10}",),
                jobs=frozenset({f"busy{place}"}),
            )
        )
    with_replicas = tracemalloc.get_traced_memory()[0]
    begun = time.thread_time()
    for seq in range(waiting):
        router.wait(Wanted(job=f"job{seq:032}", seq=seq, model=f"model{seq % 10}"))
    seconds = time.thread_time() - begun
    all_of_it = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    yield (
        f"Memory of a router: {with_replicas / 2**20:.1f} MiB for {replicas:,} replicas,"
        f" {(all_of_it - with_replicas) / 2**20:.0f} MiB more for {waiting:,} waiting jobs, which took"
        f" {1e6 * seconds / waiting:.0f} us each to enter."
    )


if __name__ == "__main__":
    main()
