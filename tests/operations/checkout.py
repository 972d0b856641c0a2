"""A copy of the checkout in a folder of its own, to start and break things in."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from config.settings import ROOT

_NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv*", ".env", "data", "generated_images", "uploads", "logs", "models_cache",
    ".*_cache", ".hypothesis", "node_modules", "test_*.py", "*-pytest-*.pyc",
    "*.pyc.*",  # while it is written, by another process that compiles; gone in a moment
)  # fmt: skip


def copy_checkout(to: Path, *, models: bool = False) -> Path:
    """The working tree without what it wrote, and without tests. `.venv` is the one that runs the tests.

    Making an environment has tests of its own, so scripts/setup_env.sh does nothing in the copy.
    """
    shutil.copytree(ROOT, to, ignore=_NOT_COPIED if models else _without_weights)
    (to / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    (to / "scripts" / "setup_env.sh").write_text("#!/bin/sh\n")
    return to


def _without_weights(folder: str, names: list[str]) -> set[str]:
    ignored = _NOT_COPIED(folder, names)
    return ignored | {name for name in names if name.endswith(".safetensors")}


def clean_environment(**extra: str | int) -> dict[str, str]:
    """This process's environment without settings of the project, and `extra`."""
    ours = ("FLUX_", "BF16_PORT", "FP4_PORT", "PAGE_PORT")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return {**kept, **{key: str(value) for key, value in extra.items()}}


def set_loader(checkout: Path, loader: str | None, precision: str = "fp4") -> None:
    """Give a profile another loader, or none, whatever it has in this version."""
    with open(checkout / "models" / "precision.py", "a") as file:
        file.write(
            "import dataclasses\n"
            f"_PROFILES[{precision!r}] = dataclasses.replace(\n"
            f'    _PROFILES[{precision!r}], loader={loader!r}, not_built="FP4 is not built yet"\n'
            ")\n"
        )
