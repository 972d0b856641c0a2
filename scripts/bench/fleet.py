"""Routing of a fleet against other routers' rules, in the simulator; what a decision costs.

    python -m scripts.bench.fleet [--jobs 100000] [--seeds 5] [--write]

The same cards, the same jobs, the same simulator for every router (`fleet_traces.py`, `fleet_rivals.py`).
Waiting ends when drawing begins, loads included. Needs no GPU and a few minutes. `--write` puts the
lines into `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from config.settings import ROOT
from fleet.scaling import ScaleLimits
from fleet.simulator import OurPolicy, Policy, Result, World
from scripts.bench.fleet_bound import least_loads
from scripts.bench.fleet_rivals import HerdForPictures, HerdInFull, Ray
from scripts.bench.fleet_scaling import ScaledPolicy
from scripts.bench.fleet_traces import (
    THREE,
    Hardware,
    Trace,
    backlog,
    capacity,
    day,
    thousand,
    traces,
    traffic,
)

PAGE = ROOT / "docs" / "benchmarks.md"
HEADING = "## The fleet"
OURS = "**ours**"
Results = dict[str, Result]  # by router
ROUTERS: dict[str, Callable[[], Policy]] = {
    OURS: OurPolicy,
    "ours, without patience": lambda: OurPolicy(patience_seconds=0.0),
    "ollama-herd, pictures": HerdForPictures,
    "ollama-herd, seven signals": HerdInFull,
    "Ray Serve": lambda: Ray(multiplexed=False, max_ongoing=5),
    "Ray Serve, multiplexed": lambda: Ray(multiplexed=True, max_ongoing=5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=100_000, help="of the thousand nodes")
    parser.add_argument("--seeds", type=int, default=5, help="of each trace, to count who is best")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args()
    hardware = Hardware()
    lines = []
    for line in report(hardware, options.jobs, options.seeds):
        print(line, flush=True)
        lines.append(line)
    if options.write:
        write(lines, PAGE)


def report(hardware: Hardware, jobs: int, seeds: int) -> Iterator[str]:
    yield HEADING
    yield ""
    yield (
        "`python -m scripts.bench.fleet` runs the router that the fleet uses through the simulator"
        f" (`fleet/simulator.py`), {date.today()}. Times of cards, models and loads are published ones"
        " (`scripts/bench/fleet_traces.py` names them), not measured here; no GPU takes part."
    )
    yield ""
    yield from two_nodes_rows(hardware)
    yield ""
    every: list[list[Results]] = [[]]
    yield from comparison_rows(traces(hardware), every[0])
    yield ""
    for seed in range(1, seeds):
        every.append([compare(trace) for trace in traces(hardware, seed)])
    for rivals in (DEFAULTS, RIVALS):
        yield from seeds_rows([trace.name for trace in traces(hardware)], every, rivals)
        yield ""
    yield (
        "Fewest loads and no card that idles are two wishes: a router that begins wherever there is room fills the"
        " fleet's memory once, copies included, and loads that often at least. Where the seven signals or multiplexing"
        " load less, jobs wait there for a card that has the model while others with room for it idle (*ready*)."
    )
    yield ""
    yield from scaling_rows(hardware)
    yield ""
    yield from thousand_rows(hardware, jobs)


def run(trace: Trace, policy: Policy, latency_seconds: float = 0.002) -> Result:
    return World(
        cards=trace.make_cards(),
        jobs=trace.jobs,
        policy=policy,
        failures=trace.failures,
        latency_seconds=latency_seconds,
    ).run()


def two_nodes_rows(hardware: Hardware) -> Iterator[str]:
    """Throughput of two nodes, and their loads against the least that are possible."""
    card = hardware.rtx5090
    jobs = traffic(500, THREE, 0.5 * capacity([card] * 2, THREE), 1, loras=0.0)
    trace = Trace(name="", cards=(card, card), jobs=jobs)
    result = World(
        cards=trace.make_cards(),
        jobs=jobs,
        policy=OurPolicy(),
        latency_seconds=0.0,
        is_strict=True,
    ).run()
    least = least_loads(jobs, card)
    yield "Two nodes, three models (FLUX.1 [schnell], FLUX.1 [dev], FLUX.2 [klein] 4B), 500 requests:"
    yield ""
    yield "| | |"
    yield "|---|---|"
    for other in (hardware.rtx5090, hardware.l40s, hardware.h100):
        both = backlog(other)
        alone = sum(
            run(dataclasses.replace(both, cards=(each,)), OurPolicy()).rate for each in both.cards
        )
        together = run(both, OurPolicy())
        pure = capacity(both.cards, _counts(both))
        yield (
            f"| two {other.name}, all at once: jobs a second together, by the sum of each alone |"
            f" {together.rate:.3f}, {together.rate / alone:.2f}; {together.rate / pure:.2f} of drawing"
            f" without any load; {together.loads} loads. Wanted: 0.9 |"
        )
    yield (
        f"| two {card.name}, load 0.5: loads, and the least of all plans that leave no card idle |"
        f" {result.loads}, {least}: {result.loads / least:.2f}. Wanted: 1.2 |"
    )
    yield (
        "| the same: seconds in which a card idled while a request waited that it could run |"
        f" {result.idle_while_waiting_seconds:g} |"
    )


def _counts(trace: Trace) -> dict[str, float]:
    shares: dict[str, float] = {}
    for job in trace.jobs:
        shares[job.model] = shares.get(job.model, 0.0) + job.work
    return {model: share / len(trace.jobs) for model, share in shares.items()}


def compare(trace: Trace) -> Results:
    """Every router on a trace."""
    return {name: run(trace, make()) for name, make in ROUTERS.items()}


def comparison_rows(all_traces: Sequence[Trace], every: list[Results]) -> Iterator[str]:
    """A table for each trace; what it was made of is added to `every`."""
    yield (
        "Routers on the same traces. *Idle* is the time in which some card did nothing while a request waited"
        " that it could have run; *ready* the part of it in which one did that had the model, or room for it."
        " Ours lets a card idle only where another model would have to leave, until waiting for it has come to"
        " the price of that load (`fleet/patience.py`), and 30 s at most; without patience never. What is left of"
        " its *ready* are the 2 ms that a message takes, and cards that die."
    )
    for trace in all_traces:
        results = compare(trace)
        every.append(results)
        yield ""
        yield f"{trace.name}:"
        yield ""
        yield "| router | mean wait s | p95 wait s | model loads | jobs/s | idle s | ready s |"
        yield "|---|---|---|---|---|---|---|"
        for name, result in results.items():
            lost = f" ({result.lost} lost)" if result.lost else ""
            yield (
                f"| {name}{lost} | {result.mean_wait:.2f} | {result.p95_wait:.2f} | {result.loads} |"
                f" {result.rate:.3f} | {result.idle_while_waiting_seconds:.1f} |"
                f" {result.ready_while_waiting_seconds:.2f} |"
            )


VALUES: dict[str, Callable[[Result], float]] = {
    "mean wait": lambda result: result.mean_wait,
    "p95 wait": lambda result: result.p95_wait,
    "loads": lambda result: result.loads,
}


# What ollama-herd does with a picture, and Ray Serve with a request, unless they are told otherwise.
DEFAULTS = ("ollama-herd, pictures", "Ray Serve")
RIVALS = tuple(name for name in ROUTERS if "ours" not in name)


def is_best(results: Results, value: Callable[[Result], float], rivals: Sequence[str]) -> bool:
    """Whether no other router has less, each value of whichever has least of it."""
    return value(results[OURS]) <= min(value(results[name]) for name in rivals)


def seeds_rows(
    names: Sequence[str], every: Sequence[Sequence[Results]], rivals: Sequence[str]
) -> Iterator[str]:
    """In how many runs of each trace ours is the best of all: `every` is by seed, then by trace."""
    yield (
        f"In how many of {len(every)} runs of each trace, with traffic of other seeds, ours is best against"
        f" {' and '.join(rivals) if len(rivals) == 2 else 'all four others'}, each value against whichever has least of it:"
    )
    yield ""
    yield f"| trace | {' | '.join(VALUES)} | all three | loads by the fewest of others |"
    yield "|---|" + "---|" * (len(VALUES) + 2)
    totals = [0] * (len(VALUES) + 1)
    for place, name in enumerate(names):
        runs = [results[place] for results in every]
        holds = [[is_best(results, value, rivals) for value in VALUES.values()] for results in runs]
        counts = [sum(column) for column in zip(*holds, strict=True)] + [sum(map(all, holds))]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        loads = ", ".join(
            f"{results[OURS].loads}/{min(results[rival].loads for rival in rivals)}"
            for results in runs
        )
        yield f"| {name} | {' | '.join(map(str, counts))} | {loads} |"
    of = len(names) * len(every)
    yield f"| all {of} | {' | '.join(map(str, totals))} | |"


def scaling_rows(hardware: Hardware) -> Iterator[str]:
    """On as many cards as the rule wants, and on all of them."""
    trace = day(hardware, hours=4.0)
    yield (
        "A day's rise and fall in four hours on 1 to 8 H100 by the rule of `fleet/scaling.py`; a card is there"
        " 60 s after it was asked for, and goes when it was not needed for ten minutes:"
    )
    yield ""
    yield "| | mean wait s | p95 wait s | model loads | card hours |"
    yield "|---|---|---|---|---|"
    fixed = run(trace, OurPolicy())
    hours = len(trace.cards) * fixed.seconds / 3600
    yield f"| all 8 | {fixed.mean_wait:.2f} | {fixed.p95_wait:.2f} | {fixed.loads} | {hours:.1f} |"
    for jobs_per_replica in (1.0, 2.0):
        limits = ScaleLimits(least=1, most=8, jobs_per_replica=jobs_per_replica)
        policy = ScaledPolicy(limits, start_seconds=60.0)
        result = run(trace, policy)
        yield (
            f"| one card for {jobs_per_replica:g} jobs | {result.mean_wait:.2f} | {result.p95_wait:.2f} |"
            f" {result.loads} | {policy.card_seconds / 3600:.1f} |"
        )


@dataclass(slots=True)
class Costs:
    """Processor seconds of the router's calls."""

    decisions: list[float] = field(default_factory=list)
    total: float = 0.0

    def watch(self, policy: OurPolicy) -> None:
        for name in ("report", "wait", "ended", "next"):
            setattr(policy.router, name, self._timed(getattr(policy.router, name), name == "next"))

    def _timed(self, call: Callable[..., object], decides: bool) -> Callable[..., object]:
        def timed(*values: object) -> object:
            begun = time.thread_time()
            answer = call(*values)
            seconds = time.thread_time() - begun
            self.total += seconds
            if decides and answer is not None:
                self.decisions.append(seconds)
            return answer

        return timed


