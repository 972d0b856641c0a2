"""Picture files for tests, made on the spot."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy
from PIL import Image


def gradient(width: int, height: int) -> Image.Image:
    """An RGB picture of which no two neighbours are alike."""
    rows, columns = numpy.mgrid[0:height, 0:width]
    values = numpy.stack([columns * 7 % 256, rows * 5 % 256, (columns + rows) * 3 % 256], axis=-1)
    return Image.fromarray(values.astype(numpy.uint8))


def file_of(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    """EXIF that says which side of a picture is up."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_of_rows(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG of these rows, with their filters, as many as they are; everything else about it is whole."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")
