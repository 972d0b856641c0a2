"""No NaN and no infinity in a LoRA's tensors, looked for in bounded memory.

One such number turns every picture black or grey. A binary floating point number is infinite or NaN
exactly when all bits of its exponent are set (IEEE 754); the eight-bit formats differ and have no
infinity, or mark NaN otherwise (Micikevicius et al. 2022, "FP8 Formats for Deep Learning", and the
FNUZ variants, whose NaN is the byte of minus zero). So the bytes are read in chunks, as unsigned
integers, and compared; nothing is converted. No torch: this runs in the API process.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from models.lora.errors import BadLoraFile
from models.lora.header import Header, TensorInfo, open_regular
from models.lora.json_cursor import shown

CHUNK_BYTES = 1024**2  # a multiple of every width

# dtype: the integer as wide, the bits looked at, and what they must not be
_PATTERNS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000, 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000, 0x7F80_0000),
    "BF16": ("<u2", 0x7F80, 0x7F80),
    "F16": ("<u2", 0x7C00, 0x7C00),
    "F8_E5M2": ("u1", 0x7C, 0x7C),
    "F8_E4M3": ("u1", 0x7F, 0x7F),
    "F8_E4M3FNUZ": ("u1", 0xFF, 0x80),
    "F8_E5M2FNUZ": ("u1", 0xFF, 0x80),
}


def check_finite(path: Path | str, header: Header) -> None:
    """Read every tensor; raises BadLoraFile naming the first with a NaN or an infinity."""
    with open_regular(path) as file:
        for name, info in header.tensors.items():
            if info.dtype in _PATTERNS and not _finite(file, info):
                raise BadLoraFile(f"tensor {shown(name)} has a NaN or an infinity")


def _finite(file: BinaryIO, info: TensorInfo) -> bool:
    integer, mask, forbidden = _PATTERNS[info.dtype]
    dtype = np.dtype(integer)
    file.seek(info.offset)
    left = info.size_bytes
    while left:
        chunk = file.read(min(left, CHUNK_BYTES))
        if not chunk or len(chunk) % dtype.itemsize:
            raise BadLoraFile("the file became shorter while it was read")
        left -= len(chunk)
        bits = np.frombuffer(chunk, dtype)
        if np.any((bits & dtype.type(mask)) == dtype.type(forbidden)):
            return False
    return True
