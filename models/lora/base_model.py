"""Which model a LoRA was made for, from the names and shapes of its modules.

Most families have names of their own. FLUX.1 and FLUX.2 share many; there the proportions decide. In
units of the hidden size d (3072 for FLUX.1 and FLUX.2 Klein 4B, 4096 for Klein 9B, 6144 for FLUX.2 dev):

                          FLUX.1              FLUX.2
    linear1               d -> 3d + 4d        d -> 3d + 6d    (its MLPs are gated and 3d wide)
    linear2               d + 4d -> d         d + 3d -> d
    MLP in, out           4d                  6d, 3d
    modulation            in every block      one for all blocks
    text embeddings       4096 (T5)           7680, 12288, 15360 (layers of a language model)

Where only attention of the double blocks is touched, which is alike, the file's metadata is asked, then
how many blocks there are: 19 and 38 in FLUX.1, 5 and 20 in Klein 4B, 8 and 24 in Klein 9B. diffusers gives
HunyuanVideo, Qwen-Image and Stable Diffusion 3 the names it gives FLUX.1; they have more blocks, or other sizes.
Sources: diffusers `transformer_flux.py`, `transformer_flux2.py` and the models' published configs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from models.lora.keys import Place, Style


class Family(StrEnum):
    """Architectures, as `family` in the catalog of models has them."""

    FLUX1 = "flux1"
    FLUX2 = "flux2"
    SDXL = "sdxl"
    Z_IMAGE = "z-image"
    OTHER = "other"  # a known model that none here is like
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Base:
    """A base model: its family, its name for people, the hidden size of its transformer if seen."""

    family: Family
    name: str
    hidden_size: int | None = None


# (out, in) of a module's weight; None where the file does not show it.
Shape = tuple[int | None, int | None]

_Z_IMAGE_OR_LUMINA = "Z-Image or Lumina 2"
_STRANGERS = (
    (r"(?:down|up)_blocks_\d|mid_block_|(?:input|output)_blocks_\d|middle_block_", "Stable Diffusion"),
    (r"joint_blocks_\d", "Stable Diffusion 3"),
    (r"(?:noise|context)_refiner_\d", _Z_IMAGE_OR_LUMINA),
    (r"layers_\d+_(?:attention|feed_forward|adaLN_modulation|ffn_norm)", _Z_IMAGE_OR_LUMINA),
    (r"(?:transformer_)?blocks_\d+_(?:self_attn|cross_attn|ffn)_", "Wan"),
    (r"blocks_\d+_attn[12]_", "LTX-Video or PixArt"),
    (r"transformer_blocks_\d+_(?:img|txt)_(?:mlp|mod)_", "Qwen-Image"),
    (r"_blocks_\d+_(?:img|txt)_(?:mlp_fc|mod_linear)|individual_token_refiner", "HunyuanVideo"),
    (r"(?:double|single)_stream_blocks_\d", "HiDream"),
    (r"distilled_guidance_layer", "Chroma"),
    (r"mode_blocks_\d|single_blocks_\d+_(?:[qkv]_proj|attn_out|mlp_in)", "FLUX.3"),
)  # fmt: skip
_STABLE_DIFFUSION = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2", 2048: "SDXL"}

_STABLE_DIFFUSIONS = ("Stable Diffusion", "SDXL")
_Z_IMAGE_HIDDEN, _LUMINA_HIDDEN = 3840, 2304
_STABLE_DIFFUSION_3 = (1536, 2432)  # hidden sizes of medium and large

_ONLY_FLUX1 = re.compile(
    r"transformer_blocks_\d+_(?:proj_mlp|proj_out|norm_linear|norm1_linear|norm1_context_linear"
    r"|ff_net_.*|ff_context_net_.*)|time_text_embed_.*|vector_in_.*"
    r"|_blocks_\d+_(?:(?:img|txt)_mod_lin|modulation_lin)"
)
_ONLY_FLUX2 = re.compile(
    r"to_qkv_mlp_proj|ff_(?:context_)?linear_(?:in|out)|stream_modulation|time_guidance_embed"
    r"|single_transformer_blocks_\d+_attn_to_out|attn_to_(?:added_)?qkv$"
)
_FLUX2_NAMES = {3072: "FLUX.2 Klein 4B", 4096: "FLUX.2 Klein 9B", 6144: "FLUX.2 dev"}
_TEXT_WIDTHS = {4096: Family.FLUX1, 7680: Family.FLUX2, 12288: Family.FLUX2, 15360: Family.FLUX2}

# End of a path: (side of the weight that is d, ratios of the other side for FLUX.1 and for FLUX.2)
_PROPORTIONS = (
    (re.compile(r"single_blocks_\d+_linear1$"), 1, 7, 9),
    (re.compile(r"single_blocks_\d+_linear2$"), 0, 5, 4),
    (re.compile(r"_(?:img|txt)_mlp_0$"), 1, 4, 6),
    (re.compile(r"_(?:img|txt)_mlp_2$"), 0, 4, 3),
)
_HIDDEN_IN = re.compile(
    r"(?:attn_qkv|linear1|to_[qkv]|add_[qkv]_proj|proj_mlp|mlp_0|net_0_proj|mod_lin|norm1?_linear"
    r"|to_qkv_mlp_proj|linear_in|qkv_lora[12]?)$"
)
_HIDDEN_OUT = re.compile(
    r"(?:attn_proj|attn_to_out|to_out_0|to_add_out|linear2|mlp_2|net_2|img_in|txt_in|_embedder|linear_out"
    r"|proj_lora[12]?)$"
)


def detect(modules: Mapping[str, tuple[Place, Shape]], metadata: Mapping[str, str]) -> Base:
    """The base of a file with these modules, by name."""
    stranger = _stranger(modules)
    if any(text.startswith("chroma") for text in _names_told(metadata)):
        stranger = "Chroma"  # made from FLUX.1, and alike in names and shapes
    if stranger == _Z_IMAGE_OR_LUMINA:
        return _z_image(modules)
    if stranger in _STABLE_DIFFUSIONS and _is_sdxl(stranger, modules, metadata):
        return Base(Family.SDXL, "SDXL")
    if stranger:
        return Base(Family.OTHER, stranger)
    parts = [
        (place.path, shape)
        for place, shape in modules.values()
        if place.style in (Style.BFL, Style.DIFFUSERS, Style.XLABS)
    ]
    if not parts:
        only_text = any(place.style in (Style.CLIP, Style.T5) for place, _ in modules.values())
        told = _told(metadata) if only_text else None
        return Base(told or Family.UNKNOWN, "FLUX.1" if told is Family.FLUX1 else "unknown")
    hidden = _hidden_size(parts)
    double, single = _last_blocks(parts)
    family = _by_structure(parts) or _told(metadata) or _by_counts(double, single, hidden)
    if family is Family.FLUX1 and (double > 18 or single > 37):  # diffusers names these alike
        many = "HunyuanVideo, Qwen-Image or another model with more blocks than FLUX"
        return Base(Family.OTHER, many, hidden)
    if family is Family.FLUX1 and single < 0 and hidden in _STABLE_DIFFUSION_3:
        return Base(Family.OTHER, "Stable Diffusion 3", hidden)
    name = "FLUX.1" if family is Family.FLUX1 else _FLUX2_NAMES.get(hidden, "FLUX.2")
    return Base(family, name, hidden)


def _stranger(modules: Mapping[str, tuple[Place, Shape]]) -> str | None:
    for pattern, name in _STRANGERS:
        found = [module for module in modules if re.search(pattern, module.replace(".", "_"))]
        if not found:
            continue
        if name != "Stable Diffusion":
            return name
        widths = {
            modules[module][1][1] for module in found if re.search(r"attn2[._]to[._][kv]", module)
        }
        return next((_STABLE_DIFFUSION[width] for width in widths & set(_STABLE_DIFFUSION)), name)
    return None


def _z_image(modules: Mapping[str, tuple[Place, Shape]]) -> Base:
    """Z-Image and Lumina 2 have blocks of the same names; what differs are a few names and the width."""
    flat = [module.replace(".", "_") for module in modules]
    hidden = next(
        (
            columns
            for module, (_, (_, columns)) in modules.items()
            if re.search(r"attention[._](?:to[._][qkv]|qkv)$|w[13]$", module) and columns
        ),
        None,
    )
    if any(re.search(r"attention_to_|adaLN_modulation_0$", name) for name in flat):
        return Base(Family.Z_IMAGE, "Z-Image", hidden)
    if hidden == _Z_IMAGE_HIDDEN:
        return Base(Family.Z_IMAGE, "Z-Image", hidden)
    return Base(
        Family.OTHER, "Lumina 2" if hidden == _LUMINA_HIDDEN else _Z_IMAGE_OR_LUMINA, hidden
    )


def _is_sdxl(
    name: str, modules: Mapping[str, tuple[Place, Shape]], metadata: Mapping[str, str]
) -> bool:
    """Whether a Stable Diffusion is XL: by the width of its text, its second text encoder, or its words."""
    has_second = any(place.style is Style.CLIP_G for place, _ in modules.values())
    told = any("stablediffusionxl" in text or "sdxl" in text for text in _names_told(metadata))
    return name == "SDXL" or has_second or told


def _hidden_size(parts: list[tuple[str, Shape]]) -> int | None:
    for path, (_, columns) in parts:
        if "_block" in path and _HIDDEN_IN.search(path) and columns:
            return columns
    for path, (rows, _) in parts:
        if _HIDDEN_OUT.search(path) and rows:
            return rows
    return None


def _by_structure(parts: list[tuple[str, Shape]]) -> Family | None:
    """What names and proportions say, where they say it."""
    for path, shape in parts:
        if _ONLY_FLUX2.search(path):
            return Family.FLUX2
        if _ONLY_FLUX1.search(path):
            return Family.FLUX1
        for pattern, side, flux1, flux2 in _PROPORTIONS:
            if not pattern.search(path) or not shape[0] or not shape[1]:
                continue
            if shape[1 - side] == flux1 * shape[side]:
                return Family.FLUX1
            if shape[1 - side] == flux2 * shape[side]:
                return Family.FLUX2
        if re.fullmatch(r"txt_in|context_embedder", path) and shape[1] in _TEXT_WIDTHS:
            return _TEXT_WIDTHS[shape[1]]
    takes = {shape[1] for path, shape in parts if path in ("img_in", "x_embedder")}
    return Family.FLUX2 if takes == {128} else None  # FLUX.1 takes 64 channels


def _told(metadata: Mapping[str, str]) -> Family | None:
    """What the trainer wrote about the base model."""
    for text in _names_told(metadata):
        if "flux2" in text or "klein" in text:
            return Family.FLUX2
        if "flux" in text:
            return Family.FLUX1
    return None


def _names_told(metadata: Mapping[str, str]) -> list[str]:
    keys = (
        "modelspec.architecture", "ss_base_model_version", "base_model", "ss_sd_model_name",
        "model_type", "ot_model_type", "modelspec.implementation",
    )  # fmt: skip
    return [re.sub(r"[^a-z0-9]", "", metadata.get(key, "").lower()) for key in keys]


def _last_blocks(parts: list[tuple[str, Shape]]) -> tuple[int, int]:
    """The highest number of a double and of a single block; -1 where there is none."""

    def last(kind: str) -> int:
        found = (re.match(kind, path) for path, _ in parts)
        return max((int(match[1]) for match in found if match), default=-1)

    double = last(r"(?:double_blocks|transformer_blocks)_(\d+)")
    return double, last(r"single_(?:transformer_)?blocks_(\d+)")


def _by_counts(double: int, single: int, hidden: int | None) -> Family:
    """Last resort: how many blocks there are, and how wide they are."""
    if hidden in (4096, 6144) or (hidden == 3072 and double == 4 and single in (-1, 19)):
        return Family.FLUX2
    return Family.FLUX1
