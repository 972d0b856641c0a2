"""The merge is the sum of the separate changes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.lora.convert import Factors, Lora, convert
from models.lora.errors import LoraIncompatible
from models.lora.inspect import inspect
from models.lora.merge import layer_shapes, match, merge
from tests.models.lora import formats

SHAPES = {"transformer.a": (24, 8), "transformer.b": (8, 24), "transformer.c": (1, 1), "other.d": (5, 7)}  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Lora:
    return convert(formats.write_known(tmp_path_factory.mktemp("lora") / "a", "kohya")[0])


@st.composite
def loras(draw: st.DrawFn) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    layers = {}
    for name in draw(st.sets(st.sampled_from(sorted(SHAPES)), min_size=1)):
        rank = draw(st.integers(1, 40))
        alpha = draw(st.floats(-64, 64, width=32))
        rows, columns = SHAPES[name]
        up = torch.randn(rows, rank, generator=generator).to(dtype)
        down = torch.randn(rank, columns, generator=generator).to(dtype)
        layers[name] = (up, down, alpha / rank)
    return layers


def as_lora(template: Lora, layers: dict[str, tuple[torch.Tensor, torch.Tensor, float]]) -> Lora:
    made = {
        name: Factors(down, up, scale, (f"{name}.up", f"{name}.down"))
        for name, (up, down, scale) in layers.items()
    }
    return replace(template, layers=made)


@settings(max_examples=200, deadline=None)
@given(
    chosen=st.lists(
        st.tuples(loras(), st.floats(-2, 2, width=32) | st.just(0.0)), min_size=1, max_size=8
    )
)
def test_merge_equals_the_sum_of_separate_deltas(chosen, known: Lora) -> None:
    merged = merge([(as_lora(known, layers), weight) for layers, weight in chosen], SHAPES)
    for name, shape in SHAPES.items():
        expected = torch.zeros(shape, dtype=torch.float64)
        size = torch.zeros(shape, dtype=torch.float64)
        for layers, weight in chosen:
            if name in layers:
                up, down, scale = layers[name]
                part = weight * scale * (up.double() @ down.double())
                expected += part
                size += abs(weight * scale) * (up.double().abs() @ down.double().abs())
        if name not in merged.layers:
            assert expected.abs().max() == 0
            continue
        added = merged.layers[name]
        assert added.up.dtype == added.down.dtype == torch.float32
        error = (added.up @ added.down - expected).abs()
        assert (error <= 1e-5 * size.clamp(min=1e-30)).all()


def test_merge_of_files_equals_the_sum_of_their_known_deltas(tmp_path: Path) -> None:
    paths = [formats.write_known(tmp_path / form, form) for form in ("kohya", "xlabs", "diffusers")]
    lokr, lokr_deltas = formats.lokr()
    chosen = [(convert(path), weight) for (path, _), weight in zip(paths, (0.7, -1.3, 2), strict=True)]  # fmt: skip
    chosen.append((convert(formats.write(tmp_path / "lokr", lokr)), 0.5))
    deltas = [(known.deltas, w) for (_, known), (_, w) in zip(paths, chosen, strict=False)]
    deltas.append((lokr_deltas, 0.5))
    shapes = {name: tuple(delta.shape) for name, delta in paths[0][1].deltas.items()}
    merged = merge(chosen, shapes)
    for name in shapes:
        expected = sum(part[name] * weight for part, weight in deltas if name in part)
        added = merged.layers[name]
        assert torch.allclose(added.up @ added.down, expected, atol=1e-5)


def test_merge_weight_zero_adds_nothing(known: Lora) -> None:
    shapes = {name: tuple(f.delta().shape) for name, f in known.layers.items()}
    merged = merge([(known, 0.0)], shapes)
    assert merged.layers == {}
    assert merged.matches[0].matched_keys == 3 * 40 and not merged.matches[0].unmatched_keys


def test_merge_order_of_ranks_is_the_order_given(known: Lora) -> None:
    one = as_lora(known, {"transformer.c": (torch.ones(1, 1), torch.ones(1, 1), 1.0)})
    two = as_lora(known, {"transformer.c": (torch.ones(1, 2) * 3, torch.ones(2, 1) * 5, 0.5)})
    added = merge([(one, 2), (two, -1)], SHAPES).layers["transformer.c"]
    assert added.up.tolist() == [[2.0, -1.5, -1.5]]
    assert added.down.tolist() == [[1.0], [5.0], [5.0]]


def test_merge_changes_none_of_its_inputs(known: Lora) -> None:
    before = {name: (f.up.clone(), f.down.clone()) for name, f in known.layers.items()}
    shapes = {name: tuple(f.delta().shape) for name, f in known.layers.items()}
    added = merge([(known, 1.0)], shapes).layers
    for layer in added.values():
        layer.up.zero_()
        layer.down.zero_()
    for name, (up, down) in before.items():
        assert torch.equal(known.layers[name].up, up)
        assert torch.equal(known.layers[name].down, down)


def test_match_counts_tensors_of_the_file(tmp_path: Path) -> None:
    state, _ = formats.kohya(formats.make_known(only=lambda n: n.startswith("double_blocks.0.img")))
    state["strange"] = torch.ones(1)
    lora = convert(formats.write(tmp_path / "a", state))
    shapes = {
        name: tuple(f.delta().shape) for name, f in lora.layers.items() if "to_k" in name or "ff" in name
    }  # fmt: skip
    found = match(lora, shapes)
    assert found.matched_keys == 9  # the fused layer's three and two of the MLP
    assert len(found.unmatched_keys) == 7
    assert set(found.unmatched_keys) == {
        "strange",
        *(
            f"lora_unet_double_blocks_0_img_{layer}.{part}"
            for layer in ("attn_proj", "mod_lin")
            for part in ("lora_up.weight", "lora_down.weight", "alpha")
        ),
    }


def test_merge_without_a_match_is_an_error_that_lists_keys(known: Lora) -> None:
    with pytest.raises(LoraIncompatible, match="matches no layer.*'lora_unet_double") as caught:
        merge([(known, 1.0)], {"transformer.something_else": (3, 3)})
    assert (caught.value.code, caught.value.status) == ("lora_incompatible", 409)


def test_merge_without_a_match_at_weight_zero_is_still_an_error(known: Lora) -> None:
    with pytest.raises(LoraIncompatible):
        merge([(known, 0.0)], {})


@pytest.mark.parametrize("shape", [(192, 3072), (3072, 192), (3072, 3072)])
def test_merge_wrong_shape_is_an_error_that_names_both(shape: tuple[int, int], known: Lora) -> None:
    name = "transformer.transformer_blocks.0.attn.to_q"
    with pytest.raises(
        LoraIncompatible, match=f"to_q as a layer of 192.*{shape[0]} and {shape[1]}"
    ):
        merge([(known, 1.0)], {name: shape})


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_merge_weight_that_is_no_number_is_refused(weight: float, known: Lora) -> None:
    shapes = {name: tuple(f.delta().shape) for name, f in known.layers.items()}
    with pytest.raises(ValueError, match="number"):
        merge([(known, weight)], shapes)


def test_merge_alpha_beyond_float32_is_refused(known: Lora) -> None:
    strong = as_lora(known, {"transformer.c": (torch.ones(1, 1), torch.ones(1, 1), 1e300)})
    with pytest.raises(LoraIncompatible, match="strong"):
        merge([(strong, 1.0)], SHAPES)


def test_layer_shapes_name_layers_by_component_and_see_through_adapters() -> None:
    from models.fp4.linear import Fp4Linear

    inner = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
    inner.add_module("q", Fp4Linear(64, 32, 4, device="meta"))
    wrapped = torch.nn.Module()
    wrapped.base_layer = torch.nn.Linear(5, 6)
    wrapped.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(5, 2)})
    inner.add_module("w", wrapped)
    assert layer_shapes({"transformer": inner}) == {
        "transformer.0": (4, 3), "transformer.q": (32, 64), "transformer.w": (6, 5)
    }  # fmt: skip


def test_merged_factors_fit_a_four_bit_layer(known: Lora) -> None:
    from models.fp4.linear import Fp4Linear

    name = "transformer.transformer_blocks.0.ff.net.0.proj"
    added = merge([(known, 0.5), (known, 1.0)], {name: (768, 192)}).layers[name]
    layer = Fp4Linear(192, 768, 4)
    layer.set_extra(added.up, added.down)
    assert layer.extra_rank == 8


def test_inspect_and_convert_agree_on_the_description(tmp_path: Path) -> None:
    path, _ = formats.write_known(tmp_path / "a", "bfl")
    assert convert(path).info == inspect(path)
