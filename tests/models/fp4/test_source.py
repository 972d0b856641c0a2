"""Reading 16-bit folders: in several files, with parts missing, and known again by their digests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from config.errors import ModelUnavailable
from models import fingerprint as digests
from models.fingerprint import file_sha256, fingerprint
from models.fp4.quantize import quantize_folder
from models.fp4.source import SourceWeights
from models.fp4.streaming import StreamedFlux, empty_t5, empty_transformer
from tests.models.fp4.conftest import tiny_job

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


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_tensor_with_values_that_are_no_numbers_is_named(tiny_copy: Path, value: float) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        if "x_embedder.bias" in tensors:
            tensors["x_embedder.bias"][3] = value

    change_tensors(tiny_copy / "transformer", damage)
    with pytest.raises(ModelUnavailable, match="tiny-flux/transformer: x_embedder.bias has inf"):
        StreamedFlux(tiny_copy, CPU, torch.float32)


@pytest.mark.parametrize(
    ("part", "made", "said"),
    [
        ("transformer", '"num_single_layers": 2', '"num_single_layers": 1'),
        ("text_encoder_2", '"num_layers": 2', '"num_layers": 1'),
    ],
)
def test_weights_of_more_layers_than_the_config_says_are_refused(
    tiny_copy: Path, tmp_path: Path, part: str, made: str, said: str
) -> None:
    """The first layers alone would fit, and draw something."""
    config = tiny_copy / part / "config.json"
    assert made in config.read_text()
    config.write_text(config.read_text().replace(made, said))
    with pytest.raises(ModelUnavailable, match=rf"tiny-flux/{part} holds \d+ tensors.*not of one"):
        quantize_folder(tiny_job(tiny_copy, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"FluxTransformer2DModel"'])
@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
def test_a_config_that_is_none_is_named(tiny_copy: Path, part: str, text: str) -> None:
    (tiny_copy / part / "config.json").write_text(text)
    empty = empty_transformer if part == "transformer" else empty_t5
    with pytest.raises(ModelUnavailable, match=f"tiny-flux/{part}/config.json .*fetch the model"):
        empty(tiny_copy)


@pytest.mark.parametrize("value", [None, -1, "x", 1.5, {}])
@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("transformer", "num_attention_heads"), ("transformer", "num_layers"),
        ("transformer", "in_channels"), ("text_encoder_2", "d_model"),
    ],
)  # fmt: skip
def test_a_config_of_impossible_values_is_named(
    tiny_copy: Path, part: str, key: str, value: object
) -> None:
    config = tiny_copy / part / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), key: value}))
    with pytest.raises(ModelUnavailable, match=f"tiny-flux/{part}"):
        empty = empty_transformer if part == "transformer" else empty_t5
        SourceWeights(tiny_copy, part).check_fits(empty(tiny_copy))


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
    monkeypatch.setattr(digests, "_HASH_WHOLE_BYTES", 1000)
    monkeypatch.setattr(digests, "_SAMPLE_BYTES", 64)
    before = fingerprint(tiny_copy, ["transformer"])
    assert all("sampled_sha256" in entry for entry in before.values())
    for file in (tiny_copy / "transformer").glob("*.safetensors"):
        tensors = {name: -tensor for name, tensor in load_file(file).items()}
        save_file(tensors, file)  # other weights, same size
    after = fingerprint(tiny_copy, ["transformer"])
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)
