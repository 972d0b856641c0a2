"""FP4 folders that are not right: the error names the file and says what to do, and nothing is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from config.errors import ModelUnavailable
from models.fingerprint import file_sha256
from models.fp4.checkpoint import MANIFEST, Manifest, load_component
from models.fp4.linear import fp4_layers

BLOCK = "transformer_blocks.0.safetensors"
TO_Q = "transformer_blocks.0.attn.to_q"


@pytest.fixture
def folder(tiny_fp4: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_fp4, tmp_path / "tiny-fp4")


def load(folder: Path) -> torch.nn.Module:
    with init_empty_weights():
        config = FluxTransformer2DModel.load_config(folder / "transformer")
        empty = FluxTransformer2DModel.from_config(config)
    return load_component(folder, Manifest.read(folder), "transformer", empty, torch.float32)


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    (folder / MANIFEST).write_text(json.dumps(data))


def change_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], file: str = BLOCK
) -> None:
    """Change a file and note its new size and digest: as wrong as a file can be that is undamaged."""
    path = folder / "transformer" / file
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    entry = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    change_manifest(
        folder, lambda data: data["components"]["transformer"]["files"].update({file: entry})
    )


def assert_refused(folder: Path, *words: str) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        load(folder)
    message = caught.value.message
    for word in (*words, "scripts/quantize_fp4.py"):
        assert word in message, message
    assert str(folder.parent) not in message, "the message goes to clients"


def test_a_whole_folder_is_loaded_with_every_tensor(folder: Path) -> None:
    model = load(folder)
    assert len(fp4_layers(model)) == 14 + 2 * 6 + 1
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_missing_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    assert_refused(folder, f"tiny-fp4/{MANIFEST} is missing")


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "{}", "\x00"])
def test_a_manifest_that_cannot_be_read(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    assert_refused(folder, f"tiny-fp4/{MANIFEST} cannot be read")


@pytest.mark.parametrize(("key", "value"), [("version", 1), ("format", "gguf"), ("version", None)])
def test_a_manifest_of_another_format(folder: Path, key: str, value: object) -> None:
    change_manifest(folder, lambda data: data.update({key: value}))
    assert_refused(folder, MANIFEST, str(value))


@pytest.mark.parametrize("key", ["rank", "source", "components"])
def test_a_manifest_with_a_part_missing(folder: Path, key: str) -> None:
    change_manifest(folder, lambda data: data.pop(key))
    assert_refused(folder, MANIFEST, "not complete", key)


def test_a_manifest_without_the_transformer(folder: Path) -> None:
    change_manifest(folder, lambda data: data["components"].pop("transformer"))
    assert_refused(folder, MANIFEST, "transformer")


def test_a_missing_file(folder: Path) -> None:
    (folder / "transformer" / BLOCK).unlink()
    assert_refused(folder, f"tiny-fp4/transformer/{BLOCK} is missing")


@pytest.mark.parametrize("length", [0, 7, 1000, -1])
def test_a_truncated_file(folder: Path, length: int) -> None:
    path = folder / "transformer" / BLOCK
    path.write_bytes(path.read_bytes()[:length])
    assert_refused(folder, f"tiny-fp4/transformer/{BLOCK}", "cut short")


def test_a_flipped_bit(folder: Path) -> None:
    path = folder / "transformer" / BLOCK
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)
    assert_refused(folder, f"tiny-fp4/transformer/{BLOCK}", "SHA-256", "damaged")


def test_a_file_of_another_kind(folder: Path) -> None:
    path = folder / "transformer" / BLOCK
    path.write_bytes(b"PK\x03\x04" + bytes(2000))
    entry = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    change_manifest(
        folder, lambda data: data["components"]["transformer"]["files"].update({BLOCK: entry})
    )
    assert_refused(folder, f"tiny-fp4/transformer/{BLOCK}", "no whole safetensors file")


def test_a_file_name_that_leads_out_of_the_folder(folder: Path) -> None:
    change_manifest(
        folder,
        lambda data: data["components"]["transformer"]["files"].update(
            {"../fp4.json": {"size": 1, "sha256": ""}}
        ),
    )
    assert_refused(folder, "../fp4.json is missing")


def test_a_wrong_rank_in_the_weights(folder: Path) -> None:
    change_tensors(folder, lambda t: t.update({f"{TO_Q}.up": t[f"{TO_Q}.up"][:, :3].contiguous()}))
    assert_refused(folder, BLOCK, f"{TO_Q}.up", "32x3", "32x4", "rank")


@pytest.mark.parametrize("rank", [5, 3, 33, -1, "4", None])
def test_a_wrong_rank_in_the_manifest(folder: Path, rank: object) -> None:
    layers = lambda data: data["components"]["transformer"]["layers"]  # noqa: E731
    change_manifest(folder, lambda data: layers(data)[TO_Q].update({"rank": rank}))
    assert_refused(folder, TO_Q, "rank")


def test_mixed_shapes(folder: Path) -> None:
    """A tensor of another layer in this one's place."""
    other = "transformer_blocks.0.ff.net.0.proj.packed"
    change_tensors(folder, lambda t: t.update({f"{TO_Q}.packed": t[other].clone()}))
    assert_refused(folder, BLOCK, f"{TO_Q}.packed", "128x16", "32x16")


