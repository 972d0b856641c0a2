"""What a LoRA is: format, base model, ranks, layers, trigger words; from its header and metadata.

No weight is read but alphas, which are single numbers. A file that cannot be applied still has a
description, with `refusal` saying what it is; `require` turns that into an error.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from models.lora import keys
from models.lora.base_model import Base, Family, Shape, detect
from models.lora.errors import LoraIncompatible
from models.lora.header import Header, TensorInfo, open_regular, read_header
from models.lora.json_cursor import shown

MAX_TRIGGER_WORDS = 8
MAX_TRIGGER_CHARS = 50

# Region of the model by a module's path, in the order people are told.
_REGIONS = (
    ("attention", r"_attn1_|^(?:layers|noise_refiner|context_refiner)_\d+_attention_"),
    ("attention to the text", r"_attn2_"),
    ("MLP", r"_transformer_blocks_\d+_ff_net|feed_forward"),
    ("projections", r"(?:attentions_\d|_\d+_1|block_1)_proj_(?:in|out)$"),
    ("image attention", r"double_blocks_\d+_img_attn|^transformer_blocks_\d+_attn_to_(?!add)|lora1$"),
    ("text attention", r"double_blocks_\d+_txt_attn|_attn_(?:add_|to_add)|lora2$"),
    ("image MLP", r"_img_mlp_|^transformer_blocks_\d+_ff_(?!context)"),
    ("text MLP", r"_txt_mlp_|_ff_context_"),
    ("single blocks", r"^single_(?:transformer_)?blocks_\d+_(?!norm|modulation)"),
    ("modulation", r"_mod_lin|modulation|_norm1?_(?:context_)?linear|norm1_context|norm_out|adaLN"),
    ("embedders", r"_in(?:_|$)|embedder"),
    ("output", r"^(?:final_layer_linear|proj_out)$"),
)  # fmt: skip
_NUMBERS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B"}  # fmt: skip
_MODULES_LOOKED_AT = (
    2000  # to tell base model and regions; the largest LoRAs of FLUX have about 600
)
_SOFT_PARTS = ("diff", "checkpoint")  # left over beside a LoRA: keys that match nothing
_TRIGGER_KEYS = (
    "modelspec.trigger_phrase", "modelspec.trigger_words", "trigger_words", "trigger_word", "trigger_phrase",
    "ss_trigger_words", "activation_text", "activation text", "instance_prompt",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraInfo:
    """A LoRA in words and numbers. Ranks and alphas are the different ones, ascending."""

    format: str  # a Naming, or "lokr" or "loha"
    base: Base
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]  # empty: the file has none, and every scale is 1
    targets: tuple[str, ...]  # regions of the model, in words
    text_encoders: tuple[str, ...]  # "clip", "clip_g", "t5"
    trigger_words: tuple[str, ...]
    modules: int
    tensors: int
    size_bytes: int
    unknown_keys: tuple[str, ...]
    refusal: str | None  # why it cannot be applied to anything


def inspect(path: Path | str, header: Header | None = None) -> LoraInfo:
    """Describe a file, whose header may have been read already.

    Raises what `read_header` raises; a file nothing can apply has a `refusal`.
    """
    header = header or read_header(path)
    return describe(header, _alphas(path, header))


def describe(header: Header, alphas: Mapping[str, float]) -> LoraInfo:
    """Describe a header; `alphas` are the numbers of its alpha tensors by tensor name."""
    grouped, unknown = keys.group(header.tensors)
    placed = {
        module: (keys.place(module), _shape(parts, header)) for module, parts in grouped.items()
    }
    lora = {m: p for m, p in grouped.items() if not set(p) <= {*keys.REFUSED_PARTS, keys.ALPHA}}
    left_over = tuple(
        name
        for module, parts in grouped.items()
        for part, name in parts.items()
        if part in _SOFT_PARTS or placed[module][0].style is keys.Style.UNKNOWN
    )
    told = _adapter_config(header.metadata)
    base = detect(dict(islice(placed.items(), _MODULES_LOOKED_AT)), header.metadata)
    return LoraInfo(
        format=_format(lora, placed),
        base=base,
        ranks=tuple(sorted({rank for p in lora.values() if (rank := _rank(p, header))})),
        alphas=tuple(sorted(set(alphas.values()) or _told_alphas(header.metadata, told))),
        targets=_targets(placed, lora),
        text_encoders=tuple(
            style.value
            for style in (keys.Style.CLIP, keys.Style.CLIP_G, keys.Style.T5)
            if any(placed[module][0].style is style for module in lora)
        ),
        trigger_words=trigger_words(header.metadata),
        modules=len(lora),
        tensors=len(header.tensors),
        size_bytes=header.size_bytes,
        unknown_keys=tuple(dict.fromkeys(unknown + left_over)),
        refusal=_refusal(grouped, lora, placed, base, told, header),
    )


_FAMILY_NAMES = {
    Family.FLUX1: "FLUX.1",
    Family.FLUX2: "FLUX.2",
    Family.SDXL: "SDXL",
    Family.Z_IMAGE: "Z-Image",
}


def require(info: LoraInfo, family: Family, hidden_size: int | None = None) -> None:
    """Raise LoraIncompatible unless the LoRA can be applied to a model of this family and size."""
    if info.refusal:
        raise LoraIncompatible(info.refusal)
    if info.base.family not in (family, Family.UNKNOWN):
        wanted = _FAMILY_NAMES.get(family, family.value)
        raise LoraIncompatible(f"the LoRA is for {info.base.name}; this model is {wanted}")
    sizes = info.base.hidden_size, hidden_size
    if None not in sizes and sizes[0] != sizes[1]:
        raise LoraIncompatible(
            f"the LoRA is for a {info.base.name} of hidden size {sizes[0]}; this model has {sizes[1]}"
        )


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Words that call the LoRA: those the file names, else tags that every training caption had."""
    for key in _TRIGGER_KEYS:
        words = _clean(re.split(r"[,\n]", metadata.get(key, "")))
        if words:
            return words
    frequency = _json(metadata.get("ss_tag_frequency"))
    folders = _json(metadata.get("ss_dataset_dirs"))
    found: list[str] = []
    for folder, tags in frequency.items():
        counts = {tag: n for tag, n in tags.items() if type(n) is int} if _is_dict(tags) else {}
        images = folders.get(folder, {}) if _is_dict(folders.get(folder)) else {}
        most = images.get("img_count", max(counts.values(), default=0))
        if type(most) is int and most > 0:
            found += [tag for tag, n in counts.items() if n >= most]
    return _clean(found)


