"""PNG files, lossless, in a small part of the time that general encoders take.

Each row is stored as its difference to the row above (PNG's filter "Up") and deflated by ISA-L's
fastest level. Encoders that try filters row by row and search longer save some percent of the bytes
and take tens of times as long, about as long as a four-step model takes to draw.
Source: PNG specification, third edition, W3C 2025, sections 5 and 9; Intel's ISA-L.
"""

import struct
import zlib
from collections.abc import Iterable
from typing import Any

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EIGHT_BITS, _RGB = 8, 2
_NO_FILTER, _UP = 0, 2
_DEFLATE_LEVEL = 1


def encode_rgb(image: Any, texts: Iterable[tuple[str, str]] = ()) -> bytes:
    """A Pillow RGB image as a PNG file with `texts` (keyword, words) in front of its pixels.

    Raises ValueError for another mode, and for a keyword that PNG does not allow: 1 to 79 characters
    of Latin-1 without NUL.
    """
    import numpy as np
    from isal import isal_zlib

    if image.mode != "RGB":
        raise ValueError(f"a picture of mode RGB is needed, not {image.mode}")
    width, height = image.size
    rows = np.asarray(image).reshape(height, width * 3)
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    filtered[0, 0], filtered[1:, 0] = _NO_FILTER, _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, _EIGHT_BITS, _RGB, 0, 0, 0)
    return b"".join(
        [
            SIGNATURE,
            _chunk(b"IHDR", header),
            *(_chunk(b"iTXt", _text(keyword, words)) for keyword, words in texts),
            _chunk(b"IDAT", isal_zlib.compress(filtered, _DEFLATE_LEVEL)),
            _chunk(b"IEND", b""),
        ]
    )


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
