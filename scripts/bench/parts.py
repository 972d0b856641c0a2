"""The parts that `python -m scripts.bench` runs: a row for each, which runs alone too as `python -m scripts.bench.<module>`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from config.settings import ROOT
from scripts.bench import needs, rivals
from scripts.bench.needs import Need

WEIGHTS = "WEIGHTS"  # stands for the folder of --weights
RIVALS = "RIVALS"  # for that of the rivals' packages


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    name: str
    about: str
    module: str
    arguments: Sequence[str] = ()
    quick: Sequence[str] | None = (
        None  # the arguments of a look that takes seconds; None: as they are
    )
    needs: Sequence[Need] = ()
    writes: Sequence[str] = ()  # what --write adds for a part that writes its figures itself
    weights: str = ""  # the folder within --weights that it reads
    deadline_seconds: int
    by_name: str = ""  # why it runs only when it is named

    def command(
        self, weights: Path | None = None, *, quick: bool = False, write: bool = False
    ) -> list[str]:
        arguments = self.quick if quick and self.quick is not None else self.arguments
        arguments = [*arguments, *(self.writes if write else ())]
        folders = {WEIGHTS: str(weights), RIVALS: str(rivals.site().relative_to(ROOT))}
        return ["-m", self.module, *(folders.get(each, each) for each in arguments)]

    def why_not(self, weights: Path | None) -> str | None:
        """What is missing, or None."""
        looks = list(self.needs)
        if self.weights:
            looks.append(functools.partial(needs.weights, weights, self.weights))
        return next(filter(None, (look() for look in looks)), None)


def _module(name: str) -> str:
    return f"scripts.bench.{name}"


QUALITY = "says what pictures are like, not how fast"
SIMULATED = "a simulation, whose figures change with its code alone"
PARTS: Mapping[str, Part] = {
    part.name: part
    for part in (
        Part(
            name="side_by_side", module=_module("side_by_side"), deadline_seconds=900,
            about="the service beside diffusers alone", arguments=("--rounds", "3"),
            quick=("--rounds", "1", "--only", "one"),
        ),
        Part(
            name="servers", module=_module("servers"), deadline_seconds=1800,
            about="the service beside LitServe, Ray Serve and diffusers' own servers",
            quick=("--rounds", "1", "--clients", "1", "--pictures", "2", "--only", "diffusers"),
        ),
        Part(
            name="submits", module=_module("submits"), deadline_seconds=300,
            about="submits beside Huey with SQLite and Celery with Redis",
            needs=(needs.program("redis-server", "redis-server"), needs.rivals_of("submits")),
            quick=("--jobs", "400"),
        ),
        Part(
            name="queue", module=_module("queue"), deadline_seconds=240,
            about="submits beside an empty route, a long line, listeners, health under load",
            quick=("--jobs", "400"),
        ),
        Part(
            name="png", module=_module("png"), deadline_seconds=120,
            about="the PNG beside Pillow's", quick=("--rounds", "1", "--side", "256"),
        ),
        Part(
            name="service", module=_module("service"), deadline_seconds=180,
            about="start, and what a picture costs beside its drawing", quick=("--images", "3"),
        ),
        Part(
            name="memory", module=_module("memory"), deadline_seconds=900,
            about="resident memory of every process", needs=(needs.linux,),
            quick=("--pictures", "2", "--only", "page,cleanup"),
        ),
        Part(
            name="costs", module=_module("costs"), deadline_seconds=900,
            about="how time and memory grow, as plots in docs/costs", needs=(
                needs.linux, needs.module("matplotlib", "scripts/setup_env.sh --dev does it"),
            ),
            writes=("--write",), quick=("--quick",),
        ),
        Part(
            name="switching", module=_module("switching"), deadline_seconds=240,
            about="a worker whose models change places", quick=("--switches", "4"),
        ),
        Part(
            name="year", module=_module("year"), deadline_seconds=900,
            about="a year of jobs in one database", quick=("--jobs", "2000", "--files", "200"),
        ),
        Part(
            name="page", module=_module("page"), deadline_seconds=240, needs=(needs.chromium, needs.module("playwright", "scripts/setup_env.sh --dev does it")),
            about="the page in Chromium: until it can be used, frames", quick=("--nodes", "8", "--frames", "10"),
        ),
        Part(
            name="gpu_service", module=_module("gpu_service"), deadline_seconds=3600,
            about="FLUX.1 [schnell] through HTTP on this GPU, memory and energy", weights="bf16",
            needs=(needs.gpu,), arguments=(WEIGHTS, "--size", "512,768,1024"), quick=(WEIGHTS, "--images", "2", "--size", "512"),
        ),
        Part(
            name="gpu_parts", module=_module("gpu_parts"), deadline_seconds=1800,
            about="the parts of FLUX.1 [schnell] on this GPU", needs=(needs.gpu,),
            quick=("--only", "vae,text", "--size", "512"),
        ),
        Part(
            name="loras", module=_module("loras"), deadline_seconds=1200, by_name=QUALITY,
            about="LoRAs by both precisions, and what a change leaves and costs",
            quick=("--prompts", "2", "--requests", "6"),
        ),
        Part(
            name="fp4_quality", module=_module("fp4_quality"), deadline_seconds=1800, by_name=QUALITY,
            about="pictures of every way of four bits", needs=(needs.rivals_of("fp4_quality"),),
            arguments=("--bitsandbytes", RIVALS),
            quick=("--bitsandbytes", RIVALS, "--prompts", "2"),
        ),
        Part(
            name="fp4_fits", module=_module("fp4_fits"), deadline_seconds=1800, by_name=QUALITY,
            about="ways to fit the low-rank branch", arguments=("--rank", "16"),
        ),
        Part(
            name="fleet", module=_module("fleet"), deadline_seconds=3600, by_name=SIMULATED, writes=("--write",),
            about="the fleet's router beside others'",
        ),
    )
}  # fmt: skip
