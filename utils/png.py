"""PNG files, lossless, in a small part of the time that general encoders take.

Each pixel is stored as its difference to what its neighbours let expect (PNG's filter "Paeth") and
deflated by ISA-L's fastest level, which looks back no further than 1 KiB: what is further away seldom
saves bytes in a picture, and costs time and longer codes. Encoders that try filters row by row and
search longer save some percent of the bytes and take tens of times as long, about as long as a
four-step model takes to draw.
Source: PNG specification, third edition, W3C 2025, sections 5 and 9; Intel's ISA-L.
"""

import struct
import zlib
from collections.abc import Iterable
from typing import Any

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EIGHT_BITS, _RGB = 8, 2
_NO_FILTER, _UP, _PAETH = 0, 2, 4
_PIXEL_BYTES = 3
_DEFLATE_LEVEL, _WINDOW_BITS = 1, 10
_AT_ONCE_BYTES = 96 * 1024  # of the picture; with what is computed of them they fit a core's cache


def encode_rgb(image: Any, texts: Iterable[tuple[str, str]] = ()) -> bytes:
    """A Pillow RGB image as a PNG file with `texts` (keyword, words) in front of its pixels.

    Raises ValueError for another mode, and for a keyword that PNG does not allow: 1 to 79 characters
    of Latin-1 without NUL.
    """
    import numpy as np
    from isal import igzip_lib

    if image.mode != "RGB":
        raise ValueError(f"a picture of mode RGB is needed, not {image.mode}")
    width, height = image.size
    pixels = igzip_lib.compress(
        _filtered(np.asarray(image).reshape(height, width * _PIXEL_BYTES)),
        _DEFLATE_LEVEL,
        igzip_lib.COMP_ZLIB,
        mem_level=igzip_lib.MEM_LEVEL_MEDIUM,
        hist_bits=_WINDOW_BITS,
    )
    header = struct.pack(">IIBBBBB", width, height, _EIGHT_BITS, _RGB, 0, 0, 0)
    return b"".join(
        [
            SIGNATURE,
            _chunk(b"IHDR", header),
            *(_chunk(b"iTXt", _text(keyword, words)) for keyword, words in texts),
            _chunk(b"IDAT", pixels),
            _chunk(b"IEND", b""),
        ]
    )


def _filtered(rows: Any) -> Any:
    """(height, width x 3) bytes as (height, 1 + width x 3): every row's filter in front of it.

    The first row has nothing above it, and the second one nothing above its left neighbours.
    """
    import numpy as np

    height, width = rows.shape
    filtered = np.empty((height, 1 + width), np.uint8)
    filtered[:, 0] = _PAETH
    filtered[0, 0] = _NO_FILTER
    filtered[0, 1:] = rows[0]
    filtered[1:2, 0] = _UP
    np.subtract(rows[1:2], rows[:1], out=filtered[1:2, 1:])
    one_line = rows.reshape(-1)
    count = max(1, _AT_ONCE_BYTES // width)
    scratch = np.empty((5, count * width), np.uint8)
    for first in range(2, height, count):
        last = min(height, first + count)
        start, stop = first * width, last * width
        expected = _paeth(
            one_line[start - _PIXEL_BYTES : stop - _PIXEL_BYTES],
            one_line[start - width : stop - width],
            one_line[start - width - _PIXEL_BYTES : stop - width - _PIXEL_BYTES],
            scratch[:, : stop - start],
        ).reshape(last - first, width)
        # On the left of a row's first pixel is nothing, not the end of the row before.
        expected[:, :_PIXEL_BYTES] = rows[first - 1 : last - 1, :_PIXEL_BYTES]
        np.subtract(rows[first:last], expected, out=filtered[first:last, 1:])
    return filtered


def _paeth(left: Any, above: Any, corner: Any, scratch: Any) -> Any:
    """Whichever of the three is nearest to left + above - corner; `scratch` is five arrays of their length.

    With `low` and `high` of left and above, `up` from the corner to high and `down` from it to low,
    neither below 0: that is low if up <= down / 2, else high if down <= up / 2, else the corner. So all of it is done in bytes.
    """
    import numpy as np

    low, high, up, down, half = scratch
    chosen = np.empty(left.shape, bool)
    as_bytes = chosen.view(np.uint8)  # 0 or 1; negated 0 or 255
    np.minimum(left, above, out=low)
    np.maximum(left, above, out=high)
    np.subtract(np.maximum(high, corner, out=up), corner, out=up)
    np.subtract(corner, np.minimum(low, corner, out=down), out=down)

    np.less_equal(down, np.right_shift(up, 1, out=half), out=chosen)
    np.bitwise_and(high, np.negative(as_bytes, out=as_bytes), out=high)
    np.maximum(corner, high, out=high)  # the corner is not above what was chosen

    np.greater(up, np.right_shift(down, 1, out=half), out=chosen)
    np.bitwise_or(low, np.negative(as_bytes, out=as_bytes), out=low)
    return np.minimum(high, low, out=high)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def _text(keyword: str, words: str) -> bytes:
    """International text, not compressed, of no told language."""
    if not 1 <= len(keyword) <= 79 or "\0" in keyword:
        raise ValueError(
            f"a text's keyword has 1 to 79 characters and no NUL, not {keyword!r:.100}"
        )
    return keyword.encode("latin-1") + b"\0\0\0\0\0" + words.encode("utf-8")
