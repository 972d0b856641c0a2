"""Modules that lack a part, or whose parts do not fit, told from names and shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.lora import keys
from models.lora.errors import BadLoraFile
from models.lora.header import read_header
from models.lora.whole import check_modules
from tests.models.lora import formats

LAYER = "transformer.transformer_blocks.0.attn.to_q"


def check(path: Path, state: formats.State) -> None:
    tensors = read_header(formats.write(path / "a.safetensors", state)).tensors
    check_modules(keys.group(tensors)[0], tensors)


@pytest.mark.parametrize("form", formats.FORMATS)
def test_check_modules_known_lora_in_each_format_passes(form: str, tmp_path: Path) -> None:
    path, _ = formats.write_known(tmp_path / "a.safetensors", form)
    tensors = read_header(path).tensors
    check_modules(keys.group(tensors)[0], tensors)


@pytest.mark.parametrize(
    "state", [formats.lokr()[0], formats.lokr(whole=True)[0], formats.loha()[0]]
)
def test_check_modules_lycoris_passes(state: formats.State, tmp_path: Path) -> None:
    check(tmp_path, state)


def test_check_modules_weights_of_a_1x1_convolution_pass(tmp_path: Path) -> None:
    down, up = torch.ones(4, 192, 1, 1), torch.ones(192, 4, 1, 1)
    check(tmp_path, {f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up})


def test_check_modules_passes_over_what_is_of_no_known_model(tmp_path: Path) -> None:
    check(tmp_path, {"head.lora_A.weight": torch.ones(4, 192), f"{LAYER}.alpha": torch.ones(2)})


LOHA = {
    "hada_w1_a": torch.ones(8, 2), "hada_w1_b": torch.ones(2, 8),
    "hada_w2_a": torch.ones(8, 2), "hada_w2_b": torch.ones(2, 6),
}  # fmt: skip
LOKR = {
    "lokr_w1": torch.ones(4, 4),
    "lokr_w2_a": torch.ones(48, 2),
    "lokr_w2_b": torch.ones(3, 48),
}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"lora_A.weight": torch.ones(4, 192)}, "is not whole: it has down"),
        ({"lora_B.weight": torch.ones(192, 4), "alpha": torch.tensor(1.0)}, "is not whole"),
        ({**LOKR, "lora_A.weight": torch.ones(4, 192)}, "is not whole"),
        ({"lokr_w1": torch.ones(4, 4), "lokr_w2_a": torch.ones(48, 2)}, "is not whole"),
        (
            {"lora_A.weight": torch.ones(4, 192), "lora_B.weight": torch.ones(192, 5)},
            r"\(192, 5\) · \(4, 192\) do not fit",
        ),
        (LOKR, r"\(48, 2\) · \(3, 48\) do not fit"),
        (LOHA, r"\(8, 8\) and \(8, 6\) do not fit"),
        (
            {"lora_A.weight": torch.ones(192), "lora_B.weight": torch.ones(192)},
            r"shape \(192,\); layers are linear",
        ),
    ],
)
def test_check_modules_contradiction_is_refused(
    state: formats.State, words: str, tmp_path: Path
) -> None:
    with pytest.raises(BadLoraFile, match=words):
        check(tmp_path, {f"{LAYER}.{part}": tensor for part, tensor in state.items()})


def lokr_of(rows: tuple[int, int], columns: tuple[int, int]) -> formats.State:
    return {
        "lokr_w1": torch.ones(rows[0], columns[0]),
        "lokr_w2": torch.ones(rows[1], columns[1]),
    }


def test_check_modules_kronecker_product_wider_than_any_layer_is_refused(tmp_path: Path) -> None:
    state = {f"{LAYER}.{p}": t for p, t in lokr_of((5000, 5000), (12, 16)).items()}
    with pytest.raises(BadLoraFile, match="25000000 outputs and 192 inputs"):
        check(tmp_path, state)


def test_check_modules_products_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    state = {
        f"transformer.transformer_blocks.{i}.attn.to_q.{p}": t
        for i in range(200)
        for p, t in lokr_of((256, 256), (12, 16)).items()
    }
    with pytest.raises(BadLoraFile, match="as low rank the file would take 9 GiB"):
        check(tmp_path, state)
