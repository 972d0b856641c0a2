"""Layers of Stable Diffusion's U-Net and of Z-Image's transformer, from names with underscores for dots.

Stability's code counts a U-Net's parts through, three to a block on the way down and up; a part with
attention is the second of its kind there. diffusers counts blocks, and in each those with attention.

    input_blocks_4_1     down_blocks.1.attentions.0        4 = 1 + 3 · 1 + 0
    middle_block_1       mid_block.attentions.0
    output_blocks_5_1    up_blocks.1.attentions.2          5 = 3 · 1 + 2
"""

from __future__ import annotations

import re

_UNET_PATH = re.compile(
    r"(?:(?P<way>down|up)_blocks_(?P<block>\d)_attentions_(?P<part>\d)|(?P<mid>mid_block_attentions_0)"
    r"|(?P<old>input|output)_blocks_(?P<number>\d+)_1|(?P<middle>middle_block_1))_(?P<layer>.+)"
)
_IN_A_TRANSFORMER = {
    f"attn{attention}_to_{name}": f"attn{attention}.to_{name.replace('_', '.')}"
    for attention in (1, 2)
    for name in ("q", "k", "v", "out_0")
} | {"ff_net_0_proj": "ff.net.0.proj", "ff_net_2": "ff.net.2"}

_Z_IMAGE_PATH = re.compile(r"(layers|noise_refiner|context_refiner)_(\d+)_(.+)")
_IN_A_LAYER = {
    "attention_to_q": ("attention.to_q",),
    "attention_to_k": ("attention.to_k",),
    "attention_to_v": ("attention.to_v",),
    "attention_qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),  # rows in this order
    "attention_to_out_0": ("attention.to_out.0",),
    "attention_out": ("attention.to_out.0",),
    "feed_forward_w1": ("feed_forward.w1",),
    "feed_forward_w2": ("feed_forward.w2",),
    "feed_forward_w3": ("feed_forward.w3",),
    "adaLN_modulation_0": ("adaLN_modulation.0",),
}
_ONCE = {
    "cap_embedder_1": "cap_embedder.1",
    "t_embedder_mlp_0": "t_embedder.mlp.0",
    "t_embedder_mlp_2": "t_embedder.mlp.2",
}


def unet_layer(path: str) -> str | None:
    """diffusers' name of a U-Net's layer; None for one that it has not."""
    found = _UNET_PATH.fullmatch(path)
    if found is None:
        return None
    if found["mid"] or found["middle"]:
        block = "mid_block.attentions.0"
    elif found["way"]:
        block = f"{found['way']}_blocks.{found['block']}.attentions.{found['part']}"
    else:
        is_down = found["old"] == "input"
        number, part = divmod(int(found["number"]) - is_down, 3)
        block = f"{'down' if is_down else 'up'}_blocks.{number}.attentions.{part}"
    if found["layer"] in ("proj_in", "proj_out"):
        return f"{block}.{found['layer']}"
    inner = re.fullmatch(r"transformer_blocks_(\d+)_(.+)", found["layer"])
    if inner is None or inner[2] not in _IN_A_TRANSFORMER:
        return None
    return f"{block}.transformer_blocks.{inner[1]}.{_IN_A_TRANSFORMER[inner[2]]}"


def z_image_layers(path: str) -> tuple[str, ...]:
    """diffusers' names of the layers that a module of Z-Image is, in the order of its rows."""
    if path in _ONCE:
        return (_ONCE[path],)
    found = _Z_IMAGE_PATH.fullmatch(path)
    if found is None:
        return ()
    return tuple(f"{found[1]}.{found[2]}.{name}" for name in _IN_A_LAYER.get(found[3], ()))
