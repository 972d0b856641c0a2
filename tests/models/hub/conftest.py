"""A stand-in of the Hub with a small pipeline on it, for what is fetched in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator

import huggingface_hub
import pytest
from huggingface_hub import constants

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
def hub(_serving: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """With the embedded model's folder as a repository, and beside it what nobody needs."""
    monkeypatch.setattr(constants, "ENDPOINT", _serving.url)
    template = _serving.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for path in sorted(EMBEDDED.rglob("*")):
        if path.is_file() and path.parent != EMBEDDED:
            _serving.files[f"{REPO}/{path.relative_to(EMBEDDED)}"] = path.read_bytes()
    index = (EMBEDDED / "model_index.json").read_text(encoding="utf-8")
    _serving.files[f"{REPO}/model_index.json"] = index.encode()
    for name in SURPLUS:
        _serving.files[f"{REPO}/{name}"] = b"x" * 100
    try:
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


def parts() -> list[str]:
    index = json.loads((EMBEDDED / "model_index.json").read_text(encoding="utf-8"))
    return [name for name, kind in index.items() if isinstance(kind, list)]