def test_a_manifest_of_another_models_shapes(folder: Path) -> None:
    layers = lambda data: data["components"]["transformer"]["layers"]  # noqa: E731
    change_manifest(folder, lambda data: layers(data)[TO_Q].update({"shape": [64, 32]}))
    assert_refused(folder, MANIFEST, TO_Q, "(64, 32)", "(32, 32)")


def test_a_config_of_another_model(folder: Path) -> None:
    change_config(folder, '"num_attention_heads": 2', '"num_attention_heads": 4')
    assert_refused(folder, MANIFEST, "not of one model")


@pytest.mark.parametrize(
    ("value", "other"), [('"guidance_embeds": false', '"guidance_embeds": true'), ("[", " [")]
)
def test_a_config_that_was_changed_since(folder: Path, value: str, other: str) -> None:
    """Weights may fit it all the same, and the pictures be others."""
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace(value, other, 1))
    assert_refused(folder, "tiny-fp4/transformer/config.json", "another file")


def change_config(folder: Path, value: str, other: str) -> None:
    """Change the configuration and note its new size and digest."""
    config = folder / "transformer" / "config.json"
    text = config.read_text()
    assert value in text
    config.write_text(text.replace(value, other))
    entry = {"size": config.stat().st_size, "sha256": file_sha256(config)}
    change_manifest(folder, lambda data: data["components"]["transformer"].update(config=entry))


WRONG_KINDS = [None, -1, 1.5, "x", "", [], {}, ["b"], {"a": 1}]
RIGHT_KINDS = {  # what is only told, or compared
    ("rank",): int,
    ("source", "files"): dict,
    ("components", "transformer", "kept_16bit"): dict,
}


@pytest.mark.parametrize(
    "place",
    [
        ("version",), ("rank",), ("activations",), ("source",), ("source", "files"), ("components",),
        ("components", "transformer"),
        *(("components", "transformer", key) for key in ("files", "config", "layers", "kept_16bit")),
        ("components", "transformer", "files", BLOCK),
        ("components", "transformer", "files", BLOCK, "size"),
        ("components", "transformer", "files", BLOCK, "sha256"),
        ("components", "transformer", "layers", TO_Q),
        *(("components", "transformer", "layers", TO_Q, k)
          for k in ("shape", "rank", "bias", "weight_only")),
    ],
    ids=".".join,
)  # fmt: skip
def test_a_manifest_with_a_value_of_another_kind(folder: Path, place: tuple[str, ...]) -> None:
    original = json.loads((folder / MANIFEST).read_text())
    for wrong in WRONG_KINDS:
        data = json.loads(json.dumps(original))
        parent = data
        for key in place[:-1]:
            parent = parent[key]
        if place in RIGHT_KINDS and type(wrong) is RIGHT_KINDS[place]:
            continue
        parent[place[-1]] = wrong
        (folder / MANIFEST).write_text(json.dumps(data))
        assert_refused(folder)


def test_a_layer_that_the_model_lacks(folder: Path) -> None:
    layers = lambda data: data["components"]["transformer"]["layers"]  # noqa: E731
    change_manifest(folder, lambda data: layers(data).update(nothing=layers(data)[TO_Q]))
    assert_refused(folder, MANIFEST, "nothing")


@pytest.mark.parametrize("tensor", [f"{TO_Q}.global_scale", f"{TO_Q}.bias"])
def test_a_missing_tensor(folder: Path, tensor: str) -> None:
    change_tensors(folder, lambda t: t.pop(tensor))
    assert_refused(folder, "tiny-fp4/transformer", tensor)


def test_an_unknown_tensor(folder: Path) -> None:
    change_tensors(folder, lambda t: t.update(surprise=torch.zeros(3)))
    assert_refused(folder, BLOCK, "'surprise'")


def test_a_tensor_of_another_type(folder: Path) -> None:
    name = f"{TO_Q}.block_scale"
    change_tensors(folder, lambda t: t.update({name: t[name].float()}))
    assert_refused(folder, BLOCK, name, "float32", "float8_e4m3fn")


def test_the_manifest_lists_what_stays_in_16_bit_with_the_reason(folder: Path) -> None:
    part = Manifest.read(folder).components["transformer"]
    linear = {
        name
        for name, module in FluxTransformer2DModel.from_pretrained(
            Path(__file__).parents[3] / "models" / "embedded" / "transformer"
        ).named_modules()
        if isinstance(module, torch.nn.Linear) and "blocks" not in name
    }
    assert linear - {"norm_out.linear"} == set(part.kept_16bit)
    assert all(len(reason) > 20 for reason in part.kept_16bit.values())
