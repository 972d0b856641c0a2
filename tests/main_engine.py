"""The BF16 service, or that of TEST_PRECISION, with another loader: TEST_ENGINE names a function of
`tests/engines.py`.

TEST_RESTART_SECONDS is the pause after a worker's first death, where a test needs many deaths.
With TEST_ANYWHERE the stand-in draws for every local model of the catalog, whatever machine that needs.
"""

import gc
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
gc.disable()  # a twentieth of a start, of which tests make hundreds, is looking for garbage among imports

from api import server  # noqa: E402 (the path comes first)
from models.precision import profile_of  # noqa: E402
from utils.requests import RequestResolver  # noqa: E402
from utils.worker import parent  # noqa: E402

gc.enable()

if __name__ == "__main__":
    loader = f"tests.engines:{os.environ['TEST_ENGINE']}"
    server.profile_of = lambda name: replace(profile_of(name), loader=loader)
    if os.environ.get("TEST_ANYWHERE"):
        RequestResolver.why_not_on = lambda self, slot, row: None
        RequestResolver.why_no_files = lambda self, row: None
    if seconds := os.environ.get("TEST_RESTART_SECONDS"):
        parent.RESTART_DELAY_SECONDS = float(seconds)
    sys.exit(server.serve(os.environ.get("TEST_PRECISION", "bf16")))
