"""How files name the tensors of a LoRA: a tensor's name is a module's name and a part's.

    lora_unet_double_blocks_0_img_attn_qkv .lora_down.weight         Kohya, and OneTrainer's "BFL" export
    double_blocks.0.processor.qkv_lora1    .down.weight              XLabs
    diffusion_model.double_blocks.0.img_attn.qkv .lora_A.weight      BFL, AI-Toolkit, ComfyUI
    transformer.transformer_blocks.0.attn.to_q   .lora_A.weight      diffusers; PEFT with base_model.model.
    lora_transformer_transformer_blocks_0_attn_to_q .lora_down.weight  OneTrainer
    lora_te1_text_model_encoder_layers_0_mlp_fc1 .lora_down.weight   CLIP by Kohya and OneTrainer
    lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k .lora_down.weight  SDXL by Stability's names
    diffusion_model.layers.0.attention.to_q      .lora_A.weight      Z-Image

Module names are compared with dots written as underscores, because half of the trainers write them so.
No torch: inspection uses this in the API process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Naming(StrEnum):
    """Whose names the modules of a file have."""

    DIFFUSERS = "diffusers"  # also PEFT and newer AI-Toolkit
    KOHYA = "kohya"  # lora_unet_ and the names of Black Forest Labs' code
    XLABS = "xlabs"  # attention processors
    BFL = "bfl"  # the names of Black Forest Labs' code with dots; AI-Toolkit, ComfyUI
    ONETRAINER = "onetrainer"  # diffusers' names with underscores, or BFL's with q, k and v apart
    LYCORIS = "lycoris"  # diffusers' names with underscores
    TEXT = "text_encoder"  # CLIP or T5, by anybody
    UNKNOWN = "unknown"


class Style(StrEnum):
    """Which code the path of a module comes from."""

    BFL = "bfl"  # double_blocks, single_blocks
    DIFFUSERS = "diffusers"  # transformer_blocks, single_transformer_blocks
    XLABS = "xlabs"  # processors in BFL's blocks
    UNET = "unet"  # Stable Diffusion's blocks, by diffusers' or Stability's names
    Z_IMAGE = "z_image"  # layers and refiners
    CLIP = "clip"  # text encoder 1
    CLIP_G = "clip_g"  # text encoder 2 of SDXL
    T5 = "t5"  # text encoder 2
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module sits: `path` has no wrapper's prefix and underscores for dots."""

    naming: Naming
    style: Style
    path: str


# Parts of a module. Whatever is not here is a key we do not know.
DOWN, UP, ALPHA = "down", "up", "alpha"
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")

# What makes a file something else than the LoRA it would be without these tensors.
REFUSED_PARTS = {
    "dora": "DoRA",
    "tucker": "a LoRA of convolutions (Tucker decomposition)",
    "bias": "a LoRA with biases (lora_bias)",
    "diff": "full weight differences (diff), not a LoRA",
    "oft": "OFT",
    "boft": "BOFT",
    "ia3": "(IA)³",
    "glora": "GLoRA",
    "vera": "VeRA",
    "controlnet": "a Control-LoRA",
    "norm": "norm weights (a FLUX.1 Depth, Canny or Fill control LoRA)",
    "checkpoint": "weights of a whole model, not a LoRA",
}

_ADAPTER = r"(?:\.[A-Za-z0-9_-]+)?"  # PEFT may write the adapter's name: lora_A.default.weight
_ENDINGS = {
    DOWN: rf"\.lora_A{_ADAPTER}\.weight|\.lora[._]down\.weight|\.lora_linear_layer\.down\.weight"
    r"|\.lora_A|\.lora_down|(?<=_lora)\.down\.weight|(?<=_lora[12])\.down\.weight",
    UP: rf"\.lora_B{_ADAPTER}\.weight|\.lora[._]up\.weight|\.lora_linear_layer\.up\.weight"
    r"|\.lora_B|\.lora_up|(?<=_lora)\.up\.weight|(?<=_lora[12])\.up\.weight",
    ALPHA: r"\.(?:lora_)?alpha",
    **{part: rf"\.{part}{_ADAPTER}" for part in (*LOKR, *LOHA)},
    "dora": rf"\.dora_scale|\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?",
    "tucker": r"\.lora_mid\.weight|\.lokr_t2|\.hada_t[12]",
    "bias": rf"\.lora_B{_ADAPTER}\.bias|\.lora_up\.bias",
    "diff": r"\.diff(?:_b)?|\.[wb]_norm",
    "oft": r"\.oft_.+",
    "boft": r"\.boft_.+",
    "ia3": r"\.on_input|\.ia3_l.*",
    "glora": r"\.[ab][12]\.weight",
    "vera": r"\.vera_lambda_[bd].*",
    "norm": r"\.(?:query|key)_norm\.scale|\.norm_(?:added_)?[qk]\.weight",
    "checkpoint": r"\.(?:weight|bias|scale)",
}
_ENDING = re.compile("|".join(f"(?P<{part}>{ending})" for part, ending in _ENDINGS.items()))
_LONGEST_ENDING = 4  # dots

