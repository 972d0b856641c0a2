"""Calibration: prompts, and the latents that a model passes through while it draws them.

A layer is fitted to the inputs it really gets. They come from drawing the prompts with the 16-bit
model, block by block (`streaming.py`), over the steps of its own sampler; what is kept are the prompts'
embeddings and the latents before each step, some 100 KB a prompt and step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from config.catalog import ModelRow
from models.fp4.checkpoint import write_tensors
from models.fp4.streaming import Batch, Positions, StreamedFlux

MAX_STEPS = 8  # of the sampler; models of 28 steps are calibrated on a coarser path of 8
HELD_OUT = 8  # every eighth prompt is measured and not fitted to
_TOKENS_AT_ONCE = 4096
SEED = 20_000_000


@dataclass(frozen=True, slots=True)
class DrawnPaths:
    """The drawn paths of P prompts over S steps."""

    prompt: torch.Tensor  # (P, text tokens, C)
    pooled: torch.Tensor  # (P, C)
    latents: torch.Tensor  # (S, P, image tokens, channels) before each step
    times: torch.Tensor  # (S,) 0 to 1


def draw_paths(
    flux: StreamedFlux,
    row: ModelRow,
    folder: Path,
    prompt: torch.Tensor,
    pooled: torch.Tensor,
    on_progress: Callable[[float], None],
) -> DrawnPaths:
    """Draw the prompts whose embeddings are given; prompt i from the seed `SEED + i`."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    steps = min(row.num_inference_steps, MAX_STEPS)
    latents = flux.noise(row, [SEED + number for number in range(len(prompt))])
    where = flux.positions(row, prompt.shape[1])
    settings = scheduler.config
    shift = flux.shift(settings, latents.shape[1], steps)
    if settings.get("use_flow_sigmas"):
        scheduler.set_timesteps(steps, mu=shift)
    else:
        scheduler.set_timesteps(steps, sigmas=numpy.linspace(1.0, 1 / steps, steps), mu=shift)
    sigmas = scheduler.sigmas  # (S + 1,)
    times = scheduler.timesteps / 1000
    seen = []
    for step in range(steps):
        seen.append(latents)
        batches = _embedded(flux, row, latents, float(times[step]), prompt, pooled, 0)
        run = _Run(flux, where, lambda done, step=step: on_progress((step + done) / steps))
        flux.through_blocks(batches, where, run)
        velocity = torch.cat([flux.finish(batch) for batch in batches])
        latents = latents + (sigmas[step + 1] - sigmas[step]) * velocity
    return DrawnPaths(prompt, pooled, torch.stack(seen), times)


def samples(flux: StreamedFlux, row: ModelRow, path: DrawnPaths) -> list[Batch]:
    """Every prompt at every step before the first block; every eighth prompt is held out."""
    batches: list[Batch] = []
    for latents, time in zip(path.latents, path.times, strict=True):
        args = latents, float(time), path.prompt, path.pooled
        batches += _embedded(flux, row, *args, HELD_OUT)
    return batches


def save(path: DrawnPaths, file: Path) -> None:
    write_tensors(
        file,
        {
            "prompt": path.prompt,
            "pooled": path.pooled,
            "latents": path.latents,
            "times": path.times,
        },
    )


def load(file: Path) -> DrawnPaths:
    tensors = load_file(file)
    return DrawnPaths(*(tensors[name] for name in ("prompt", "pooled", "latents", "times")))


class _Run:
    """A visit that only runs the blocks."""

    def __init__(
        self, flux: StreamedFlux, where: Positions, on_progress: Callable[[float], None]
    ) -> None:
        self._flux, self._where, self._on_progress = flux, where, on_progress
        self._done = 0

    def __call__(self, _name: str, block: torch.nn.Module, batches: list[Batch]) -> None:
        for batch in batches:
            self._flux.step(block, batch, self._where)
        self._done += 1
        self._on_progress(self._done / len(self._flux.block_names))


def _embedded(
    flux: StreamedFlux,
    row: ModelRow,
    latents: torch.Tensor,
    time: float,
    prompt: torch.Tensor,
    pooled: torch.Tensor,
    held_out_every: int,
) -> list[Batch]:
    """Batches in the order of the prompts; with `held_out_every`, held-out ones apart and last."""
    everyone = range(len(prompt))
    held = [i for i in everyone if held_out_every and i % held_out_every == held_out_every - 1]
    fitted = [i for i in everyone if i not in held]
    at_once = max(1, _TOKENS_AT_ONCE // (latents.shape[1] + prompt.shape[1]))
    batches = []
    for group, held_out in ((fitted, False), (held, True)):
        for start in range(0, len(group), at_once):
            part = group[start : start + at_once]
            batches.append(
                flux.embed(
                    latents[part],
                    time,
                    prompt[part],
                    pooled[part],
                    row.guidance_scale,
                    held_out=held_out,
                )
            )
    return batches


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises ValueError for too few prompts to fit to some and measure another."""
    if len(prompts) < HELD_OUT:
        raise ValueError(
            f"{len(prompts)} calibration prompts are too few; give at least {HELD_OUT}"
        )
