"""A stand-in of the Hub with a small pipeline on it, for what is fetched in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from config.settings import ROOT
from tests import hub as stand_in
from tests.hub import Hub

REPO = "somebody/tiny-flux"
EMBEDDED = ROOT / "models" / "embedded"


@pytest.fixture(scope="session")
def _serving() -> Iterator[Hub]:
    with stand_in.serving() as hub:
        yield hub


@pytest.fixture
def hub(_serving: Hub) -> Iterator[Hub]:
    """With the embedded model's folder as a repository, and beside it what nobody needs."""
    stand_in.put_folder(_serving, REPO, EMBEDDED)
    for name in SURPLUS:
        _serving.files[f"{REPO}/{name}"] = b"x" * 100
    try:
        with stand_in.asked_by_this_process(_serving):
            yield _serving
    finally:
        _serving.forget()


SURPLUS = (
    "flux1-tiny.safetensors",
    "README.md",
    "model_index.fp16.json",
    "transformer/diffusion_pytorch_model.bin",
    "transformer/diffusion_pytorch_model.fp16.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
    "text_encoder/model.onnx",
    "text_encoder/openvino_model.bin",
    "text_encoder/flax_model.msgpack",
    "text_encoder/pytorch_model.bin.index.json",
    "text_encoder/onnx/config.json",
    "vae/model.ckpt",
    "vae_2/diffusion_pytorch_model.safetensors",
    "remote_code.py",
    "transformer/modeling.py",
)
