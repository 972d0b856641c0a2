"""LoRAs of SDXL and Z-Image: what they are, which layers they mean, and that they act as in diffusers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from safetensors.torch import save_file

from models import bf16_flux_model
from models.lora import keys
from models.lora.base_model import Family
from models.lora.convert import convert
from models.lora.dotted import unet_layer, z_image_layers
from models.lora.errors import LoraIncompatible
from models.lora.inspect import inspect
from models.lora.shelf import sha256_of
from models.types import LoadOptions, LoraRef
from tests import lora_files
from tests.models.flux1_drawing import threads
from tests.models.tiny_drawing import Tiny, generator
from tests.tiny_models import tiny_model

STEPS = 2
SIZE = {"width": 96, "height": 64}
XL = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


# Names


@functools.cache
def unet() -> UNet2DConditionModel:
    """SDXL's, without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=[5, 10, 20], cross_attention_dim=2048,
            transformer_layers_per_block=[1, 2, 10], use_linear_projection=True,
        )  # fmt: skip


def linears(module: torch.nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if hasattr(part, "in_features")]


def test_unet_layers_with_attention_are_all_known_by_their_flat_names() -> None:
    names = [name for name in linears(unet()) if "attentions" in name]
    assert len(names) == 722
    assert [unet_layer(name.replace(".", "_")) for name in names] == names
    assert all(
        keys.place(f"lora_unet_{n}".replace(".", "_")).style is keys.Style.UNET for n in names
    )


@pytest.mark.parametrize(
    ("stability", "diffusers"),
    [
        ("input_blocks_4_1", "down_blocks.1.attentions.0"),
        ("input_blocks_5_1", "down_blocks.1.attentions.1"),
        ("input_blocks_7_1", "down_blocks.2.attentions.0"),
        ("input_blocks_8_1", "down_blocks.2.attentions.1"),
        ("middle_block_1", "mid_block.attentions.0"),
        ("output_blocks_0_1", "up_blocks.0.attentions.0"),
        ("output_blocks_2_1", "up_blocks.0.attentions.2"),
        ("output_blocks_3_1", "up_blocks.1.attentions.0"),
        ("output_blocks_5_1", "up_blocks.1.attentions.2"),
    ],
)
def test_unet_blocks_by_stabilitys_names_are_those_of_diffusers(
    stability: str, diffusers: str
) -> None:
    layer = "transformer_blocks_1_attn2_to_out_0"
    found = unet_layer(f"{stability}_{layer}")
    assert found == f"{diffusers}.transformer_blocks.1.attn2.to_out.0"
    assert found in linears(unet())


def test_unet_convolutions_are_no_layer() -> None:
    assert unet_layer("down_blocks_1_resnets_0_conv1") is None
    assert unet_layer("down_blocks_1_attentions_0_transformer_blocks_0_norm1") is None


def test_z_image_layers_are_known_by_their_flat_names() -> None:
    with torch.device("meta"):
        model = ZImageTransformer2DModel(n_layers=2)
    names = [name for name in linears(model) if not name.startswith("all_")]
    assert len(names) == 49
    assert [z_image_layers(name.replace(".", "_")) for name in names] == [(n,) for n in names]


# What a file is


