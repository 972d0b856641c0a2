"""Kontext, Fill and FLUX.2 Klein on a real NVIDIA GPU, on tiny random weights: every part is where it must be.

Run with `pytest -m gpu`. The pictures mean nothing; that weights which wait in main memory come in time, and
that references, masks and four bits find their devices, is the same at any size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from models import bf16_flux_model, fp4_flux_model
from models.fp4 import lowrank, nvfp4_engine, prompts
from models.parts import Parts
from models.types import LoadOptions
from tests.models.tiny_drawing import Tiny, gradient
from tests.tiny_models import tiny_model
from utils import gpu_manager

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

GPUS, WHY_NONE = gpu_manager.list_gpus()

if not GPUS:
    pytest.skip(f"needs an NVIDIA GPU: {WHY_NONE}", allow_module_level=True)

CUDA = "cuda:0"
ROWS = ("flux-kontext-dev", "flux-fill-dev", "flux2-klein-4b", "flux2-klein-base-4b")


def load(row_id: str, folder: Path, loader: Any = bf16_flux_model, **how: Any) -> Tiny:
    row = tiny_model(row_id, folder / "source")
    options = LoadOptions(devices=(CUDA,), models_dir=folder, allow_download=False, **how)
    return Tiny(row, folder / "source", loader.load(row, options))


def picture(tiny: Tiny) -> numpy.ndarray:
    """With everything that the model takes."""
    brought: dict[str, Any] = {"num_inference_steps": 1}
    if "mask" in tiny.row.ways:
        brought |= {"image": gradient(), "mask": Image.new("L", (96, 64), 255)}
    if "references" in tiny.row.ways:
        brought["references"] = (gradient(turned=True),)
    return numpy.array(tiny.draw(**brought)).astype(int)


@pytest.mark.parametrize("row_id", ROWS)
def test_family_draws_with_all_it_takes_and_the_same_again(tmp_path: Path, row_id: str) -> None:
    tiny = load(row_id, tmp_path)
    assert tiny.model._image.transformer.device.type == "cuda"
    assert (picture(tiny) == picture(tiny)).all()


@pytest.mark.parametrize("row_id", ROWS)
def test_weights_that_wait_in_main_memory_draw_the_same(tmp_path: Path, row_id: str) -> None:
    stays = picture(load(row_id, tmp_path / "stays"))
    waits = load(row_id, tmp_path / "waits", offload=True)
    assert numpy.abs(picture(waits) - stays).max() <= 2


@pytest.mark.parametrize("row_id", ROWS)
def test_frugal_draws_and_then_as_before(tmp_path: Path, row_id: str) -> None:
    tiny = load(row_id, tmp_path)
    before = picture(tiny)
    begun = {"image": gradient(), "mask": Image.new("L", (96, 64), 255)}
    drawing = tiny.drawing(**(begun if tiny.row.requires else {}))
    tiny.model.generate(
        [drawing], on_stage=lambda stage: None, on_step=lambda *step: None, frugal=True
    )
    assert (picture(tiny) == before).all()


@pytest.mark.parametrize("row_id", ROWS)
def test_four_bits_draw_with_text_encoders_in_main_memory(
    tmp_path: Path, row_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowrank, "ROUNDS", 1)
    monkeypatch.setattr(prompts, "PROMPTS", tuple(f"{number} cats" for number in range(8)))
    monkeypatch.setattr(nvfp4_engine, "LARGE_TRANSFORMER_BYTES", 0)
    tiny = load(row_id, tmp_path, fp4_flux_model, engine="nvfp4")
    assert (picture(tiny) == picture(tiny)).all()
    _, encoders, _ = tiny.model._weighty()
    assert {parameter.device.type for each in encoders for parameter in each.parameters()} == {
        "cpu"
    }


def test_models_share_their_parts_on_the_gpu(tmp_path: Path) -> None:
    parts = Parts()
    one = load("flux2-klein-4b", tmp_path / "one", parts=parts)
    held = torch.cuda.memory_allocated(CUDA)
    other = load("flux2-klein-4b", tmp_path / "other", parts=parts)
    encoders = [tiny.model._text.text_encoder for tiny in (one, other)]
    tensors = [{p.data_ptr() for p in encoder.parameters()} for encoder in encoders]
    assert tensors[0] == tensors[1]
    denoiser = sum(p.nbytes for p in other.model._image.transformer.parameters())
    assert torch.cuda.memory_allocated(CUDA) - held < 2 * denoiser
    assert (picture(one) == picture(other)).all()