_WRAPPERS = (
    ("lycoris_", Naming.LYCORIS),
    ("lora_unet_", Naming.KOHYA),
    ("lora_transformer_", Naming.ONETRAINER),
    ("base_model_model_transformer_", None),
    ("base_model_model_diffusion_model_", None),
    ("base_model_model_", None),
    ("model_diffusion_model_", None),
    ("diffusion_model_", None),
    ("transformer_", None),
    ("unet_", None),
    ("", None),
)
_BFL = re.compile(
    r"(?:(?:double|single)_blocks_\d+_.+|(?:img|txt)_in|(?:time|vector|guidance)_in_(?:in|out)_layer"
    r"|final_layer_(?:linear|adaLN_modulation_1)|(?:single_stream|double_stream)_modulation.*)"
)
_DIFFUSERS = re.compile(
    r"(?:(?:single_)?transformer_blocks_\d+_.+|x_embedder|context_embedder|time_text_embed_.+"
    r"|time_guidance_embed_.+|norm_out_linear|proj_out|(?:single|double)_stream_modulation.*)"
)
_UNET = re.compile(
    r"(?:(?:down|up)_blocks_\d_attentions_\d|mid_block_attentions_0|(?:input|output)_blocks_\d+_1"
    r"|middle_block_1)_(?:proj_(?:in|out)|transformer_blocks_\d+_(?:attn[12]_to_(?:[qkv]|out_0)"
    r"|ff_net_(?:0_proj|2)))"
)
_Z_IMAGE = re.compile(
    r"(?:layers|noise_refiner|context_refiner)_\d+_(?:attention_(?:to_[qkv]|to_out_0|qkv|out)"
    r"|feed_forward_w[123]|adaLN_modulation_0)|cap_embedder_1|t_embedder_mlp_[02]"
)
_CLIP_G = re.compile(r"(?:lora_te2_|text_encoder_2_)(?:text_model_)?(encoder_layers_\d+_.+)")
_CLIP = re.compile(
    r"(?:lora_te_|lora_te1_|text_encoder_(?!2_)|text_encoders_clip_l_transformer_|clip_l_)"
    r"(?:text_model_)?((?:encoder_layers|embeddings|text_projection).*)"
)
_T5 = re.compile(
    r"(?:lora_te[23]_|text_encoder_2_|text_encoders_t5xxl_transformer_|t5_|t5xxl_)"
    r"((?:encoder_block|shared).*)"
)
_APART = re.compile(r"(?:double_blocks_\d+_(?:img|txt)_attn_qkv|single_blocks_\d+_linear1)_\d")


def split(name: str) -> tuple[str, str | None]:
    """A tensor's name as (module, part); part is None for a name that belongs to no LoRA."""
    if name == "lora_controlnet":  # a mark in Control-LoRAs, not weights
        return name, "controlnet"
    dots, at = [], len(name)
    while len(dots) < _LONGEST_ENDING and (at := name.rfind(".", 0, at)) > 0:
        dots.append(at)
    for at in reversed(dots):
        match = _ENDING.fullmatch(name, at)
        if match:
            return name[:at], match.lastgroup
    return name, None


def group(names: Iterable[str]) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """Tensor names as {module: {part: name}}, and the names that belong to none."""
    modules: dict[str, dict[str, str]] = {}
    unknown = []
    for name in names:
        module, part = split(name)
        if part is None or part in modules.get(module, {}):
            unknown.append(name)
        else:
            modules.setdefault(module, {})[part] = name
    return modules, tuple(unknown)


def place(module: str) -> Place:
    """Where a module sits, by its name alone."""
    flat = module.replace(".", "_")
    for pattern, style in ((_CLIP, Style.CLIP), (_CLIP_G, Style.CLIP_G), (_T5, Style.T5)):
        match = pattern.fullmatch(flat)
        if match:
            return Place(Naming.TEXT, style, match[1])
    for prefix, naming in _WRAPPERS:
        path = flat.removeprefix(prefix)
        if not flat.startswith(prefix):
            continue
        if "_processor_" in path and _BFL.fullmatch(path):
            return Place(Naming.XLABS, Style.XLABS, path)
        # OneTrainer writes q, k and v apart, under the model's own prefix.
        if _BFL.fullmatch(path):
            apart = Naming.ONETRAINER if _APART.fullmatch(path) else Naming.BFL
            return Place(naming or apart, Style.BFL, path)
        for pattern, style in (
            (_DIFFUSERS, Style.DIFFUSERS),
            (_UNET, Style.UNET),
            (_Z_IMAGE, Style.Z_IMAGE),
        ):
            if pattern.fullmatch(path):
                return Place(naming or Naming.DIFFUSERS, style, path)
    return Place(Naming.UNKNOWN, Style.UNKNOWN, flat)
