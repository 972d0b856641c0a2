"""Drawing with FLUX.1 on a real NVIDIA GPU, with the embedded model. Run with `pytest -m gpu`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from models.preview import PreviewMap
from models.types import PreviewOf
from tests.models.flux1_drawing import EMBEDDED, draw, drawing, load, pixels
from utils import gpu_manager

pytestmark = pytest.mark.gpu

GPUS, WHY_NONE = gpu_manager.list_gpus()

if not GPUS:
    pytest.skip(f"needs an NVIDIA GPU: {WHY_NONE}", allow_module_level=True)

GPU = torch.device("cuda:0")
BIG = drawing(width=512, height=512)


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Any]:
    loaded = load(EMBEDDED, tmp_path, "cuda:0")
    yield loaded
    torch.cuda.empty_cache()


def mean_difference(one: Any, other: Any) -> float:
    return float(numpy.abs(numpy.subtract(one, other, dtype=float)).mean())


def peak_bytes(model: Any, *, frugal: bool) -> int:
    draw(model, BIG, frugal=frugal)  # the first of a kind also picks its kernels
    torch.cuda.reset_peak_memory_stats(GPU)
    draw(model, BIG, frugal=frugal)
    return torch.cuda.max_memory_allocated(GPU)


def test_frugal_drawing_needs_less_memory(model: Any) -> None:
    assert peak_bytes(model, frugal=True) < 0.75 * peak_bytes(model, frugal=False)


def test_frugal_drawing_lets_the_weights_wait_in_main_memory(model: Any) -> None:
    draw(model)
    torch.cuda.synchronize()
    resident = torch.cuda.memory_allocated(GPU)
    seen: list[int] = []

    def on_step(_step: int, _steps: int, _preview: PreviewOf) -> None:
        seen.append(torch.cuda.memory_allocated(GPU))

    draw(model, on_step=on_step, frugal=True)
    transformer = sum(weight.nbytes for weight in model._image.transformer.parameters())
    assert max(seen) < resident - transformer / 2
    assert all(weight.is_cuda for weight in model._image.transformer.parameters())


def test_frugal_drawing_leaves_the_model_as_it_was(model: Any) -> None:
    before = pixels(model, BIG)
    draw(model, BIG, frugal=True)
    assert pixels(model, BIG) == before


def test_frugal_drawing_after_memory_ran_out_in_the_middle(model: Any) -> None:
    plain = pixels(model)

    def run_out(_step: int, _steps: int, _preview: PreviewOf) -> None:
        torch.empty(2**50, dtype=torch.uint8, device=GPU)

    for frugal in (False, True):
        with pytest.raises(torch.OutOfMemoryError):
            draw(model, on_step=run_out, frugal=frugal)
    draw(model, frugal=True)
    assert pixels(model) == plain


def test_offloaded_for_good_draws_the_same_with_hardly_any_weights(
    model: Any, tmp_path: Path
) -> None:
    before = draw(model)[0]
    offloaded = load(EMBEDDED, tmp_path, "cpu")
    for module in (
        offloaded._image.transformer,
        offloaded._image.vae,
        offloaded._text.text_encoder,
        offloaded._text.text_encoder_2,
    ):
        module.to(torch.bfloat16)
    offloaded.enable_offloading(GPU)
    for _ in range(2):  # the first drawing finds the order in which blocks are fetched
        assert mean_difference(draw(offloaded)[0], before) < 1
    assert mean_difference(draw(offloaded, frugal=True)[0], before) < 8


def test_preview_is_queued_without_waiting_for_the_gpu() -> None:
    weight = torch.rand(3, 16, device=GPU)
    colours = PreviewMap(weight=weight, bias=torch.zeros(3, 1, 1, device=GPU))
    latents = torch.rand(2, 16, 32, 32, device=GPU)
    sigmas = torch.tensor([1.0, 0.5], device=GPU)
    colours.after_step(latents, latents, *sigmas, (256, 256))
    torch.cuda.set_sync_debug_mode("error")
    try:
        previews = colours.after_step(latents, latents, sigmas[0], sigmas[1], (256, 256))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert Image.open(io.BytesIO(previews(1))).size == (256, 256)


def test_preview_is_the_one_a_cpu_makes(model: Any, tmp_path: Path) -> None:
    def last_preview(of: Any) -> Image.Image:
        made: list[bytes] = []
        draw(of, on_step=lambda step, steps, preview: made.append(preview(0)))
        return Image.open(io.BytesIO(made[-1]))

    on_cpu = load(EMBEDDED, tmp_path, "cpu")
    assert mean_difference(last_preview(model), last_preview(on_cpu)) < 8


def test_batch_is_close_to_alone_and_not_said_to_be_exact(model: Any) -> None:
    several = [drawing(seed=seed, negative_prompt="fog") for seed in (1, 2, 3)]
    assert model.batches_exactly is False
    for together, one in zip(draw(model, *several), several, strict=True):
        assert mean_difference(together, draw(model, one)[0]) < 4


@pytest.mark.parametrize("devices", [("cuda:0", "cuda:0"), ("cpu", "cuda:0"), ("cuda:0", "cuda:1")])
def test_split_draws_the_same_picture(model: Any, tmp_path: Path, devices: tuple[str, str]) -> None:
    if devices[1] == "cuda:1" and torch.cuda.device_count() < 2:
        pytest.skip("needs two NVIDIA GPUs")
    guided = drawing(negative_prompt="fog")
    split = load(EMBEDDED, tmp_path, *devices)
    assert mean_difference(draw(split, guided)[0], draw(model, guided)[0]) < 4
    assert mean_difference(draw(split, guided, frugal=True)[0], draw(model, guided)[0]) < 8