def adapter_config(metadata: Mapping[str, str], component: str) -> dict[str, Any]:
    """PEFT's settings for one component ("transformer"), as diffusers saves them in a file."""
    told = _adapter_config(metadata)
    prefix = f"{component}."
    inner = {k.removeprefix(prefix): v for k, v in told.items() if k.startswith(prefix)}
    return inner or {k: v for k, v in told.items() if "." not in k}


def _adapter_config(metadata: Mapping[str, str]) -> dict[str, Any]:
    return _json(metadata.get("lora_adapter_metadata"))


def _alphas(path: Path | str, header: Header) -> dict[str, float]:
    names = [n for n in header.tensors if n.endswith("alpha") and keys.split(n)[1] == keys.ALPHA]
    with open_regular(path) as file:
        return {
            name: value
            for name in names
            if (value := _number(file, header.tensors[name])) is not None
        }


def _number(file: Any, info: TensorInfo) -> float | None:
    if info.size_bytes > 8 or info.dtype not in (*_NUMBERS, "BF16"):
        return None
    file.seek(info.offset)
    raw = file.read(info.size_bytes)
    if info.dtype == "BF16":  # the upper half of an F32
        raw = b"\0\0" + raw
    form = _NUMBERS.get(info.dtype, "<f")
    return float(struct.unpack(form, raw)[0]) if len(raw) == struct.calcsize(form) else None


def _shape(parts: Mapping[str, str], header: Header) -> Shape:
    """(out, in) of the weight a module changes."""

    def size(part: str, side: int) -> int | None:
        info = header.tensors.get(parts.get(part, ""))
        return info.shape[side] if info is not None and len(info.shape) > side else None

    def product(one: int | None, other: int | None) -> int | None:
        return one * other if one and other else None

    if any(part in parts for part in keys.LOKR):
        rows = [size(name, 0) or size(f"{name}_a", 0) for name in ("lokr_w1", "lokr_w2")]
        columns = [size(name, 1) or size(f"{name}_b", 1) for name in ("lokr_w1", "lokr_w2")]
        return product(*rows), product(*columns)
    if any(part in parts for part in keys.LOHA):
        return size("hada_w1_a", 0), size("hada_w1_b", 1)
    return size(keys.UP, 0), size(keys.DOWN, 1)


