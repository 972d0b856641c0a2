"""Where a module's weight belongs in diffusers' FLUX.2, by the names of Black Forest Labs' code.

FLUX.2's blocks have other layers than FLUX.1's of the same names: a single block's `linear1` is one layer
in diffusers too, and the MLPs are gated. q, k and v of a double block share A and have their rows of B.
Source: diffusers 0.42.1 `_convert_non_diffusers_flux2_lora_to_diffusers`.
"""

from __future__ import annotations

import re

import torch

Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]  # layer: up (out, r), down (r, in)

_QKV = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_IN_DOUBLE = {
    "img_attn_proj": "attn.to_out.0",
    "txt_attn_proj": "attn.to_add_out",
    "img_mlp_0": "ff.linear_in",
    "img_mlp_2": "ff.linear_out",
    "txt_mlp_0": "ff_context.linear_in",
    "txt_mlp_2": "ff_context.linear_out",
}
_IN_SINGLE = {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"}
_ONCE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in_in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in_out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "guidance_in_in_layer": "time_guidance_embed.guidance_embedder.linear_1",
    "guidance_in_out_layer": "time_guidance_embed.guidance_embedder.linear_2",
    "final_layer_linear": "proj_out",
    "final_layer_adaLN_modulation_1": "norm_out.linear",
    "single_stream_modulation_lin": "single_stream_modulation.linear",
    "double_stream_modulation_img_lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt_lin": "double_stream_modulation_txt.linear",
}
# The same layers by diffusers' own names, with underscores for dots.
IN_BLOCKS = {
    name.replace(".", "_"): name
    for name in (*_IN_DOUBLE.values(), *_IN_SINGLE.values(), *sum(_QKV.values(), ()))
}
ONCE = {name.replace(".", "_"): name for name in _ONCE.values()}

_DOUBLE = re.compile(r"double_blocks_(\d+)_(.+)")
_SINGLE = re.compile(r"single_blocks_(\d+)_(.+)")
_APART = re.compile(r"((?:img|txt)_attn_qkv)_([012])")


def from_bfl(path: str, up: torch.Tensor, down: torch.Tensor) -> Pairs:
    """The layers of a module; empty if nobody knows it. Raises ValueError for rows that do not divide."""
    once = _ONCE.get(path) or ONCE.get(path)  # both call the modulations nearly the same
    if once is not None:
        return {f"transformer.{once}": (up, down)}
    if (single := _SINGLE.fullmatch(path)) and single[2] in _IN_SINGLE:
        name = f"transformer.single_transformer_blocks.{single[1]}.{_IN_SINGLE[single[2]]}"
        return {name: (up, down)}
    double = _DOUBLE.fullmatch(path)
    if double is None:
        return {}
    prefix, part = f"transformer.transformer_blocks.{double[1]}.", double[2]
    if part in _IN_DOUBLE:
        return {prefix + _IN_DOUBLE[part]: (up, down)}
    if apart := _APART.fullmatch(part):  # q, k and v are modules of their own
        return {prefix + _QKV[apart[1]][int(apart[2])]: (up, down)}
    if part not in _QKV:
        return {}
    if up.shape[0] % 3:
        raise ValueError(f"{up.shape[0]} outputs are not q, k and v of one size")
    return {prefix + name: (rows, down) for name, rows in zip(_QKV[part], up.chunk(3), strict=True)}
