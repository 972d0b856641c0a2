"""The BF16 service with another loader: TEST_ENGINE names a function of `tests/engines.py`."""

import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from api import server  # noqa: E402 (the path comes first)
from models.precision import profile_of  # noqa: E402

if __name__ == "__main__":
    loader = f"tests.engines:{os.environ['TEST_ENGINE']}"
    server.profile_of = lambda name: replace(profile_of(name), loader=loader)
    sys.exit(server.serve("bf16"))
