"""Folders of models that are not whole, or another model's: refused by name when they are loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config.catalog import ModelRow, load_catalog
from config.errors import ModelUnavailable
from models import bf16_flux_model, fp4_flux_model
from models.types import LoadOptions
from tests.tiny_models import tiny_model

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for row_id in ("flux2-klein-4b", "flux-krea-dev"):
        tiny_model(row_id, folder / row_id)
    return folder


def cut(path: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        data = (folder / path).read_bytes()
        (folder / path).write_bytes(data[: len(data) // 2])

    return change


def gone(path: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()

    return change


def says(path: str, **values: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        file = folder / path
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def is_another_model(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "another", folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (cut(f"transformer/{WEIGHTS}"), "transformer"),
        (cut("text_encoder/model.safetensors"), "text_encoder"),
        (gone("vae"), "vae"),
        (gone("tokenizer"), "tokenizer"),
        (gone(f"transformer/{WEIGHTS}"), "transformer"),
        (gone("model_index.json"), "model_index.json"),
        (says("transformer/config.json", num_single_layers=5), "transformer has no weights for single"),
        (says("transformer/config.json", joint_attention_dim=64), "context_embedder.weight"),
        (says("text_encoder/config.json", num_hidden_layers=20), "validate_layer_type"),
        (is_another_model, "class AutoencoderKL, not AutoencoderKLFlux2"),
    ],
    ids=[
        "cut-transformer", "cut-text-encoder", "no-vae", "no-tokenizer", "no-weights", "no-index",
        "more-layers", "other-shape", "fewer-layers", "another-model",
    ],
)  # fmt: skip
def test_folder_that_is_not_whole_is_refused_by_name(
    whole: Path, tmp_path: Path, change: Callable[[Path], Any], named: str
) -> None:
    shutil.copytree(whole / "flux-krea-dev", tmp_path / "another")
    folder = shutil.copytree(whole / "flux2-klein-4b", tmp_path / "klein")
    change(folder)
    row = tiny_row(folder)
    options = LoadOptions(devices=("cpu",), models_dir=tmp_path / "models", allow_download=False)
    with pytest.raises(ModelUnavailable, match=named) as caught:
        bf16_flux_model.load(row, options)
    assert "flux2-klein-4b" in caught.value.message
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (cut(f"transformer/{WEIGHTS}"), f"transformer/{WEIGHTS} is damaged or cut short"),
        (cut("text_encoder/model.safetensors"), "text_encoder/model.safetensors is damaged"),
        (says("transformer/config.json", num_single_layers=5), "no tensor 'single_transformer"),
        (is_another_model, "is of a FluxTransformer2DModel"),
    ],
    ids=["cut-transformer", "cut-text-encoder", "more-layers", "another-model"],
)
def test_no_four_bits_are_made_of_a_folder_that_is_not_whole(
    whole: Path, tmp_path: Path, change: Callable[[Path], Any], named: str
) -> None:
    shutil.copytree(whole / "flux-krea-dev", tmp_path / "another")
    folder = shutil.copytree(whole / "flux2-klein-4b", tmp_path / "klein")
    change(folder)
    options = LoadOptions(
        devices=("cpu",), models_dir=tmp_path / "models", allow_download=False, engine="nvfp4"
    )
    with pytest.raises(ModelUnavailable, match=named):
        fp4_flux_model.load(tiny_row(folder), options)
    assert not (tmp_path / "models" / "fp4" / "flux2-klein-4b").exists()


def tiny_row(folder: Path) -> ModelRow:
    row = load_catalog()["flux2-klein-4b"]
    small = {"default_width": 64, "default_height": 64, "min_size": 64, "max_sequence_length": 32}
    return row.model_copy(update={"source": str(folder), "device": "any", **small})
