"""What all of them serve: diffusers' pipeline on the weights that our service draws with, and Pillow's PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image
from pydantic import BaseModel

from config.settings import ROOT

TEXT_TOKENS = (
    64  # of the embedded model; at the pipeline's own 512 they would encode eight times as much
)


class Asked(BaseModel):
    """The body of a request, of every server the same."""

    prompt: str
    width: int = 256
    height: int = 256
    num_inference_steps: int = 4
    seed: int = 0


def load() -> Any:
    from diffusers import FluxPipeline
    from diffusers.utils.logging import disable_progress_bar

    disable_progress_bar()
    pipeline = FluxPipeline.from_pretrained(ROOT / "models" / "embedded")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, asked: Sequence[Asked]) -> list[Image.Image]:
    """Those who agree in size and steps, in one call."""
    import torch

    first = asked[0]
    return pipeline(
        [each.prompt for each in asked],
        width=first.width,
        height=first.height,
        num_inference_steps=first.num_inference_steps,
        max_sequence_length=TEXT_TOKENS,
        generator=[torch.Generator().manual_seed(each.seed) for each in asked],
    ).images


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
