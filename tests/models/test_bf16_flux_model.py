"""The BF16 loader and the pipeline under it: what is loaded, what is missing, how a drawing is left."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from config.catalog import ModelRow, load_catalog
from config.errors import ModelUnavailable
from config.settings import ROOT
from models import bf16_flux_model
from models.types import Cancelled, GenerationRequest, OutputFormat, Stage

CPU = torch.device("cpu")
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


def load(row: ModelRow, models_dir: Path) -> Any:
    return bf16_flux_model.load(row, device=CPU, models_dir=models_dir, allow_download=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a machine that is shared, threads that wait for others cost most
    yield load(EMBEDDED, tmp_path_factory.mktemp("models"))
    torch.set_num_threads(threads)


def draw(
    model: Any,
    request: GenerationRequest = REQUEST,
    *,
    seed: int = 1,
    on_stage: Callable[[Stage], None] = lambda _stage: None,
    on_step: Callable[[int, int], None] = lambda _step, _steps: None,
) -> tuple[Any, dict[str, float]]:
    return model.generate(request, seed=seed, on_stage=on_stage, on_step=on_step)


def test_load_computes_in_fp32_on_a_cpu_and_bf16_on_a_gpu() -> None:
    assert bf16_flux_model.compute_dtype(CPU) is torch.float32
    assert bf16_flux_model.compute_dtype(torch.device("cuda")) is torch.bfloat16


def test_load_writes_nothing_for_a_model_that_ships(tmp_path: Path) -> None:
    load(EMBEDDED, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_load_of_a_model_that_is_not_here_says_what_to_do(tmp_path: Path) -> None:
    row = EMBEDDED.model_copy(update={"id": "other", "source": "nobody/nothing"})
    with pytest.raises(ModelUnavailable, match="other.*FLUX_ALLOW_DOWNLOAD") as caught:
        load(row, tmp_path)
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(
    "part", ["model_index.json", "transformer/diffusion_pytorch_model.safetensors", "vae"]
)
def test_load_of_a_model_with_a_part_missing_tells_no_path(tmp_path: Path, part: str) -> None:
    """The message goes to clients."""
    folder = tmp_path / "model"
    shutil.copytree(ROOT / EMBEDDED.source, folder)
    missing = folder / part
    shutil.rmtree(missing) if missing.is_dir() else missing.unlink()
    row = EMBEDDED.model_copy(update={"source": str(folder)})
    with pytest.raises(ModelUnavailable, match="embedded") as caught:
        load(row, tmp_path)
    assert str(tmp_path) not in caught.value.message.replace(row.source, "")


def test_load_of_damaged_weights_is_no_surprise(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ROOT / EMBEDDED.source, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelUnavailable, match="embedded"):
        load(EMBEDDED.model_copy(update={"source": str(folder)}), tmp_path)


def test_load_takes_no_pickle(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ROOT / EMBEDDED.source, folder)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({}, weights.with_suffix(".bin"))
    with pytest.raises(ModelUnavailable):
        load(EMBEDDED.model_copy(update={"source": str(folder)}), tmp_path)


def test_generate_draws_the_size_asked_for(model: Any) -> None:
    image, ms = draw(model)
    assert (image.size, image.mode) == ((128, 160), "RGB")
    assert set(ms) == {"encode", "denoise", "decode"} and all(value > 0 for value in ms.values())


def test_generate_reports_stages_in_order_and_every_step(model: Any) -> None:
    seen: list[Any] = []
    draw(model, on_stage=seen.append, on_step=lambda step, steps: seen.append((step, steps)))
    assert seen == [
        Stage.ENCODING, Stage.DENOISING, (1, 3), (2, 3), (3, 3), Stage.DECODING,
    ]  # fmt: skip


def test_generate_leaves_between_two_steps_and_draws_again(model: Any) -> None:
    whole = draw(model)[0].tobytes()
    steps: list[int] = []

    def leave(step: int, _steps: int) -> None:
        steps.append(step)
        if step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        draw(model, on_step=leave)
    assert steps == [1, 2]
    assert draw(model)[0].tobytes() == whole


@pytest.mark.parametrize("stage", [Stage.ENCODING, Stage.DENOISING, Stage.DECODING])
def test_generate_leaves_at_any_stage(model: Any, stage: Stage) -> None:
    def leave(begun: Stage) -> None:
        if begun is stage:
            raise Cancelled

    with pytest.raises(Cancelled):
        draw(model, on_stage=leave)


def test_generate_after_a_guided_drawing_is_unguided_again(model: Any) -> None:
    """Nothing of a request may stay in the pipeline."""
    plain = draw(model)[0].tobytes()
    guided = draw(model, replace(REQUEST, negative_prompt="hills", true_cfg_scale=5.0))[0].tobytes()
    assert guided != plain
    assert draw(model)[0].tobytes() == plain


def test_generate_with_largest_and_smallest_seed(model: Any) -> None:
    pictures = {draw(model, seed=seed)[0].tobytes() for seed in (0, 2**53 - 1)}
    assert len(pictures) == 2
