"""The benchmark of models that change places: it runs, and nothing of a model that left stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench import switching
from tests.models.flux1_drawing import threads

# A model that stayed would leave some 30 MiB each time; the allocator moves by a few.
SLACK_MIB = 60


@pytest.mark.timeout(900)  # each model is loaded and drawn with, one after the other
def test_models_that_left_hold_no_memory(tmp_path: Path) -> None:
    with threads(1):
        after = switching.run(tmp_path, 10)["resident_mib"]
    assert len(after) == 10
    assert after[8] - after[2] < SLACK_MIB and after[9] - after[3] < SLACK_MIB
