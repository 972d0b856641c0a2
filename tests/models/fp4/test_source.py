"""Reading 16-bit folders: in several files, with parts missing, and known again by their digests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from config.errors import ModelUnavailable
from models.fp4 import source
from models.fp4.source import SourceWeights, file_sha256, fingerprint
from models.fp4.streaming import StreamedFlux

CPU = torch.device("cpu")


def test_tensors_come_from_all_files(tiny_source: Path) -> None:
    weights = SourceWeights(tiny_source, "transformer")
    whole = FluxTransformer2DModel.from_pretrained(tiny_source / "transformer").state_dict()
    assert len(weights.files) > 1 and set(weights.names) == set(whole)
    for name, tensor in whole.items():
        assert torch.equal(weights.get(name).float(), tensor.float())


def test_a_file_named_by_the_index_that_is_not_there_is_named(tiny_copy: Path) -> None:
    file = sorted((tiny_copy / "transformer").glob("*.safetensors"))[1]
    file.unlink()
    with pytest.raises(ModelUnavailable, match=file.name) as caught:
        SourceWeights(tiny_copy, "transformer")
    assert str(tiny_copy.parent) not in caught.value.message


def test_an_index_that_is_none_is_named(tiny_copy: Path) -> None:
    index = next((tiny_copy / "transformer").glob("*.index.json"))
    index.write_text(json.dumps({"metadata": {}}))
    with pytest.raises(ModelUnavailable, match=index.name):
        SourceWeights(tiny_copy, "transformer")


def test_a_truncated_file_is_named(tiny_copy: Path) -> None:
    file = sorted((tiny_copy / "transformer").glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ModelUnavailable, match=f"{file.name} is damaged"):
        SourceWeights(tiny_copy, "transformer")


def test_a_folder_without_weights_says_what_it_should_have(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    with pytest.raises(ModelUnavailable, match="0 safetensors files and no index"):
        SourceWeights(tmp_path, "transformer")


def test_weights_that_do_not_fit_the_config_are_refused_by_name(tiny_copy: Path) -> None:
    config = tiny_copy / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"in_channels": 64', '"in_channels": 32'))
    with pytest.raises(ModelUnavailable, match=r"x_embedder.weight is \(32, 64\).*\(32, 32\)"):
        StreamedFlux(tiny_copy, CPU, torch.float32)


def test_a_transformer_of_another_kind_is_refused_by_name(tiny_copy: Path) -> None:
    config = tiny_copy / "transformer" / "config.json"
    config.write_text(config.read_text().replace("FluxTransformer2D", "SanaTransformer2D"))
    with pytest.raises(ModelUnavailable, match="of a SanaTransformer2DModel"):
        StreamedFlux(tiny_copy, CPU, torch.float32)


def test_a_missing_tensor_is_named(tiny_copy: Path) -> None:
    for file in (tiny_copy / "transformer").glob("*.safetensors"):
        tensors = load_file(file)
        if tensors.pop("x_embedder.bias", None) is not None:
            save_file(tensors, file)
    with pytest.raises(ModelUnavailable, match=r"no tensor 'x_embedder\.bias'"):
        StreamedFlux(tiny_copy, CPU, torch.float32)


def test_fingerprint_knows_one_changed_byte(tiny_copy: Path) -> None:
    before = fingerprint(tiny_copy, ["transformer", "text_encoder_2"])
    assert fingerprint(tiny_copy, ["transformer", "text_encoder_2"]) == before
    file = sorted((tiny_copy / "transformer").glob("*.safetensors"))[0]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert fingerprint(tiny_copy, ["transformer", "text_encoder_2"]) != before


def test_fingerprint_takes_the_hubs_own_digest(tiny_source: Path, tmp_path: Path) -> None:
    """The Hub's cache names a file by its SHA-256 and links to it; 24 GB need not be read for it."""
    real = sorted((tiny_source / "transformer").glob("*.safetensors"))[0]
    blob = tmp_path / file_sha256(real)
    blob.write_bytes(b"not even the weights")
    (tmp_path / "snapshot" / "transformer").mkdir(parents=True)
    (tmp_path / "snapshot" / "transformer" / "model.safetensors").symlink_to(blob)
    (entry,) = fingerprint(tmp_path / "snapshot", ["transformer"]).values()
    assert entry["sha256"] == file_sha256(real)


def test_fingerprint_samples_large_files(tiny_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_HASH_WHOLE_BYTES", 1000)
    monkeypatch.setattr(source, "_SAMPLE_BYTES", 64)
    before = fingerprint(tiny_copy, ["transformer"])
    assert all("sampled_sha256" in entry for entry in before.values())
    for file in (tiny_copy / "transformer").glob("*.safetensors"):
        tensors = {name: -tensor for name, tensor in load_file(file).items()}
        save_file(tensors, file)  # other weights, same size
    after = fingerprint(tiny_copy, ["transformer"])
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)
