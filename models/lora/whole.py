"""Whether every module of a LoRA has all its parts, and parts that fit one another.

Names and shapes tell, so an upload is refused before a weight is read, and not the first request that
wants it. Shapes also tell what LoKr and LoHa will take as low rank: a few kilobytes of Kronecker factors
can stand for a matrix of terabytes. No torch: this runs in the API process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from models.lora import keys
from models.lora.errors import BadLoraFile
from models.lora.header import TensorInfo
from models.lora.json_cursor import shown
from models.lora.keys import Style

LORA = (keys.DOWN, keys.UP)
USED = {*LORA, *keys.LOKR, *keys.LOHA, keys.ALPHA}
_KINDS = (LORA, keys.LOKR, keys.LOHA)
# Parts that are multiplied, if the module has them: (…, r) · (r, …).
_PRODUCTS = (
    (keys.UP, keys.DOWN),
    *((f"{name}_a", f"{name}_b") for name in ("lokr_w1", "lokr_w2", "hada_w1", "hada_w2")),
)

MAX_SIDE = 2**16  # of a layer; the widest known is 55296, in FLUX.2 dev
MAX_RANK = 256  # of what LoKr and LoHa become (`lowrank.py`)
# Of all modules as low rank. Rank 256 on every layer is 4.6 GiB for FLUX.1, 5.8 for FLUX.2 dev.
MAX_LOW_RANK_BYTES = 8 * 2**30

_FACTORS = {keys.LOKR: ("lokr_w1", "lokr_w2"), keys.LOHA: ("hada_w1", "hada_w2")}

Shapes = dict[str, tuple[int, ...]]  # by part


def check_modules(
    modules: Mapping[str, Mapping[str, str]], tensors: Mapping[str, TensorInfo]
) -> None:
    """Raise BadLoraFile for a module that contradicts itself, or for products that are too large.

    `modules` as `keys.group` has them. What belongs to no known model and what is no weight of a LoRA
    is passed over.
    """
    low_rank_bytes = 0
    for module, parts in modules.items():
        shapes = {part: tensors[name].shape for part, name in parts.items() if part in USED}
        alpha = shapes.pop(keys.ALPHA, ())
        if shapes and keys.place(module).style is not Style.UNKNOWN:
            _check(module, shapes, alpha)
            low_rank_bytes += _low_rank_bytes(module, shapes)
    if low_rank_bytes > MAX_LOW_RANK_BYTES:
        raise BadLoraFile(
            f"as low rank the file would take {low_rank_bytes / 2**30:.0f} GiB; "
            f"{MAX_LOW_RANK_BYTES // 2**30} are allowed"
        )


def kind_of(parts: Mapping[str, object]) -> tuple[str, ...]:
    """LORA, keys.LOKR or keys.LOHA, for the parts of a module that was checked."""
    return next(kind for kind in _KINDS if set(parts) & set(kind))


def _check(module: str, shapes: Shapes, alpha: tuple[int, ...]) -> None:
    kinds = [kind for kind in _KINDS if set(shapes) & set(kind)]
    if len(kinds) != 1 or not _complete(shapes, kinds[0]):
        raise BadLoraFile(f"module {shown(module)} is not whole: it has {', '.join(shapes)}")
    if math.prod(alpha) != 1:
        raise BadLoraFile(f"module {shown(module)}: alpha has {math.prod(alpha)} numbers, not one")
    for shape in shapes.values():
        # A 1×1 convolution's weight (r, in, 1, 1) is a linear layer's.
        if len(shape) < 2 or any(size != 1 for size in shape[2:]):
            raise BadLoraFile(
                f"module {shown(module)} has weights of shape {shape}; layers are linear"
            )
    for left, right in _PRODUCTS:
        if left in shapes and right in shapes and shapes[left][1] != shapes[right][0]:
            raise BadLoraFile(
                f"module {shown(module)}: {shapes[left][:2]} · {shapes[right][:2]} do not fit together"
            )
    if kinds[0] == keys.LOHA:
        first, second = (
            (shapes[f"{name}_a"][0], shapes[f"{name}_b"][1]) for name in ("hada_w1", "hada_w2")
        )
        if first != second:
            raise BadLoraFile(
                f"module {shown(module)}: products of {first} and {second} do not fit together"
            )


def _low_rank_bytes(module: str, shapes: Shapes) -> int:
    """What a module of LoKr or LoHa is at most as two factors in float32; 0 for a LoRA, which is that."""
    if kind_of(shapes) == LORA:
        return 0
    first, second = (_factor(shapes, name) for name in _FACTORS[kind_of(shapes)])
    rows, columns, rank = first
    if kind_of(shapes) == keys.LOKR:
        rows, columns = rows * second[0], columns * second[1]
    if max(rows, columns) > MAX_SIDE:
        raise BadLoraFile(
            f"module {shown(module)} is a layer of {rows} outputs and {columns} inputs; at most "
            f"{MAX_SIDE} are taken"
        )
    return (rows + columns) * min(rank * second[2], rows, columns, MAX_RANK) * 4


def _factor(shapes: Shapes, name: str) -> tuple[int, int, int]:
    """Rows, columns and rank of a factor that is whole or a product."""
    if name in shapes:
        rows, columns = shapes[name][:2]
        return rows, columns, min(rows, columns)
    rows, inner, columns = shapes[f"{name}_a"][0], shapes[f"{name}_a"][1], shapes[f"{name}_b"][1]
    return rows, columns, inner


def _complete(shapes: Shapes, kind: tuple[str, ...]) -> bool:
    if kind != keys.LOKR:
        return all(part in shapes for part in kind)
    return all(
        f in shapes or (f"{f}_a" in shapes and f"{f}_b" in shapes) for f in ("lokr_w1", "lokr_w2")
    )
