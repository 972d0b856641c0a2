"""PNG files whose stream of pixels ends too early are found out, whatever kind they are."""

from __future__ import annotations

import struct
import zlib

import pytest
from PIL import Image

from tests.pictures import file_of, gradient
from utils.png_pixels import require_pixels


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    pixels: bytes,
    *,
    interlace: int = 0,
    is_stream: bool = False,
) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    stream = pixels if is_stream else zlib.compress(pixels)
    half = len(stream) // 2
    parts = b"".join(chunk(b"IDAT", part) for part in (stream[:half], stream[half:]))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + parts + chunk(b"IEND", b"")


# Width, height, bits, colour type, interlaced, and the bytes of rows with their filters, counted by hand.
KINDS = [
    (5, 3, 8, 2, 0, 3 * (1 + 15)),
    (5, 3, 16, 6, 0, 3 * (1 + 40)),
    (5, 3, 1, 0, 0, 3 * (1 + 1)),
    (9, 2, 4, 3, 0, 2 * (1 + 5)),
    (5, 3, 16, 4, 0, 3 * (1 + 20)),
    # Passes: 1x1, 1x1, none (its first row is the fifth), 1x1, 3x1, 2x2, 5x1 pixels
    (5, 3, 8, 0, 1, (1 + 1) + (1 + 1) + (1 + 1) + (1 + 3) + 2 * (1 + 2) + (1 + 5)),
    # One column: passes of columns that are not there have no rows
    (1, 1, 8, 2, 1, 1 + 3),
]


@pytest.mark.parametrize(("width", "height", "depth", "colour", "interlace", "length"), KINDS)
def test_require_pixels_takes_the_last_byte_and_misses_it(
    width: int, height: int, depth: int, colour: int, interlace: int, length: int
) -> None:
    require_pixels(png(width, height, depth, colour, bytes(length), interlace=interlace))
    with pytest.raises(ValueError, match="cut off"):
        require_pixels(png(width, height, depth, colour, bytes(length - 1), interlace=interlace))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_require_pixels_takes_what_pillow_writes(mode: str) -> None:
    picture = Image.new(mode, (33, 17)) if mode == "I;16" else gradient(33, 17).convert(mode)
    require_pixels(file_of(picture))


def test_require_pixels_of_more_than_is_inflated_at_once() -> None:
    rows = bytes(1 + 3 * 2048) * 2048  # 12 MB of the same, in a few KB
    require_pixels(png(2048, 2048, 8, 2, rows))
    with pytest.raises(ValueError, match="cut off"):
        require_pixels(png(2048, 2048, 8, 2, rows[:-1]))


def test_require_pixels_passes_over_what_comes_after_the_last() -> None:
    require_pixels(png(5, 3, 8, 2, bytes(3 * 16 + 500)))


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_require_pixels_passes_over_other_files(format: str) -> None:
    require_pixels(file_of(gradient(33, 17), format))


@pytest.mark.parametrize("window", range(9, 16))
def test_require_pixels_reads_streams_of_every_window(window: int) -> None:
    picture, deflate = gradient(33, 17), zlib.compressobj(9, zlib.DEFLATED, window)
    rows = b"".join(b"\0" + picture.crop((0, y, 33, y + 1)).tobytes() for y in range(17))
    stream = deflate.compress(rows) + deflate.flush()
    require_pixels(png(33, 17, 8, 2, stream, is_stream=True))
