"""A seed is the same noise for every type of numbers and every version of PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.tiny_drawing import load_tiny


@pytest.mark.parametrize(
    "row_id", ["flux-schnell", "flux-kontext-dev", "flux2-klein-4b", "z-image-turbo"]
)
def test_noise_is_drawn_in_full_whatever_the_weights_are(
    row_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = load_tiny(row_id, tmp_path)
    drawn = []

    def randn(*args: Any, **options: Any) -> torch.Tensor:
        drawn.append(options.get("dtype") or torch.get_default_dtype())
        return original(*args, **options)

    original = torch.randn
    monkeypatch.setattr(torch, "randn", randn)
    tiny.model._noise([tiny.drawing()], torch.bfloat16)
    assert drawn == [torch.float32]
