"""Headers of files that Pillow wrote, of damaged ones and of what is no picture."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.pictures import file_of, gradient, turned
from utils.picture_header import PictureHeader, read_header

FORMATS = {
    "PNG": {},
    "JPEG": {},
    "JPEG progressive": {"progressive": True},
    "WEBP lossy": {},
    "WEBP lossless": {"lossless": True},
}


def written(name: str, picture: Image.Image, **options) -> bytes:
    return file_of(picture, name.split()[0], **FORMATS[name], **options)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (37, 200), (300, 41)])
def test_read_header_tells_format_and_size(name: str, size: tuple[int, int]) -> None:
    header = read_header(written(name, gradient(*size)))
    assert header == PictureHeader(format=name.split()[0], width=size[0], height=size[1])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_read_header_of_every_kind_of_png(mode: str) -> None:
    header = read_header(file_of(Image.new(mode, (20, 30))))
    assert header is not None and (header.width, header.height) == (20, 30)


def test_read_header_of_webp_with_transparency() -> None:
    header = read_header(file_of(gradient(20, 30).convert("RGBA"), "WEBP"))
    assert header == PictureHeader(format="WEBP", width=20, height=30)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_header_size_is_that_of_the_upright_picture(name: str, orientation: int) -> None:
    header = read_header(written(name, gradient(60, 20), exif=turned(orientation)))
    assert header is not None
    assert (header.width, header.height) == ((20, 60) if orientation > 4 else (60, 20))
    assert header.orientation == orientation


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"<svg>", b"RIFF\0\0\0\0WAVE", b"\xff\xd8", b"BM"]
)
def test_read_header_of_what_is_none_of_the_three_is_none(data: bytes) -> None:
    assert read_header(data) is None


@pytest.mark.parametrize("name", ["PNG", "WEBP lossy", "WEBP lossless"])
@pytest.mark.parametrize("share", [0.99, 0.5, 0.1])
def test_read_header_of_a_file_that_is_cut_off_says_so(name: str, share: float) -> None:
    whole = written(name, gradient(64, 64))
    with pytest.raises(ValueError, match="cut off"):
        read_header(whole[: max(16, int(len(whole) * share))])


def test_read_header_of_a_jpeg_that_is_cut_before_its_size_says_so() -> None:
    with pytest.raises(ValueError, match="cut off"):
        read_header(file_of(gradient(64, 64), "JPEG")[:40])


def test_read_header_of_a_picture_without_pixels_says_so() -> None:
    whole = file_of(gradient(8, 8))
    with pytest.raises(ValueError, match="no pixels"):
        read_header(whole[:16] + struct.pack(">II", 0, 8) + whole[24:])


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(list(FORMATS)),
    changes=st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), max_size=6),
    end=st.integers(0, 1500),
)
def test_read_header_of_damaged_bytes_answers_or_says_why(
    name: str, changes: list[tuple[int, int]], end: int
) -> None:
    data = bytearray(written(name, gradient(24, 16), exif=turned(6)))
    for position, value in changes:
        data[position % len(data)] = value
    try:
        header = read_header(bytes(data[:end]))
    except ValueError:
        return
    assert header is None or (header.width > 0 and header.height > 0)
