"""The BF16 service as on a machine with much memory, for tiny weights of rows that are large."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from api import server  # noqa: E402 (the path comes first)
from config.catalog import ModelRow  # noqa: E402
from models.precision import profile_of  # noqa: E402
from models.types import ImageModel, LoadOptions  # noqa: E402
from utils import main_memory  # noqa: E402

ROOM_GIB = 256.0

main_memory.total_gib = main_memory.free_gib = lambda: ROOM_GIB


def load(row: ModelRow, options: LoadOptions) -> ImageModel:
    """For the worker: this module is its loader, so that there is room in it too."""
    from models import bf16_flux_model

    return bf16_flux_model.load(row, options)


if __name__ == "__main__":
    profile = replace(profile_of("bf16"), loader="tests.main_roomy:load")
    server.profile_of = lambda name: profile
    sys.exit(server.serve("bf16"))
