"""LoRA files in the formats that programs read.

    diffusers   transformer.transformer_blocks.0.attn.to_q .lora_A.weight          alpha in the metadata
    onetrainer  lora_transformer_transformer_blocks_0_attn_to_q .lora_down.weight  and .alpha
    kohya       lora_unet_double_blocks_0_img_attn_qkv .lora_down.weight           and .alpha
    bfl         diffusion_model.double_blocks.0.img_attn.qkv .lora_A.weight        scale within lora_B
    xlabs       double_blocks.0.processor.qkv_lora1 .down.weight                   scale within up

The last three know the model by the names of Black Forest Labs' code, in which q, k, v (and in single
blocks the MLP) are one layer. LoRAs of the parts become one of the whole without loss: A stands upon
A, and the Bs stand in a block diagonal, so the rank is the sum of the ranks.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from scripts.lora.adapter import Adapter
from scripts.lora.metadata import Description, describe, in_order

State = dict[str, torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]  # down (r, in), up (out, r)

_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
_ONCE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_XLABS_DOUBLE = {
    "img_attn.qkv": "qkv_lora1", "img_attn.proj": "proj_lora1",
    "txt_attn.qkv": "qkv_lora2", "txt_attn.proj": "proj_lora2",
}  # fmt: skip
_XLABS_SINGLE_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")


class FormatError(ValueError):
    """A format that has no name for a layer of the LoRA, or a file that cannot be written."""


def write_lora(
    path: Path,
    lora: Adapter,
    description: Description,
    *,
    form: str,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write `lora` to `path` in a format of FORMATS; equal input gives equal bytes."""
    state = FORMATS[form](lora)
    kept = {name: _stored(tensor, name, dtype) for name, tensor in state.items()}
    data = in_order(save(kept, describe(lora, description, form)))
    partial = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            partial = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o644)
        os.replace(partial, path)
    except OSError as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise FormatError(f"{path} cannot be written: {error.strerror or error}") from error


def check_form(form: str, layers: list[str]) -> None:
    """Raise FormatError where the format has no name for one of the layers."""
    nobody = torch.zeros(1, 1)
    FORMATS[form](
        Adapter(
            factors=dict.fromkeys(layers, (nobody, nobody)),
            outputs=_Ones(),
            rank=1,
            alpha=1.0,
        )
    )


def check_output(path: Path) -> None:
    """Raise FormatError where a file could not be written, before hours are spent on it."""
    if path.suffix != ".safetensors":
        raise FormatError(f"{path} must end in .safetensors, the format that it is written in")
    if path.is_dir():
        raise FormatError(f"{path} is a folder; give a file name ending in .safetensors")
    check_folder(path.parent, "--output")