def _rank(parts: Mapping[str, str], header: Header) -> int | None:
    for part in (keys.DOWN, "lokr_w2_b", "lokr_w1_b", "hada_w1_b"):
        if part in parts and header.tensors[parts[part]].shape:
            return header.tensors[parts[part]].shape[0]
    return None


def _format(
    lora: Mapping[str, Mapping[str, str]], placed: Mapping[str, tuple[keys.Place, Shape]]
) -> str:
    parts = {part for module in lora.values() for part in module}
    if parts & set(keys.LOKR):
        return "lokr"
    if parts & set(keys.LOHA):
        return "loha"
    namings = [placed[module][0].naming for module in lora]
    if keys.Naming.ONETRAINER in namings:  # it names what is not apart as BFL does
        return keys.Naming.ONETRAINER
    image = [n for n in namings if n not in (keys.Naming.TEXT, keys.Naming.UNKNOWN)]
    named = image or namings or [keys.Naming.UNKNOWN]
    return max(named, key=named.count)


def _targets(placed: Mapping[str, Any], lora: Mapping[str, Any]) -> tuple[str, ...]:
    image = (
        keys.Style.BFL, keys.Style.DIFFUSERS, keys.Style.XLABS, keys.Style.UNET, keys.Style.Z_IMAGE,
    )  # fmt: skip
    paths = {
        re.sub(r"_\d+_", "_0_", placed[module][0].path)  # blocks are alike
        for module in islice(lora, _MODULES_LOOKED_AT)
        if placed[module][0].style in image
    }
    return tuple(
        region for region, pattern in _REGIONS if any(re.search(pattern, path) for path in paths)
    )


def _told_alphas(metadata: Mapping[str, str], told: Mapping[str, Any]) -> set[float]:
    numbers = [value for key, value in told.items() if key.split(".")[-1] == "lora_alpha"]
    text = metadata.get("ss_network_alpha", "")
    if not numbers and re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text):
        numbers = [float(text)]
    return {float(n) for n in numbers if type(n) in (int, float) and abs(n) < 1e9}


def _refusal(
    grouped: Mapping[str, Mapping[str, str]],
    lora: Mapping[str, Mapping[str, str]],
    placed: Mapping[str, tuple[keys.Place, Shape]],
    base: Base,
    told: Mapping[str, Any],
    header: Header,
) -> str | None:
    """Why nothing can apply the file, by the name of what it is."""
    parts = {part for module in grouped.values() for part in module}
    network = header.metadata.get("ss_network_args", "").replace(" ", "").lower()
    if "dora" in parts or '"dora_wd":"true"' in network or '"dora_wd":true' in network or any(
        key.split(".")[-1] == "use_dora" and value is True for key, value in told.items()
    ):  # fmt: skip
        return "the file is DoRA, which cannot be applied: its magnitudes depend on the model's weights"
    for part, what in keys.REFUSED_PARTS.items():
        if part in parts and not (part in _SOFT_PARTS and lora):
            return f"the file is {what}, which cannot be applied"
    if not lora:
        some = ", ".join(shown(name) for name in list(header.tensors)[:3])
        return f"the file is no LoRA of a known format; its tensors are named {some}"
    if base.family is Family.OTHER:
        return f"the LoRA is for {base.name}; those for FLUX, SDXL and Z-Image can be used here"
    if all(placed[module][0].style is keys.Style.UNKNOWN for module in lora):
        some = ", ".join(shown(module) for module in list(lora)[:3])
        return f"the LoRA is for an unknown model: its layers are named {some}"
    if base.family is Family.FLUX1:
        for place, shape in placed.values():
            if place.path in ("img_in", "x_embedder") and shape[1] not in (None, 64):
                return (
                    f"the LoRA is for FLUX.1 Depth, Canny or Fill: it takes {shape[1]} channels, "
                    "of which FLUX.1 has 64"
                )
    return None


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _json(text: str | None) -> dict[str, Any]:
    """A JSON object in metadata; empty for anything else."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if _is_dict(value) else {}


def _clean(words: list[str]) -> tuple[str, ...]:
    shortened = (
        " ".join("".join(c if c.isprintable() else " " for c in word).split()).strip(" \"'[]")
        for word in words
    )
    kept = [word for word in shortened if word and len(word) <= MAX_TRIGGER_CHARS]
    return tuple(dict.fromkeys(kept))[:MAX_TRIGGER_WORDS]
