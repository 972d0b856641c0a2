"""The BF16 service as on a Mac with much memory: mflux's models run here, by whatever commands lie on PATH."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from api import server  # noqa: E402 (the path comes first)
from config.catalog import ModelRow  # noqa: E402
from models.families import mflux, mflux_command  # noqa: E402
from models.precision import profile_of  # noqa: E402
from models.types import ImageModel, LoadOptions  # noqa: E402
from utils import main_memory  # noqa: E402

PROFILE = profile_of("bf16")


def load(row: ModelRow, options: LoadOptions) -> ImageModel:
    """For the worker: this module is its loader."""
    return mflux.load(row, options, PROFILE)


mflux_command.is_apple_silicon = lambda: True
main_memory.total_gib = main_memory.free_gib = lambda: 256.0

if __name__ == "__main__":
    server.profile_of = lambda name: replace(PROFILE, loader="tests.main_mflux:load")
    sys.exit(server.serve("bf16"))