def check_folder(folder: Path, option: str) -> None:
    """Make `folder`; raise FormatError, naming the option it came from, if nothing can be put there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FormatError(
            f"{folder} cannot be written to ({error.strerror or error}); choose another {option}"
        ) from error


class _Ones(dict[str, int]):
    def __missing__(self, name: str) -> int:
        return 1


def _diffusers(lora: Adapter) -> State:
    state = {}
    for layer, (down, up) in lora.factors.items():
        state[f"transformer.{layer}.lora_A.weight"] = down
        state[f"transformer.{layer}.lora_B.weight"] = up
    return state


def _onetrainer(lora: Adapter) -> State:
    state = {}
    for layer, (down, up) in lora.factors.items():
        name = f"lora_transformer_{layer.replace('.', '_')}"
        state[f"{name}.lora_down.weight"] = down
        state[f"{name}.lora_up.weight"] = up
        state[f"{name}.alpha"] = torch.tensor(lora.alpha)
    return state


def _kohya(lora: Adapter) -> State:
    state = {}
    for name, (down, up) in _fused(lora, _SINGLE).items():
        name = f"lora_unet_{name.replace('.', '_')}"
        state[f"{name}.lora_down.weight"] = down
        state[f"{name}.lora_up.weight"] = up
        # the scale is alpha over the rank, and a fused layer has a larger one
        state[f"{name}.alpha"] = torch.tensor(lora.alpha / lora.rank * down.shape[0])
    return state


def _bfl(lora: Adapter) -> State:
    state = {}
    for name, (down, up) in _fused(lora, _SINGLE).items():
        state[f"diffusion_model.{name}.lora_A.weight"] = down
        state[f"diffusion_model.{name}.lora_B.weight"] = up * (lora.alpha / lora.rank)
    return state


def _xlabs(lora: Adapter) -> State:
    single = {"processor.qkv_lora": _XLABS_SINGLE_QKV, "processor.proj_lora": ("proj_out",)}
    state = {}
    for name, (down, up) in _fused(lora, single).items():
        block, _, layer = name.rpartition("_blocks.")[2].partition(".")
        if name.startswith("double") and layer in _XLABS_DOUBLE:
            name = f"double_blocks.{block}.processor.{_XLABS_DOUBLE[layer]}"
        elif not name.startswith("single"):
            raise FormatError(
                f"XLabs' format has no name for the layer {name}; it holds attention (and proj_out "
                "of single blocks) alone: use --layers attention, or another --format"
            )
        state[f"{name}.down.weight"] = down
        state[f"{name}.up.weight"] = up * (lora.alpha / lora.rank)
    return state


FORMATS = {
    "diffusers": _diffusers,
    "onetrainer": _onetrainer,
    "kohya": _kohya,
    "bfl": _bfl,
    "xlabs": _xlabs,
}


def _fused(lora: Adapter, single: Mapping[str, tuple[str, ...]]) -> dict[str, Pair]:
    """The LoRA by the names of Black Forest Labs' code; `single` are those in single blocks."""
    places = {}  # diffusers' layer: (BFL's name, its parts)
    for kind, blocks, table in (
        ("double_blocks", "transformer_blocks", _DOUBLE),
        ("single_blocks", "single_transformer_blocks", single),
    ):
        found = {match[1] for n in lora.factors if (match := re.match(rf"{blocks}\.(\d+)\.", n))}
        for number in sorted(found, key=int):
            for name, parts in table.items():
                whole = tuple(f"{blocks}.{number}.{part}" for part in parts)
                places |= dict.fromkeys(whole, (f"{kind}.{number}.{name}", whole))
    places |= {layer: (name, (layer,)) for name, layer in _ONCE.items()}
    unnamed = [layer for layer in lora.factors if layer not in places]
    if unnamed:
        raise FormatError(
            f"this format has no name for the layer {unnamed[0]}; choose other --layers, or "
            "--format diffusers"
        )
    fused = {}
    for name, parts in dict.fromkeys(places[layer] for layer in lora.factors):
        fused[name] = _whole(lora, parts)
        if name == "final_layer.adaLN_modulation.1":  # shift before scale, diffusers the other way
            down, up = fused[name]
            fused[name] = (down, up.roll(up.shape[0] // 2, 0))
    return fused


def _whole(lora: Adapter, parts: tuple[str, ...]) -> Pair:
    """The LoRA of several layers that are one; parts without a LoRA get rows of zeros."""
    rows = [lora.outputs[part] for part in parts]
    present = [part for part in parts if part in lora.factors]
    down = torch.cat([lora.factors[part][0] for part in present])
    up = torch.zeros(sum(rows), down.shape[0])
    top = left = 0
    for part, count in zip(parts, rows, strict=True):
        if part in lora.factors:
            piece = lora.factors[part][1]
            up[top : top + count, left : left + piece.shape[1]] = piece
            left += piece.shape[1]
        top += count
    return down, up


def _stored(tensor: torch.Tensor, name: str, dtype: torch.dtype) -> torch.Tensor:
    if name.endswith(".alpha"):
        return tensor.float()
    stored = tensor.to(dtype).contiguous()
    if not stored.isfinite().all():
        raise FormatError(f"{name} does not fit into {dtype}; use --save-dtype bfloat16 or float32")
    return stored
