"""Where a module's weight belongs in diffusers' models, FLUX.1 above all, and which part of it where.

diffusers' own converters answer that, asked for one module at a time. Two things are adapted:

- they know one size of fused layer, FLUX.1's: `linear1` of a narrower model is filled up with zero
  rows to that size, and what comes out is cut again;
- names that are diffusers' with underscores for dots are looked up in a table, because the converter
  for them leaves out what comes after a block's number for everything but attention.

A fused layer's q, k and v share A and have their rows of B.
Source: diffusers 0.42.1 `loaders/lora_conversion_utils.py`, `utils/state_dict_utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux_lora_to_diffusers,
    _convert_xlabs_flux_lora_to_diffusers,
)
from diffusers.utils.state_dict_utils import StateDictType, convert_state_dict_to_peft

from models.lora import flux2
from models.lora.base_model import Family
from models.lora.dotted import unet_layer, z_image_layers
from models.lora.keys import Place, Style

# What a block of FluxTransformer2DModel has, and what the model has once; by name with underscores.
_IN_BLOCKS = {
    name.replace(".", "_"): name
    for name in (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
        "attn.add_v_proj", "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj",
        "ff_context.net.2", "norm1.linear", "norm1_context.linear", "norm.linear", "proj_mlp", "proj_out",
    )
}  # fmt: skip
_ONCE = {
    name.replace(".", "_"): name
    for name in (
        "x_embedder", "context_embedder", "norm_out.linear", "proj_out",
        "time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2",
        "time_text_embed.guidance_embedder.linear_1", "time_text_embed.guidance_embedder.linear_2",
        "time_text_embed.text_embedder.linear_1", "time_text_embed.text_embedder.linear_2",
    )
}  # fmt: skip
_T5 = re.compile(
    r"encoder_block_(\d+)_layer_(\d+)_(SelfAttention|DenseReluDense)_(q|k|v|o|wi|wi_0|wi_1|wo)"
)
_FLUX1_HIDDEN = 3072
_FLUX1_MLP = 4 * _FLUX1_HIDDEN
_APART = re.compile(r"(.+_(?:qkv|linear1))_(\d)")

Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]  # layer: up (out, r), down (r, in)


def targets(
    module: str,
    place: Place,
    up: torch.Tensor,
    down: torch.Tensor,
    family: Family = Family.FLUX1,
) -> Pairs:
    """The layers a module's weight up (out, r) · down (r, in) belongs to in a model of a family.

    Layers are named component first.

    Empty if nobody knows the module. Raises ValueError or what else a converter raises where the
    shapes are not those of such a layer.
    """
    match place.style:
        case Style.BFL if family is Family.FLUX2:
            return flux2.from_bfl(place.path, up, down)
        case Style.BFL:
            return _from_bfl(place.path, up, down)
        case Style.XLABS:
            return _from_xlabs(module, up, down)
        case Style.CLIP:
            return _from_clip(place.path, up, down)
        case Style.CLIP_G:
            pairs = _from_clip(place.path, up, down)
            first, second = "text_encoder.", "text_encoder_2.text_model."
            return {second + name.removeprefix(first): pair for name, pair in pairs.items()}
        case Style.UNET:
            name = unet_layer(place.path)
            return {f"unet.{name}": (up, down)} if name else {}
        case Style.Z_IMAGE:
            return _from_z_image(place.path, up, down)
        case Style.T5:
            found = _T5.fullmatch(place.path)
            name = found and "text_encoder_2.encoder.block.{}.layer.{}.{}.{}".format(
                *found.groups()
            )
            return {name: (up, down)} if name else {}
        case Style.DIFFUSERS:
            return _from_diffusers(place.path, up, down)
        case _:
            return {}


def _from_diffusers(path: str, up: torch.Tensor, down: torch.Tensor) -> Pairs:
    in_blocks, once = _IN_BLOCKS | flux2.IN_BLOCKS, _ONCE | flux2.ONCE
    block = re.fullmatch(r"((?:single_)?transformer_blocks)_(\d+)_(.+)", path)
    if block and block[3] in in_blocks:
        return {f"transformer.{block[1]}.{block[2]}.{in_blocks[block[3]]}": (up, down)}
    return {f"transformer.{once[path]}": (up, down)} if path in once else {}


def _from_z_image(path: str, up: torch.Tensor, down: torch.Tensor) -> Pairs:
    names = z_image_layers(path)
    if names and up.shape[0] % len(names):
        raise ValueError(f"{up.shape[0]} outputs are not {len(names)} layers of one size")
    ups = up.chunk(len(names)) if names else ()
    return {f"transformer.{name}": (rows, down) for name, rows in zip(names, ups, strict=True)}


def _from_bfl(path: str, up: torch.Tensor, down: torch.Tensor) -> Pairs:
    apart = _APART.fullmatch(path)
    if apart:  # q, k and v are modules of their own: ask where the whole would go, take one
        pairs = _from_bfl(apart[1], *_probe(apart[1], down))
        names = list(pairs)[int(apart[2]) : int(apart[2]) + 1]
        return {name: (up, down) for name in names}
    hidden, whole = down.shape[1], up
    fused = path.endswith("_linear1")
    if fused and hidden < _FLUX1_HIDDEN:
        mlp = up.shape[0] - 3 * hidden
        if not 0 < mlp <= _FLUX1_MLP:
            raise ValueError(f"{up.shape[0]} outputs are not q, k, v of {hidden} each and an MLP")
        widths = [_FLUX1_HIDDEN] * 3 + [_FLUX1_MLP]
        pieces = up.split([hidden] * 3 + [mlp])
        whole = torch.cat([_fill(p, width) for p, width in zip(pieces, widths, strict=True)])
    pairs = _by_converter(f"lora_unet_{path}", whole, down)
    if not fused or whole is up:
        return pairs
    cut = {name: mlp if name.endswith("proj_mlp") else hidden for name in pairs}
    return {name: (b[: cut[name]], a) for name, (b, a) in pairs.items()}


def _probe(path: str, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = 7 if path.endswith("_linear1") else 3
    return down.new_ones(rows * 8, 1), down.new_ones(1, 8)


def _fill(rows: torch.Tensor, count: int) -> torch.Tensor:
    return torch.cat([rows, rows.new_zeros(count - rows.shape[0], rows.shape[1])])


def _from_clip(path: str, up: torch.Tensor, down: torch.Tensor) -> Pairs:
    state = _convert_kohya_flux_lora_to_diffusers(_kohya(f"lora_te1_text_model_{path}", up, down))
    found = _pairs(convert_state_dict_to_peft(state, StateDictType.DIFFUSERS_OLD)) if state else {}
    # transformers 5 has CLIP's encoder without a text_model around it.
    return {
        name.replace("text_encoder.text_model.", "text_encoder."): p for name, p in found.items()
    }


def _from_xlabs(module: str, up: torch.Tensor, down: torch.Tensor) -> Pairs:
    module = module[
        module.index("double_blocks" if "double_blocks" in module else "single_blocks") :
    ]
    return _pairs(
        _convert_xlabs_flux_lora_to_diffusers(
            {f"{module}.down.weight": down, f"{module}.up.weight": up}
        )
    )


def _by_converter(module: str, up: torch.Tensor, down: torch.Tensor) -> Pairs:
    try:
        return _pairs(_convert_kohya_flux_lora_to_diffusers(_kohya(module, up, down)))
    except ValueError as error:
        if "Incompatible keys" in str(error):  # how the converter says that it does not know a name
            return {}
        raise


def _kohya(module: str, up: torch.Tensor, down: torch.Tensor) -> dict[str, torch.Tensor]:
    # Alpha as the rank makes the converter's scale exactly 1; its own default is rounded to the
    # weights' dtype, in which a large rank need not exist.
    alpha = torch.tensor(float(down.shape[0]))
    return {
        f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up, f"{module}.alpha": alpha
    }  # fmt: skip


def _pairs(state: Mapping[str, torch.Tensor]) -> Pairs:
    """Layers of a state dict in diffusers' names; the converters leave some prefixes out."""
    pairs = {}
    for key, down in state.items():
        name = key.removesuffix(".lora_A.weight")
        if name == key:
            continue
        prefix = "" if name.startswith(("transformer.", "text_encoder.")) else "transformer."
        pairs[prefix + name] = (state[f"{name}.lora_B.weight"], down)
    return pairs
