"""What a PNG, JPEG or WebP file says of itself before any pixel is decoded: format, size, which side is up.

Read by hand, a few fields of each format, so that the process that talks to the network runs no decoder
on what strangers send. A file that ends before it should is found out here where the format tells
its length (PNG, WebP); a damaged stream of pixels is found by whoever decodes it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# JPEG markers of a frame: all SOFn but DHT, JPG and DAC, which lie between them.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
_SCAN = 0xDA
_ORIENTATION = 0x0112
_DETAILS = 0x8769  # the directory of what a camera says
_USER_COMMENT = 0x9286
_SIDEWAYS = frozenset({5, 6, 7, 8})  # EXIF orientations that exchange width and height


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureHeader:
    """`width` and `height` in px, as the picture is looked at; `orientation` is EXIF's, 1 to 8."""

    format: str  # Pillow's word: PNG, JPEG, WEBP
    width: int
    height: int
    orientation: int = 1


def read_header(data: bytes) -> PictureHeader | None:
    """The header; None for what is none of the three formats. Raises ValueError for a damaged file."""
    if data.startswith(PNG_SIGNATURE):
        return _upright("PNG", *_png(data))
    if data.startswith(b"\xff\xd8\xff"):
        return _upright("JPEG", *_jpeg(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _upright("WEBP", *_webp(data))
    return None


def _upright(name: str, width: int, height: int, exif: bytes) -> PictureHeader:
    if width < 1 or height < 1:
        raise ValueError("its header says that it has no pixels")
    orientation = _orientation(exif)
    if orientation in _SIDEWAYS:
        width, height = height, width
    return PictureHeader(format=name, width=width, height=height, orientation=orientation)


def _png(data: bytes) -> tuple[int, int, bytes]:
    size: tuple[int, int] | None = None
    exif = b""
    position = len(PNG_SIGNATURE)
    while True:
        length, kind = struct.unpack(">I4s", _take(data, position, 8))
        body = _take(data, position + 8, length + 4)[:length]  # and a checksum
        if size is None:
            if kind != b"IHDR" or length < 8:
                raise ValueError("it does not begin with a PNG header")
            size = struct.unpack_from(">II", body)
        elif kind == b"eXIf":
            exif = body
        elif kind == b"IEND":
            return *size, exif
        position += length + 12


def _jpeg(data: bytes) -> tuple[int, int, bytes]:
    exif = b""
    for marker, body in _segments(data):
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body[6:]
        elif marker in _FRAMES:
            if len(body) < 5:
                raise ValueError("its header is damaged")
            height, width = struct.unpack_from(">HH", body, 1)
            return width, height, exif
    raise ValueError("it has no header before its pixels")


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 2
    while True:
        fill, marker = _take(data, position, 2)
        if fill != 0xFF:
            raise ValueError("its header is damaged")
        if marker == 0xFF:  # filling
            position += 1
            continue
        if marker == _SCAN:
            return
        if marker in _ALONE:
            position += 2
            continue
        (length,) = struct.unpack(">H", _take(data, position + 2, 2))
        if length < 2:
            raise ValueError("its header is damaged")
        yield marker, _take(data, position + 4, length - 2)
        position += 2 + length


def _webp(data: bytes) -> tuple[int, int, bytes]:
    (declared,) = struct.unpack_from("<I", data, 4)
    _take(data, 8, declared)
    size: tuple[int, int] | None = None
    exif = b""
    position = 12
    while position + 8 <= 8 + declared:
        kind, length = struct.unpack("<4sI", _take(data, position, 8))
        body = _take(data, position + 8, length)
        if kind == b"EXIF":
            exif = body.removeprefix(b"Exif\0\0")
        elif size is None and kind in (b"VP8X", b"VP8 ", b"VP8L"):
            size = _webp_size(kind, body)
        position += 8 + length + length % 2
    if size is None:
        raise ValueError("it has no header")
    return *size, exif


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int]:
    _take(body, 0, 5 if kind == b"VP8L" else 10)
    if kind == b"VP8X":
        return tuple(1 + int.from_bytes(body[at : at + 3], "little") for at in (4, 7))
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF


def read_user_comment(data: bytes) -> bytes:
    """EXIF's user comment of a JPEG or WebP, its code first; b"" where there is none that can be read.

    Raises ValueError for a damaged file.
    """
    *_, exif = _webp(data) if data.startswith(b"RIFF") else _jpeg(data)
    try:
        _, details = _entry(exif, _start(exif), _DETAILS) or (0, 0)
        count, at = _entry(exif, details, _USER_COMMENT) or (0, 0)
    except struct.error:
        return b""
    return exif[at : at + count]


def _orientation(exif: bytes) -> int:
    """EXIF's word for which side is up, 1 to 8; 1 where there is none that can be read."""
    try:
        _, value = _entry(exif, _start(exif), _ORIENTATION, "HHIH") or (0, 1)
    except struct.error:
        return 1
    return value if 1 <= value <= 8 else 1


def _order(exif: bytes) -> str:
    return ">" if exif.startswith(b"MM") else "<"


def _start(exif: bytes) -> int:
    """Where the first directory is; 0 where this is no EXIF."""
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        return 0
    return struct.unpack_from(f"{_order(exif)}I", exif, 4)[0]


def _entry(exif: bytes, start: int, wanted: int, form: str = "HHII") -> tuple[int, int] | None:
    """Count and value of a tag in the directory at `start`; None where it is not there. Raises struct.error."""
    order = _order(exif)
    entries = struct.unpack_from(f"{order}H", exif, start)[0] if start else 0
    for number in range(entries):
        tag, _, count, value = struct.unpack_from(order + form, exif, start + 2 + 12 * number)
        if tag == wanted:
            return count, value
    return None


def _take(data: bytes, start: int, length: int) -> bytes:
    if start + length > len(data):
        raise ValueError("it is cut off")
    return data[start : start + length]
