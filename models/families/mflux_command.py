"""The command lines of mflux, Apple Silicon's FLUX and Z-Image by MLX, and whether they can run here.

mflux is a program of its own, installed beside this project; a row's `command` is how it is called.
No torch and no MLX: the API process asks here why a model cannot run.
Source: mflux 0.18 and 0.24, `mflux/cli/parser/parsers.py`; both take these words.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from config.catalog import Catalog, ModelRow
from models.types import GenerationRequest, LoraRef

INSTALL = "install it with `uv tool install mflux` (or `pipx install mflux`)"
# Names within the folder a command runs in. mflux formats its output's name, so braces may not be in it.
PROMPT, START, PICTURE = "prompt.txt", "start.png", "picture.png"


# Weights are quantised in groups of 64, each with a scale and an offset of 16 bits.
GROUP_BITS = 0.5
# Of a row's memory_gib, what is no weights.
ACTIVATIONS_GIB = 2.0


def quantised(catalog: Catalog, bits: int) -> Catalog:
    """The catalog with the memory that mflux's models take in weights of so many bits; 0: of 16."""
    share = (bits + GROUP_BITS) / 16 if bits else 1.0
    rows = {}
    for row in catalog:
        if row.command:
            gib = {
                name: round(ACTIVATIONS_GIB + (full - ACTIVATIONS_GIB) * share, 1)
                for name, full in row.memory_gib.items()
            }
            row = row.model_copy(update={"memory_gib": gib})
        rows[row.id] = row
    return Catalog(rows)


def why_not_here(row: ModelRow) -> str | None:
    """Why this machine cannot run the row's command; None when it can."""
    if not is_apple_silicon():
        return (
            f"{row.id} needs Apple Silicon (mflux computes with MLX); this machine is "
            f"{platform.system()} on {platform.machine()}"
        )
    if find(row.command[0]) is None:
        return f"{row.id} needs the command {row.command[0]} of mflux, which is not installed: {INSTALL}"
    return None


def is_apple_silicon() -> bool:
    return (platform.system(), platform.machine()) == ("Darwin", "arm64")


def find(command: str) -> str | None:
    """The path of a command: on PATH, beside this Python, or where uv and pipx put commands.

    A service that the system starts has a short PATH.
    """
    folders = (Path(sys.executable).parent, Path.home() / ".local" / "bin")
    return shutil.which(command) or shutil.which(command, path=os.pathsep.join(map(str, folders)))


def arguments(
    row: ModelRow,
    request: GenerationRequest,
    seeds: Sequence[int],
    loras: Sequence[tuple[LoraRef, Path]],
    *,
    bits: int,
    frugal: bool,
) -> list[str]:
    """What follows the command's path for pictures that differ in nothing but their seed.

    Prompts travel in a file: they may begin with a dash, and other users can read command lines.
    """
    words = [*row.command[1:], "--prompt-file", PROMPT, "--output", PICTURE]
    words += ["--seed", *map(str, seeds)]
    words += ["--width", str(request.width), "--height", str(request.height)]
    words += ["--steps", str(request.num_inference_steps)]
    if row.guidance:
        words += ["--guidance", f"{request.guidance_scale:f}"]
    if kept := steps_kept(request):
        # mflux cuts steps times strength to a whole number, at least 1.
        strength = (kept + 0.5) / request.num_inference_steps
        words += ["--image-path", START, "--image-strength", f"{strength:f}"]
    if loras:
        words += ["--lora-paths", *(str(path) for _, path in loras)]
        words += ["--lora-scales", *(f"{ref.weight:f}" for ref, _ in loras)]
    if bits:
        words += ["--quantize", str(bits)]
    if frugal:
        words += ["--low-ram"]
    return words


def steps_kept(request: GenerationRequest) -> int:
    """Steps that are not run because the picture to begin with stands for them.

    None: the sampler begins with noise alone, and the picture is not looked at.
    """
    return request.num_inference_steps - request.steps_to_run


def picture_of(seed: int, seeds: Sequence[int]) -> str:
    """The name of a seed's picture: a command that draws several adds the seed to the name."""
    stem, suffix = PICTURE.split(".")
    return PICTURE if len(seeds) == 1 else f"{stem}_seed_{seed}.{suffix}"