@pytest.mark.parametrize(
    ("modules", "metadata", "family", "name"),
    [
        (lora_files.SDXL, {}, Family.SDXL, "SDXL"),
        ({"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": (640, 640)}, XL, Family.SDXL, "SDXL"),
        ({"unet.mid_block.attentions.0.proj_in": (1280, 1280), "text_encoder_2.text_model.encoder.layers.0.mlp.fc1": (5120, 1280)}, {}, Family.SDXL, "SDXL"),
        ({"diffusion_model.layers.0.attention.to_q": (3840, 3840)}, {}, Family.Z_IMAGE, "Z-Image"),
        ({"lora_unet_layers_3_feed_forward_w1": (10240, 3840)}, {}, Family.Z_IMAGE, "Z-Image"),
        ({"diffusion_model.layers.0.attention.qkv": (11520, 3840)}, {}, Family.Z_IMAGE, "Z-Image"),
        ({"diffusion_model.layers.0.attention.qkv": (3840, 2304)}, {}, Family.OTHER, "Lumina 2"),
        ({"unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (320, 320)}, {}, Family.OTHER, "Stable Diffusion"),
    ],
)  # fmt: skip
def test_base_model_is_told_by_names_and_widths(
    tmp_path: Path, modules: Any, metadata: Any, family: Family, name: str
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(lora_files.lora(0.5, modules, metadata=metadata))
    info = inspect(path)
    assert (info.base.family, info.base.name) == (family, name)
    assert (info.refusal is None) == (family is not Family.OTHER)


def test_lora_of_another_family_is_refused_with_both_names(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(lora_files.lora(0.5, lora_files.SDXL))
    with pytest.raises(LoraIncompatible, match="for SDXL; this model is Z-Image"):
        convert(path, Family.Z_IMAGE)


# That they act


@pytest.fixture(scope="module", params=["sdxl-base", "z-image-turbo"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    row = tiny_model(request.param, folder)
    options = LoadOptions(
        devices=("cpu",), models_dir=folder, allow_download=False, loras_dir=folder / "loras"
    )
    (folder / "loras").mkdir()
    return Tiny(row, folder, bf16_flux_model.load(row, options))


def factors(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, 2, generator=source) * 0.5,
        torch.randn(2, columns, generator=source) * 0.5,
    )


def shape_of(tiny: Tiny, layer: str) -> tuple[int, int]:
    component, _, name = layer.partition(".")
    part = tiny.model._part(component).get_submodule(name)
    return part.out_features, part.in_features


# Names in a file by the layers they mean.
XL_KOHYA = {
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj": "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": "text_encoder.encoder.layers.0.self_attn.q_proj",
    "lora_te2_text_model_encoder_layers_0_mlp_fc1": "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
}  # fmt: skip
Z_BFL = {
    "diffusion_model.layers.0.attention.to_q": "transformer.layers.0.attention.to_q",
    "diffusion_model.layers.0.feed_forward.w2": "transformer.layers.0.feed_forward.w2",
    "diffusion_model.noise_refiner.0.attention.to_out.0": "transformer.noise_refiner.0.attention.to_out.0",
}  # fmt: skip


def write(tiny: Tiny, *, with_text: bool = True) -> tuple[Path, LoraRef]:
    """A LoRA for the tiny model in its trainers' names."""
    is_xl = tiny.row.family == "sdxl"
    state: dict[str, torch.Tensor] = {}
    for seed, (module, layer) in enumerate((XL_KOHYA if is_xl else Z_BFL).items()):
        if not layer or (module.startswith("lora_te") and not with_text):
            continue
        up, down = factors(*shape_of(tiny, layer), seed)
        parts = ("lora_up", "lora_down") if is_xl else ("lora_B", "lora_A")
        state |= {f"{module}.{parts[0]}.weight": up, f"{module}.{parts[1]}.weight": down}
        if is_xl:
            state[f"{module}.alpha"] = torch.tensor(1.0)
    path = tiny.folder / "mine.safetensors"
    save_file(state, path, metadata=XL if is_xl else {})
    sha256 = sha256_of(path)
    path.replace(tiny.folder / "loras" / f"{sha256}.safetensors")
    ref = LoraRef(name="mine", sha256=sha256, weight=0.8)
    return tiny.folder / "loras" / f"{sha256}.safetensors", ref


def draw(tiny: Tiny, *refs: LoraRef) -> bytes:
    applied = tiny.model.use_loras(refs)
    assert all(one.unmatched_keys == 0 and one.matched_keys > 0 for one in applied)
    picture = tiny.draw(num_inference_steps=STEPS, guidance_scale=3.0, loras=refs)
    tiny.model.use_loras([])
    return picture.tobytes()


def test_lora_acts_as_it_does_in_diffusers(tiny: Tiny) -> None:
    path, ref = write(tiny, with_text=False)
    is_xl = tiny.row.family == "sdxl"
    pipeline = tiny.pipeline(StableDiffusionXLPipeline if is_xl else ZImagePipeline)
    pipeline.load_lora_weights(str(path), adapter_name="mine")
    pipeline.set_adapters("mine", 0.8)
    more = {} if is_xl else {"max_sequence_length": 32}
    same = pipeline(
        "a cat on a mat", num_inference_steps=STEPS, guidance_scale=3.0 if is_xl else 0.0,
        generator=generator(), **SIZE, **more,
    ).images[0]  # fmt: skip
    ours = torch.frombuffer(bytearray(draw(tiny, ref)), dtype=torch.uint8).int()
    theirs = torch.frombuffer(bytearray(same.tobytes()), dtype=torch.uint8).int()
    assert (ours - theirs).abs().max() <= 1
    assert draw(tiny, ref) != draw(tiny)


def test_lora_of_weight_0_and_none_draw_as_without(tiny: Tiny) -> None:
    _, ref = write(tiny)
    before = draw(tiny)
    with_it = draw(tiny, ref)
    without = LoraRef(name="mine", sha256=ref.sha256, weight=0.0)
    assert draw(tiny, without) == draw(tiny) == before != with_it
    assert draw(tiny, ref) == with_it


def test_lora_of_sdxls_text_encoders_changes_both(tmp_path: Path, tiny: Tiny) -> None:
    path, _ = write(tiny)
    layers = convert(path, Family(tiny.row.family)).layers
    texts = {name.partition(".")[0] for name in layers if name.startswith("text")}
    assert texts == ({"text_encoder", "text_encoder_2"} if tiny.row.family == "sdxl" else set())


def test_z_images_fused_attention_is_three_layers_that_share_their_input(tmp_path: Path) -> None:
    up, down = factors(96, 32, 1)
    path = tmp_path / "a.safetensors"
    name = "diffusion_model.layers.0.attention.qkv"
    other = "diffusion_model.layers.0.attention.to_out.0"
    state = {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}
    a, b = factors(32, 32, 2)
    save_file(state | {f"{other}.lora_B.weight": a, f"{other}.lora_A.weight": b}, path)
    layers = convert(path, Family.Z_IMAGE).layers
    for index, projection in enumerate(("to_q", "to_k", "to_v")):
        factor = layers[f"transformer.layers.0.attention.{projection}"]
        assert torch.equal(factor.up, up[32 * index : 32 * index + 32])
        assert torch.equal(factor.down, down)