def thousand_rows(hardware: Hardware, jobs: int) -> Iterator[str]:
    trace = thousand(hardware, jobs)
    policy, costs = OurPolicy(), Costs()
    costs.watch(policy)
    begun = time.monotonic()
    result = run(trace, policy)
    seconds = time.monotonic() - begun
    times = sorted(costs.decisions)
    yield f"{trace.name}; every card reports each second. Processor time of this machine's Python:"
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield (
        f"| a decision | mean {1e3 * sum(times) / len(times):.3f} ms,"
        f" p99 {1e3 * times[int(0.99 * len(times))]:.3f} ms, worst of {len(times):,}"
        f" {1e3 * times[-1]:.1f} ms. Wanted: 1 ms |"
    )
    yield (
        f"| everything the router does for a job, reports included | {1e3 * costs.total / jobs:.3f} ms:"
        f" {jobs / costs.total:,.0f} jobs a second of one processor |"
    )
    yield (
        f"| the run | {result.seconds:,.0f} s of the fleet in {seconds:,.0f} s;"
        f" {result.rate:.0f} jobs a second, mean wait {result.mean_wait:.2f} s, p95"
        f" {result.p95_wait:.2f} s, {result.loads:,} loads, {result.lost} lost |"
    )


def write(lines: Sequence[str], page: Path) -> None:
    """The section of the page anew, or at its end."""
    text = page.read_text(encoding="utf-8")
    section = "\n".join(lines).rstrip() + "\n"
    pattern = re.compile(rf"^{re.escape(HEADING)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(text):
        text = pattern.sub(lambda _: section + "\n", text)
    else:
        text = text.rstrip() + "\n\n" + section
    page.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
