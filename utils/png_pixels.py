"""Whether a PNG file has all of its pixels.

Pillow takes a stream of pixels that ends before the last row for whole and leaves the rest black. So
the stream is inflated once more and counted. Source: PNG specification, third edition, W3C 2025,
sections 7.2 and 8.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from utils.picture_header import PNG_SIGNATURE

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by colour type
# Adam7's passes: first column, first row, columns and rows from one pixel to the next.
_PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_WHOLE = ((0, 0, 1, 1),)
_AT_ONCE_BYTES = 2**20


def require_pixels(data: bytes) -> None:
    """Raises ValueError for a file whose pixels end too early. Goes for a PNG that a decoder took; any other file is passed over."""
    from isal import isal_zlib

    if not data.startswith(PNG_SIGNATURE):
        return
    missing = _bytes_of_pixels(data)
    inflate = isal_zlib.decompressobj()
    try:
        for part in _chunks(data, b"IDAT"):
            while missing > 0 and not inflate.eof and part:
                missing -= len(inflate.decompress(part, _AT_ONCE_BYTES))
                part = inflate.unconsumed_tail
    except isal_zlib.error as error:
        raise ValueError(f"its pixels are damaged: {error}") from error
    if missing > 0:
        missing -= len(inflate.flush())
    if missing > 0:
        raise ValueError("its pixels are cut off")


def _bytes_of_pixels(data: bytes) -> int:
    """What the stream inflates to: each row has a byte for its filter in front."""
    width, height, depth, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    total = 0
    for left, top, across, down in _PASSES if interlace else _WHOLE:
        columns = -(-max(0, width - left) // across)
        rows = -(-max(0, height - top) // down)
        if columns:
            total += rows * (1 + -(-columns * depth * _SAMPLES[colour] // 8))
    return total


def _chunks(data: bytes, wanted: bytes) -> Iterator[bytes]:
    position = len(PNG_SIGNATURE)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == wanted:
            yield data[position + 8 : position + 8 + length]
        position += length + 12
