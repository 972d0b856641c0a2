"""One known LoRA in every format gives the same change of every layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.lora.convert import Lora, convert
from models.lora.errors import BadLoraFile, LoraIncompatible
from tests.models.lora import formats


def assert_deltas(lora: Lora, expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert set(lora.layers) == set(expected)
    for name, delta in expected.items():
        found = lora.layers[name].delta()
        assert found.shape == delta.shape, name
        assert (found - delta).abs().max() <= tolerance * delta.abs().max(), name


@pytest.mark.parametrize("form", formats.FORMATS)
def test_convert_known_lora_in_each_format_gives_the_same_deltas(form: str, tmp_path: Path) -> None:
    path, known = formats.write_known(tmp_path / "a.safetensors", form)
    lora = convert(path)
    assert_deltas(lora, known.deltas)
    assert lora.unknown_keys == () and lora.error == 0 and lora.approximated == {}
    assert lora.info.format == formats.FORMATS[form][1]


def test_known_lora_covers_every_linear_layer_of_the_embedded_transformer(tmp_path: Path) -> None:
    from diffusers import FluxTransformer2DModel

    from models.lora.merge import layer_shapes

    model = FluxTransformer2DModel.from_pretrained("models/embedded/transformer")
    shapes = layer_shapes({"transformer": model})
    known = formats.make_known()
    assert {name: tuple(delta.shape) for name, delta in known.deltas.items()} == shapes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("form", ["kohya", "diffusers", "xlabs"])
def test_convert_keeps_the_bits_of_the_file(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    known = formats.make_known(only=formats.is_for_xlabs)
    state, metadata = formats.FORMATS[form][0](known)
    narrow = {k: v if v.ndim == 0 else v.to(dtype) for k, v in state.items()}
    lora = convert(formats.write(tmp_path / "a.safetensors", narrow, metadata))
    down = known.modules[0].down.to(dtype).float()
    assert torch.equal(lora.layers["transformer.transformer_blocks.0.attn.to_q"].down.float(), down)


def test_convert_large_rank_in_bfloat16_is_not_rescaled(tmp_path: Path) -> None:
    rank = 301  # has no bfloat16
    down, up = torch.randn(rank, 192).bfloat16(), torch.randn(192, rank).bfloat16()
    name = "lora_unet_double_blocks_0_img_attn_proj"
    path = formats.write(
        tmp_path / "a.safetensors",
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up},
    )
    factors = convert(path).layers["transformer.transformer_blocks.0.attn.to_out.0"]
    assert torch.equal(factors.down, down) and torch.equal(factors.up, up)
    assert factors.scale == 1


def test_convert_flux1_sized_fused_layer_is_split_as_diffusers_does(tmp_path: Path) -> None:
    down, up = torch.randn(2, 3072), torch.randn(21504, 2)
    name = "lora_unet_single_blocks_37_linear1"
    path = formats.write(
        tmp_path / "a.safetensors",
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up},
    )
    lora = convert(path)
    start = 0
    for layer, rows in (("attn.to_q", 3072), ("attn.to_k", 3072), ("attn.to_v", 3072), ("proj_mlp", 12288)):  # fmt: skip
        factors = lora.layers[f"transformer.single_transformer_blocks.37.{layer}"]
        assert torch.equal(factors.up, up[start : start + rows]), layer
        start += rows


@pytest.mark.parametrize("alpha", [8, 8.0])
@pytest.mark.parametrize("rslora", [False, True])
def test_convert_peft_metadata_scales_by_lora_alpha_and_its_patterns(
    alpha: float, rslora: bool, tmp_path: Path
) -> None:
    import json

    state = {
        f"transformer.transformer_blocks.{i}.attn.to_q.lora_{part}.weight": torch.ones(shape)
        for i in range(2)
        for part, shape in (("A", (4, 192)), ("B", (192, 4)))
    }
    config = {
        "transformer.lora_alpha": alpha,
        "transformer.use_rslora": rslora,
        "transformer.alpha_pattern": {"transformer_blocks.1.attn.to_q": 2, "(a+)+$": 99},
    }
    lora = convert(
        formats.write(
            tmp_path / "a.safetensors", state, {"lora_adapter_metadata": json.dumps(config)}
        )
    )
    over = 2 if rslora else 4
    assert [factors.scale for factors in lora.layers.values()] == [8 / over, 2 / over]
    assert lora.info.alphas == (8.0,)


@pytest.mark.parametrize("naming", ["kohya", "onetrainer", "diffusers"])
def test_convert_text_encoder_parts_find_their_layers(naming: str, tmp_path: Path) -> None:
    state, deltas = formats.text_encoders(naming)
    lora = convert(formats.write(tmp_path / "a.safetensors", state))
    assert_deltas(lora, deltas)
    assert lora.info.text_encoders == ("clip", "t5")


@pytest.mark.parametrize("whole", [False, True])
def test_convert_lokr_is_exact_where_its_rank_allows(whole: bool, tmp_path: Path) -> None:
    state, deltas = formats.lokr(whole=whole)
    lora = convert(formats.write(tmp_path / "a.safetensors", state))
    assert_deltas(lora, deltas)
    assert lora.info.format == "lokr" and lora.error < 1e-6
    assert all(factors.up.shape[1] == 16 for factors in lora.layers.values())  # 4 · 4


def test_convert_loha_is_exact_where_its_rank_allows(tmp_path: Path) -> None:
    state, deltas = formats.loha()
    lora = convert(formats.write(tmp_path / "a.safetensors", state))
    assert_deltas(lora, deltas)
    assert lora.info.format == "loha" and lora.error < 1e-6


@pytest.mark.parametrize("make", [formats.lokr, formats.loha])
def test_convert_lycoris_over_the_rank_reports_the_best_error(make, tmp_path: Path) -> None:
    state, deltas = make()
    lora = convert(formats.write(tmp_path / "a.safetensors", state), max_rank=6)
    assert all(factors.up.shape[1] <= 6 for factors in lora.layers.values())
    lost = sum((lora.layers[n].delta() - d).square().sum() for n, d in deltas.items())
    norm = sum(d.square().sum() for d in deltas.values())
    assert lora.error == pytest.approx(float((lost / norm).sqrt()), rel=1e-3)
    assert len(lora.approximated) == 2
    plain = next(n for n in deltas if n.endswith(("to_q", "ff_context.net.2")))
    if make is formats.lokr or plain.endswith("net.2"):
        best = torch.linalg.svdvals(deltas[plain])[6:].square().sum().sqrt() / deltas[plain].norm()
        found = (lora.layers[plain].delta() - deltas[plain]).norm() / deltas[plain].norm()
        assert found == pytest.approx(float(best), rel=1e-3)


def test_convert_unknown_keys_are_listed_and_the_rest_is_taken(tmp_path: Path) -> None:
    state, _ = formats.kohya(formats.make_known(only=lambda name: name == "img_in"))
    state["lora_unet_double_blocks_0_strange.lora_down.weight"] = torch.ones(2, 192)
    state["lora_unet_double_blocks_0_strange.lora_up.weight"] = torch.ones(192, 2)
    state["something.else_"] = torch.ones(2)
    lora = convert(formats.write(tmp_path / "a.safetensors", state))
    assert set(lora.layers) == {"transformer.x_embedder"}
    assert set(lora.unknown_keys) == {
        "lora_unet_double_blocks_0_strange.lora_down.weight",
        "lora_unet_double_blocks_0_strange.lora_up.weight",
        "something.else_",
    }


def test_convert_file_with_the_same_lora_twice_takes_diffusers_names(tmp_path: Path) -> None:
    known = formats.make_known(only=lambda name: name == "img_in")
    twice = formats.kohya(known)[0] | {
        key: value * 2 for key, value in formats.diffusers(known)[0].items()
    }
    lora = convert(formats.write(tmp_path / "a.safetensors", twice))
    assert torch.equal(lora.layers["transformer.x_embedder"].down, known.modules[0].down * 2)
    assert len(lora.unknown_keys) == 3


@pytest.mark.parametrize(
    "wrapper", ["base_model.model.transformer.", "base_model.model.diffusion_model."]
)
def test_convert_wrapper_within_a_wrapper_is_taken_off(wrapper: str, tmp_path: Path) -> None:
    known = formats.make_known()
    state, metadata = formats.diffusers(known)
    named = {name.replace("transformer.", wrapper, 1): tensor for name, tensor in state.items()}
    lora = convert(formats.write(tmp_path / "a.safetensors", named, metadata))
    assert lora.layers.keys() == known.deltas.keys()
    assert lora.unknown_keys == ()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"lora_A.weight": torch.ones(4, 192), "lora_B.weight": torch.ones(192, 5)}, "fit together"),
        ({"lora_A.weight": torch.ones(4, 192)}, "not whole"),
        (
            {
                "lora_A.weight": torch.ones(4, 192), "lora_B.weight": torch.ones(192, 4),
                "alpha": torch.ones(2),
            },
            "alpha has 2",
        ),
        ({"lora_A.weight": torch.ones(4, 192, 3), "lora_B.weight": torch.ones(192, 4)}, "linear"),
        ({"lokr_w1": torch.ones(4, 4)}, "not whole"),
        (
            {
                "hada_w1_a": torch.ones(8, 2), "hada_w1_b": torch.ones(3, 8),
                "hada_w2_a": torch.ones(8, 2), "hada_w2_b": torch.ones(2, 8),
            },
            "fit together",
        ),
    ],
)  # fmt: skip
def test_convert_module_that_contradicts_itself_is_refused(
    state: dict[str, torch.Tensor], words: str, tmp_path: Path
) -> None:
    named = {f"transformer.transformer_blocks.0.attn.to_q.{k}": v for k, v in state.items()}
    with pytest.raises(BadLoraFile, match=words):
        convert(formats.write(tmp_path / "a.safetensors", named))


def test_convert_fused_layer_of_a_wrong_size_is_refused(tmp_path: Path) -> None:
    name = "lora_unet_single_blocks_0_linear1"
    state = {
        f"{name}.lora_down.weight": torch.ones(2, 192),
        f"{name}.lora_up.weight": torch.ones(500, 2),
    }
    with pytest.raises(BadLoraFile, match="no layer of FLUX.1"):
        convert(formats.write(tmp_path / "a.safetensors", state))


def test_convert_dora_is_refused_by_name(tmp_path: Path) -> None:
    state, _ = formats.kohya(formats.make_known(only=formats.is_for_xlabs))
    state["lora_unet_double_blocks_0_img_attn_qkv.dora_scale"] = torch.ones(576, 1)
    with pytest.raises(LoraIncompatible, match="DoRA") as caught:
        convert(formats.write(tmp_path / "a.safetensors", state))
    assert (caught.value.code, caught.value.status) == ("lora_incompatible", 409)
