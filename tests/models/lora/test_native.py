"""LoKr and LoHa through PEFT's own layers give what the formats mean, and what low rank gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from models.lora.convert import convert
from models.lora.native import native
from tests.models.lora import formats


@pytest.fixture
def transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel.from_pretrained("models/embedded/transformer")


def without_fused(state: formats.State) -> formats.State:
    return {k: v for k, v in state.items() if "qkv" not in k}


def assert_native(
    path: Path, deltas: dict[str, torch.Tensor], transformer: FluxTransformer2DModel
) -> None:
    adapter = native(path)
    assert adapter is not None
    adapter.load(transformer, "one")
    for name, delta in deltas.items():
        layer = transformer.get_submodule(name.removeprefix("transformer."))
        found = layer.get_delta_weight("one")
        assert torch.allclose(found, delta, atol=1e-5 * float(delta.abs().max())), name


@pytest.mark.parametrize("whole", [False, True])
def test_native_lokr_is_what_the_format_means(
    whole: bool, transformer: FluxTransformer2DModel, tmp_path: Path
) -> None:
    state, deltas = formats.lokr(whole=whole)
    assert_native(formats.write(tmp_path / "a", state), deltas, transformer)


def test_native_loha_is_what_the_format_means(
    transformer: FluxTransformer2DModel, tmp_path: Path
) -> None:
    state, deltas = formats.loha()
    kept = {name: delta for name, delta in deltas.items() if "ff_context" in name}
    assert_native(formats.write(tmp_path / "a", without_fused(state)), kept, transformer)


def test_native_lokr_of_full_rank_loses_nothing_where_low_rank_must(
    transformer: FluxTransformer2DModel, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(4, 4, generator=generator), torch.randn(
        192, 48, generator=generator
    )
    layer = "transformer.single_transformer_blocks.1.proj_mlp"
    path = formats.write(tmp_path / "a", {f"{layer}.lokr_w1": first, f"{layer}.lokr_w2": second})
    lora = convert(path, max_rank=32)
    assert lora.error > 0.1 and lora.approximated.keys() == {layer}
    assert convert(path).error < 1e-6  # the layer has no more than rank 192
    assert_native(path, {layer: torch.kron(first, second)}, transformer)


def test_native_fused_layer_is_none_and_low_rank_takes_it(tmp_path: Path) -> None:
    state, deltas = formats.loha()
    path = formats.write(tmp_path / "a", state)
    assert native(path) is None
    assert convert(path).layers.keys() == deltas.keys()


def test_native_lora_is_none(tmp_path: Path) -> None:
    assert native(formats.write_known(tmp_path / "a", "kohya")[0]) is None


def test_native_reordered_rows_are_none(tmp_path: Path) -> None:
    name = (
        "lora_unet_final_layer_adaLN_modulation_1"  # diffusers has its halves the other way round
    )
    state = {f"{name}.lokr_w1": torch.randn(4, 4), f"{name}.lokr_w2": torch.randn(96, 48)}
    path = formats.write(tmp_path / "a", state)
    assert native(path) is None
    delta = torch.kron(state[f"{name}.lokr_w1"], state[f"{name}.lokr_w2"]).roll(192, 0)
    assert torch.allclose(
        convert(path).layers["transformer.norm_out.linear"].delta(), delta, atol=1e-4
    )
