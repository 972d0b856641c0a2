"""What a LoRA is, told from its header and metadata."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.lora import keys
from models.lora.base_model import Family
from models.lora.convert import convert
from models.lora.errors import LoraIncompatible
from models.lora.inspect import inspect, require, trigger_words
from tests.models.lora import formats


def lora(
    modules: dict[str, tuple[int, int]], up: str = "lora_B.weight", down: str = "lora_A.weight"
) -> formats.State:
    """Rank-2 factors by module and (out, in)."""
    state = {}
    for name, (rows, columns) in modules.items():
        state[f"{name}.{down}"] = torch.ones(2, columns)
        state[f"{name}.{up}"] = torch.ones(rows, 2)
    return state


def kohya(modules: dict[str, tuple[int, int]]) -> formats.State:
    return lora(modules, "lora_up.weight", "lora_down.weight")


FLUX2 = {
    "diffusers": (lora({"transformer.single_transformer_blocks.3.attn.to_qkv_mlp_proj": (27648, 3072)}), "FLUX.2 Klein 4B"),
    "diffusers double": (lora({"transformer.transformer_blocks.3.ff.linear_in": (24576, 4096)}), "FLUX.2 Klein 9B"),
    "diffusers single out": (lora({"transformer.single_transformer_blocks.0.attn.to_out": (6144, 24576)}), "FLUX.2 dev"),
    "bfl linear1": (lora({"diffusion_model.single_blocks.3.linear1": (27648, 3072)}), "FLUX.2 Klein 4B"),
    "bfl linear2": (lora({"diffusion_model.single_blocks.3.linear2": (4096, 16384)}), "FLUX.2 Klein 9B"),
    "bfl mlp": (lora({"base_model.model.double_blocks.3.img_mlp.0": (18432, 3072)}), "FLUX.2 Klein 4B"),
    "bfl mlp out": (lora({"diffusion_model.double_blocks.3.txt_mlp.2": (3072, 9216)}), "FLUX.2 Klein 4B"),
    "bfl modulation": (lora({"diffusion_model.double_stream_modulation_img.lin": (18432, 3072)}), "FLUX.2"),
    "bfl text": (lora({"diffusion_model.txt_in": (3072, 7680)}), "FLUX.2 Klein 4B"),
    "bfl attention alone": (
        lora({f"diffusion_model.double_blocks.{i}.img_attn.qkv": (9216, 3072) for i in range(5)}),
        "FLUX.2 Klein 4B",
    ),
    "wide attention": (lora({"diffusion_model.double_blocks.0.img_attn.qkv": (12288, 4096)}), "FLUX.2 Klein 9B"),
    "kohya": (kohya({"lora_unet_single_blocks_0_linear1": (27648, 3072)}), "FLUX.2 Klein 4B"),
}  # fmt: skip


@pytest.mark.parametrize("name", FLUX2)
def test_flux2_lora_is_recognised_and_refused_for_flux1(name: str, tmp_path: Path) -> None:
    state, expected = FLUX2[name]
    path = formats.write(tmp_path / "a.safetensors", state)
    info = inspect(path)
    assert info.base.family is Family.FLUX2 and info.base.name.startswith(expected)
    assert info.refusal is None
    require(info, Family.FLUX2)
    with pytest.raises(LoraIncompatible, match="for FLUX.2.*this model is FLUX.1"):
        convert(path)


FLUX1 = {
    "linear1": lora({"diffusion_model.single_blocks.3.linear1": (21504, 3072)}),
    "linear2": kohya({"lora_unet_single_blocks_30_linear2": (3072, 15360)}),
    "mlp": kohya({"lora_unet_double_blocks_0_txt_mlp_0": (12288, 3072)}),
    "attention of many blocks": lora({"diffusion_model.double_blocks.18.img_attn.qkv": (9216, 3072)}),
    "single attention": lora({"transformer.single_transformer_blocks.37.attn.to_q": (3072, 3072)}),
    "proj_mlp": lora({"transformer.single_transformer_blocks.0.proj_mlp": (12288, 3072)}),
    "modulation": kohya({"lora_unet_double_blocks_0_img_mod_lin": (18432, 3072)}),
    "xlabs": lora({"double_blocks.0.processor.qkv_lora1": (9216, 3072)}, "up.weight", "down.weight"),
    "embedders": lora({"transformer.time_text_embed.timestep_embedder.linear_1": (3072, 256)}),
}  # fmt: skip


@pytest.mark.parametrize("name", FLUX1)
def test_flux1_lora_is_recognised_and_refused_for_flux2(name: str, tmp_path: Path) -> None:
    info = inspect(formats.write(tmp_path / "a.safetensors", FLUX1[name]))
    assert info.base.family is Family.FLUX1 and info.base.name == "FLUX.1"
    require(info, Family.FLUX1)
    with pytest.raises(LoraIncompatible, match="for FLUX.1; this model is FLUX.2"):
        require(info, Family.FLUX2)


@pytest.mark.parametrize("form", formats.FORMATS)
def test_known_lora_is_described_alike_in_each_format(form: str, tmp_path: Path) -> None:
    path, known = formats.write_known(tmp_path / "a.safetensors", form)
    info = inspect(path)
    assert info.format == formats.FORMATS[form][1]
    assert info.base.family is Family.FLUX1 and info.base.hidden_size == 192
    assert info.size_bytes == path.stat().st_size and info.refusal is None
    assert info.unknown_keys == () and info.text_encoders == ()
    assert set(info.ranks) <= {4, 12, 16}
    regions = {"image attention", "text attention"}
    if form != "xlabs":
        regions |= {"image MLP", "text MLP", "single blocks", "modulation", "embedders", "output"}
    assert set(info.targets) == regions
    alphas = {"kohya_split": (2.0, 6.0, 8.0), "bfl": (), "bfl_bare": (), "xlabs": ()}
    assert info.alphas == alphas.get(form, (2.0,))


@pytest.mark.parametrize(
    ("modules", "name"),
    [
        ({"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (320, 768)}, "Stable Diffusion 1.5"),
        ({"unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (320, 320)}, "Stable Diffusion"),
        ({"diffusion_model.layers.0.attention.qkv": (3840, 2304)}, "Lumina 2"),
        ({"diffusion_model.joint_blocks.0.x_block.attn.qkv": (4608, 1536)}, "Stable Diffusion 3"),
        ({"transformer.transformer_blocks.0.img_mlp.net.0.proj": (12288, 3072)}, "Qwen-Image"),
        ({"transformer.transformer_blocks.59.attn.to_q": (3072, 3072)}, "Qwen-Image"),
        ({"transformer.single_transformer_blocks.39.proj_mlp": (12288, 3072)}, "HunyuanVideo"),
        ({"transformer.transformer_blocks.0.ff.net.0.proj": (6144, 1536)}, "Stable Diffusion 3"),
        ({"diffusion_model.blocks.0.self_attn.q": (5120, 5120)}, "Wan"),
        ({"lora_unet_double_blocks_0_img_mlp_fc1": (12288, 3072)}, "HunyuanVideo"),
        ({"transformer.transformer_blocks.0.attn1.to_q": (2048, 2048)}, "LTX"),
        ({"diffusion_model.distilled_guidance_layer.layers.0.in_layer": (5120, 5120)}, "Chroma"),
    ],
)  # fmt: skip
def test_lora_of_another_model_is_refused_by_name(
    modules: dict[str, tuple[int, int]], name: str, tmp_path: Path
) -> None:
    path = formats.write(tmp_path / "a.safetensors", lora(modules))
    assert inspect(path).base.family is Family.OTHER
    with pytest.raises(LoraIncompatible, match=name):
        convert(path)


LAYER = "transformer.transformer_blocks.0.attn.to_q"
PLAIN = lora({LAYER: (192, 192)})


@pytest.mark.parametrize(
    ("extra", "metadata", "words"),
    [
        ({f"{LAYER}.lora_magnitude_vector": torch.ones(192)}, {}, "DoRA"),
        ({f"{LAYER}.lora_magnitude_vector.default.weight": torch.ones(192)}, {}, "DoRA"),
        ({f"{LAYER}.dora_scale": torch.ones(192, 1)}, {}, "DoRA"),
        ({}, {"lora_adapter_metadata": '{"transformer.use_dora": true}'}, "DoRA"),
        ({f"{LAYER}.lora_B.bias": torch.ones(192)}, {}, "biases"),
        ({f"{LAYER}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, {}, "convolutions"),
        ({"lora_controlnet": torch.ones(1)}, {}, "Control-LoRA"),
        ({"double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(128)}, {}, "Depth, Canny"),
        ({"transformer.x_embedder.lora_A.weight": torch.ones(2, 128),
          "transformer.x_embedder.lora_B.weight": torch.ones(192, 2),
          "transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight": torch.ones(2, 192),
          "transformer.single_transformer_blocks.0.proj_mlp.lora_B.weight": torch.ones(768, 2)}, {}, "128 channels"),
    ],
)  # fmt: skip
def test_adapter_that_cannot_be_applied_is_refused_by_name(
    extra: formats.State, metadata: dict[str, str], words: str, tmp_path: Path
) -> None:
    path = formats.write(tmp_path / "a.safetensors", PLAIN | extra, metadata)
    assert words in inspect(path).refusal
    with pytest.raises(LoraIncompatible, match=words):
        convert(path)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({f"{LAYER}.oft_diag": torch.ones(4, 8, 8)}, "OFT"),
        ({f"{LAYER}.a1.weight": torch.ones(4, 8)}, "GLoRA"),
        ({f"{LAYER}.diff": torch.ones(4, 8)}, "differences"),
        ({f"{LAYER}.weight": torch.ones(4, 8)}, "whole model"),
        ({"emb_params": torch.ones(4, 768)}, "no LoRA of a known format"),
        (lora({"something.else": (4, 4)}), "unknown model"),
    ],
)
def test_file_that_is_no_lora_is_refused_by_what_it_is(
    state: formats.State, words: str, tmp_path: Path
) -> None:
    path = formats.write(tmp_path / "a.safetensors", state)
    assert words in inspect(path).refusal
    with pytest.raises(LoraIncompatible, match=words):
        convert(path)


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({}, Family.FLUX1),
        ({"ss_base_model_version": "flux2_klein_4b"}, Family.FLUX2),
        ({"modelspec.architecture": "Flux.2-klein/lora"}, Family.FLUX2),
        ({"modelspec.architecture": "flux-1-dev/lora"}, Family.FLUX1),
        ({"modelspec.architecture": "chroma"}, Family.OTHER),
    ],
)
def test_metadata_decides_where_names_and_shapes_do_not(
    metadata: dict[str, str], family: Family, tmp_path: Path
) -> None:
    state = lora({"diffusion_model.double_blocks.0.img_attn.qkv": (9216, 3072)})
    path = formats.write(tmp_path / "a.safetensors", state, metadata)
    assert inspect(path).base.family is family


def test_metadata_does_not_overrule_shapes(tmp_path: Path) -> None:
    path = formats.write(
        tmp_path / "a.safetensors", FLUX2["bfl linear1"][0], {"ss_base_model_version": "flux1"}
    )
    assert inspect(path).base.family is Family.FLUX2


def test_require_other_hidden_size_names_both(tmp_path: Path) -> None:
    info = inspect(formats.write(tmp_path / "a.safetensors", PLAIN))
    require(info, Family.FLUX1, 192)
    with pytest.raises(LoraIncompatible, match="192.*3072"):
        require(info, Family.FLUX1, 3072)


def test_inspect_lokr_tells_sizes_ranks_and_layers(tmp_path: Path) -> None:
    state, _ = formats.lokr()
    info = inspect(formats.write(tmp_path / "a.safetensors", state))
    assert (info.format, info.ranks, info.alphas) == ("lokr", (4,), (2.0,))
    assert info.base.family is Family.FLUX1 and info.base.hidden_size == 192


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8])  # fmt: skip
def test_inspect_alpha_is_read_in_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    state = PLAIN | {f"{LAYER}.alpha": torch.tensor(12, dtype=dtype)}
    path = formats.write(tmp_path / "a.safetensors", state)
    assert inspect(path).alphas == (12.0,)
    assert convert(path).layers[LAYER].scale == 6


def test_inspect_unknown_keys_are_listed(tmp_path: Path) -> None:
    state = PLAIN | {"strange": torch.ones(1), "odd.module.lora_A.weight": torch.ones(2, 2)}
    info = inspect(formats.write(tmp_path / "a.safetensors", state))
    assert set(info.unknown_keys) == {"strange", "odd.module.lora_A.weight"}
    assert info.refusal is None


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, ()),
        ({"modelspec.trigger_phrase": "gold statue, marble"}, ("gold statue", "marble")),
        ({"trigger_word": "[trigger]"}, ("trigger",)),
        ({"ss_tag_frequency": '{"5_a": {"ohwx": 12, "man": 12, "tree": 3}}'}, ("ohwx", "man")),
        (
            {
                "ss_tag_frequency": '{"5_a": {"ohwx": 12, "tree": 3}}',
                "ss_dataset_dirs": '{"5_a": {"img_count": 12}}',
            },
            ("ohwx",),
        ),
        (
            {
                "ss_tag_frequency": '{"5_a": {"tree": 3}}',
                "ss_dataset_dirs": '{"5_a": {"img_count": 12}}',
            },
            (),
        ),
        ({"ss_tag_frequency": "[" * 30_000}, ()),
        ({"ss_tag_frequency": '{"a": {"x": "many", "y": null, "z": 1e9, "w": true}}'}, ()),
        ({"ss_tag_frequency": '{"a": [1], "b": 2}', "ss_dataset_dirs": '["c"]'}, ()),
        ({"trigger_word": "a\x1b[31m\u202eb"}, ("a [31m b",)),
        ({"trigger_word": "x" * 51}, ()),
        (
            {"trigger_words": ",".join(f"w{i}" for i in range(99))},
            tuple(f"w{i}" for i in range(8)),
        ),
    ],
)
def test_trigger_words_come_from_metadata(metadata: dict[str, str], words: tuple[str, ...]) -> None:
    assert trigger_words(metadata) == words


hostile_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
).map(json.dumps)  # fmt: skip


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    metadata=st.dictionaries(
        st.sampled_from(["ss_tag_frequency", "ss_dataset_dirs", "lora_adapter_metadata", "ss_network_alpha", "ss_network_args", "trigger_word"]),
        hostile_json | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
        | st.just('{"transformer.lora_alpha": 1' + "0" * 400 + "}")
        | st.just('{"transformer.alpha_pattern": {"(": 1}, "transformer.lora_alpha": NaN}'),
    )
)  # fmt: skip
def test_inspect_hostile_metadata_is_described_or_refused(
    tmp_path: Path, metadata: dict[str, str]
) -> None:
    path = formats.write(tmp_path / "a.safetensors", PLAIN, metadata)
    info = inspect(path)
    assert all(isinstance(word, str) and len(word) <= 50 for word in info.trigger_words)
    if info.refusal is None:
        assert abs(convert(path).layers[LAYER].scale) < 1e10


@given(st.text("lora_ABupdwnt.te1x_kqv0", max_size=60))
def test_split_puts_every_name_together_again(name: str) -> None:
    module, part = keys.split(name)
    assert name.startswith(module) and (part is None) == (module == name)


def test_inspection_imports_no_torch() -> None:
    code = (
        "import sys, models.lora.inspect, models.lora.finite\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'peft', 'safetensors')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
