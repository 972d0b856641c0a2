"""A FLUX.1 folder as the Hub has them, small and random, with its weights in several files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from config.catalog import ModelRow, load_catalog
from config.settings import ROOT
from models.fingerprint import file_sha256
from models.fp4 import lowrank
from models.fp4.quantize import Job, quantize_folder
from models.types import LoadOptions

EMBEDDED = load_catalog()["embedded"]
TINY = EMBEDDED.model_copy(
    update={
        "id": "tiny",
        "source": "somebody/tiny-flux",
        "default_width": 128,
        "default_height": 128,
        "num_inference_steps": 2,
        "max_sequence_length": 16,
    }
)
PROMPTS = tuple(f"{number} red balloons at sea" for number in range(8))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Equal sums, and on a machine that is shared threads that wait for others cost most."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def quick_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of fitting: for tests that look at files and not at quality."""
    monkeypatch.setattr(lowrank, "ROUNDS", 1)


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BF16 diffusers folder; the transformer lies in several safetensors files with an index."""
    folder = tmp_path_factory.mktemp("hub") / "tiny-flux"
    shutil.copytree(ROOT / EMBEDDED.source, folder)
    put_tiny_transformer(folder / "transformer", max_shard_size="100KB")
    index = json.loads(next((folder / "transformer").glob("*.index.json")).read_text())
    assert len(set(index["weight_map"].values())) > 1
    return folder


def put_tiny_transformer(folder: Path, **how: Any) -> None:
    """Random weights of FLUX.1's architecture in the place of those in `folder`."""
    shutil.rmtree(folder)
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=128,
        pooled_projection_dim=96,
        axes_dims_rope=(4, 6, 6),
    )
    for parameter in transformer.parameters():
        parameter.data = parameter.data.bfloat16()
    transformer.save_pretrained(folder, **how)


@pytest.fixture(scope="session")
def tiny_fp4(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its FP4 folder, T5 in four bits too; a test that changes it takes a copy."""
    out = tmp_path_factory.mktemp("fp4") / "tiny-fp4"
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setattr(lowrank, "ROUNDS", 1)
        quantize_folder(tiny_job(tiny_source, out))
    return out


def tiny_job(source: Path, out: Path, **changes: Any) -> Job:
    settings = {"rank": 4, "text_encoder_from_bytes": 0, **changes}
    return Job(source=source, out=out, row=TINY, prompts=PROMPTS, **settings)


@pytest.fixture
def tiny_copy(tiny_source: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may damage."""
    return shutil.copytree(tiny_source, tmp_path / "tiny-flux")


@pytest.fixture
def options(tmp_path: Path) -> LoadOptions:
    return LoadOptions(devices=("cpu",), models_dir=tmp_path / "models", allow_download=False)


@pytest.fixture
def in_hub_cache(tiny_source: Path, options: LoadOptions) -> Callable[[ModelRow], Path]:
    """Put the folder where huggingface_hub keeps snapshots: links to files named by their SHA-256."""

    def put(row: ModelRow) -> Path:
        root = options.models_dir / f"models--{row.source.replace('/', '--')}"
        snapshot = root / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(snapshot.name)
        for file in tiny_source.rglob("*"):
            if file.is_file():
                blob = root / "blobs" / file_sha256(file)
                blob.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, blob)
                link = snapshot / file.relative_to(tiny_source)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(blob)
        return snapshot

    return put
