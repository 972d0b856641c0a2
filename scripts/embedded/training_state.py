"""The state of one training stage on disk, replaced whole so that a kill never leaves half of it."""

import os
from pathlib import Path
from typing import Any

import torch


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`; the file holds either the former or the new state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """Return the state at `path`, or None where there is none yet."""
    if not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)


def step_generator(seed: int, stage: str, step: int) -> torch.Generator:
    """Return a CPU generator that depends on nothing but its arguments.

    Every training step draws from its own, so that a resumed run draws what an uninterrupted one
    would have drawn.
    """
    number = seed
    for character in f"{stage}/{step}":
        number = (number * 1_000_003 + ord(character)) % (2**63)
    return torch.Generator().manual_seed(number)
