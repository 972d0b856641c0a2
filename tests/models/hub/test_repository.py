"""What a repository has, and which of its files a model needs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from huggingface_hub import constants

from config.errors import ModelUnavailable
from models.hub.repository import RepoFile, Repository, ask, select
from tests import hub as stand_in
from tests.hub import COMMIT, Hub, git_sha1

REPO = "somebody/tiny-flux"


def repository(*paths: str) -> Repository:
    files = tuple(
        RepoFile(path=path, size_bytes=1, sha256=None, git_sha1=f"{number:040x}")
        for number, path in enumerate(paths)
    )
    return Repository(id=REPO, commit=COMMIT, files=files)


def chosen(index: dict | None, *paths: str, without: Sequence[str] = ()) -> list[str]:
    return sorted(file.path for file in select(repository(*paths), index, without))


def test_ask_tells_files_with_their_digests(hub: Hub) -> None:
    found = ask(REPO)
    assert found.commit == COMMIT
    index = found.file("model_index.json")
    assert index.sha256 is None
    assert index.digest == git_sha1(hub.files[f"{REPO}/model_index.json"])
    weights = found.file("vae/diffusion_pytorch_model.safetensors")
    assert weights.digest == weights.sha256 and len(weights.sha256) == 64
    assert weights.size_bytes == len(hub.files[f"{REPO}/{weights.path}"])


def test_ask_leaves_out_names_that_leave_their_folder(hub: Hub) -> None:
    for name in ("../evil.json", "vae/../../evil.json", "vae\\evil.json", "/etc/evil.json"):
        hub.files[f"{REPO}/{name}"] = b"{}"
    assert not [file.path for file in ask(REPO).files if "evil" in file.path]


@pytest.mark.parametrize("digest", ["", "../../../evil", "A" * 40, "a" * 41])
def test_ask_takes_no_checksum_that_is_none(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, digest: str
) -> None:
    """Files are named by it."""
    monkeypatch.setattr(stand_in, "git_sha1", lambda data: digest)
    with pytest.raises(ModelUnavailable, match="tells no checksum of"):
        ask(REPO)


def test_ask_for_what_does_not_exist_says_so(hub: Hub) -> None:
    with pytest.raises(ModelUnavailable, match="nobody/nothing.*does not exist.*HF_TOKEN"):
        ask("nobody/nothing")


def test_ask_for_a_gated_one_says_how_to_accept_its_licence(hub: Hub) -> None:
    hub.gated.add(REPO)
    with pytest.raises(ModelUnavailable, match="accept its licence at https://.*HF_TOKEN"):
        ask(REPO)


def test_ask_offline_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match="HF_HUB_OFFLINE"):
        ask(REPO)


def test_ask_without_a_network_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelUnavailable, match="cannot be reached.*check the network"):
        ask(REPO)


def test_select_takes_the_parts_of_the_index_once() -> None:
    index = {
        "_class_name": "FluxPipeline",
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "image_encoder": [None, None],
        "force_zeros": True,
    }
    assert chosen(
        index,
        "model_index.json",
        "flux1-dev.safetensors",
        "ae.safetensors",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
        "transformer/diffusion_pytorch_model.bin",
        "transformer/README.md",
        "tokenizer/spiece.model",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer.json",
        "tokenizer/chat_template.jinja",
        "image_encoder/model.safetensors",
        "vae_1_0/config.json",
    ) == [
        "model_index.json",
        "tokenizer/chat_template.jinja",
        "tokenizer/merges.txt",
        "tokenizer/spiece.model",
        "tokenizer/tokenizer.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
    ]


def test_select_leaves_out_parts_that_come_from_elsewhere() -> None:
    index = {"transformer": ["diffusers", "A"], "vae": ["diffusers", "B"]}
    paths = ["vae/config.json", "vae/model.safetensors", "transformer/model.safetensors"]
    assert chosen(index, *paths, without=["transformer"]) == paths[:2]


@pytest.mark.parametrize("there", ["vae/model.bin", "vae/diffusion_pytorch_model.fp16.safetensors"])
def test_select_of_a_part_without_loadable_weights_names_what_there_is(there: str) -> None:
    with pytest.raises(ModelUnavailable, match=f"vae has no safetensors.*{there[4:]}"):
        chosen({"vae": ["diffusers", "B"]}, "vae/config.json", there)


def test_select_of_one_network_takes_its_root() -> None:
    root = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert chosen(None, *root, "pytorch_model.bin", "onnx/model.json", "README.md") == root


def test_select_of_nothing_that_can_be_loaded_is_refused() -> None:
    with pytest.raises(ModelUnavailable, match="no weights at all"):
        chosen(None, "README.md")
