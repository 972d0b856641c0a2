"""What the tests of FLUX.1 share: the embedded model, a request, and a way to draw it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from config.catalog import ModelRow, load_catalog
from models import bf16_flux_model
from models.types import (
    Drawing,
    GenerationRequest,
    LoadOptions,
    OutputFormat,
    PreviewOf,
    Stage,
)

EMBEDDED = load_catalog()["embedded"]
REQUEST = GenerationRequest(
    prompt="a red balloon",
    negative_prompt=None,
    model="embedded",
    backend="flux",
    width=128,
    height=160,
    num_inference_steps=3,
    guidance_scale=0.0,
    true_cfg_scale=2.0,
    seed=1,
    num_images=1,
    output_format=OutputFormat.PNG,
    output_quality=95,
    tags=(),
)


def load(row: ModelRow, models_dir: Path, *devices: str) -> Any:
    options = LoadOptions(devices=devices or ("cpu",), models_dir=models_dir, allow_download=False)
    return bf16_flux_model.load(row, options)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """On a machine that is shared, threads that wait for others cost most: 1 is the quickest."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def drawing(prompt: str = REQUEST.prompt, *, seed: int = 1, **changes: Any) -> Drawing:
    return Drawing(request=replace(REQUEST, prompt=prompt, **changes), seed=seed)


def draw(
    model: Any,
    *drawings: Drawing,
    on_stage: Callable[[Stage], None] = lambda stage: None,
    on_step: Callable[[int, int, PreviewOf], None] = lambda step, steps, preview: None,
    frugal: bool = False,
) -> list[Any]:
    """The pictures of `drawings`, or of the plain request."""
    several: Sequence[Drawing] = drawings or (drawing(),)
    images, _ = model.generate(several, on_stage=on_stage, on_step=on_step, frugal=frugal)
    return images


def pixels(model: Any, *drawings: Drawing, **options: Any) -> list[bytes]:
    return [image.tobytes() for image in draw(model, *drawings, **options)]
