"""PNG files: the pixels that went in, texts in front of them, and small enough."""

from __future__ import annotations

import io
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from config.settings import ROOT
from utils import png


def noise(width: int, height: int, seed: int) -> Image.Image:
    values = bytes((i * 2654435761 + seed) >> 13 & 255 for i in range(width * height * 3))
    return Image.frombytes("RGB", (width, height), values)


def decoded(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


@settings(deadline=None)  # the first call imports what encodes
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_encode_rgb_keeps_every_pixel(width: int, height: int, seed: int) -> None:
    image = noise(width, height, seed)
    again = decoded(png.encode_rgb(image))
    assert (again.mode, again.size) == ("RGB", (width, height))
    assert again.tobytes() == image.tobytes()


def test_encode_rgb_of_a_drawn_picture_keeps_every_pixel_and_stays_small() -> None:
    with Image.open(ROOT / "models" / "embedded" / "samples.png") as opened:
        image = opened.convert("RGB")
    data = png.encode_rgb(image)
    assert decoded(data).tobytes() == image.tobytes()
    usual = io.BytesIO()
    image.save(usual, "PNG")
    assert len(data) < 1.2 * len(usual.getvalue())


@pytest.mark.parametrize(
    "size", [(1, 700), (700, 1), (333, 203), (40_000, 4)], ids=lambda size: f"{size[0]}x{size[1]}"
)
def test_encode_rgb_keeps_every_pixel_however_many_rows_are_computed_at_once(
    size: tuple[int, int],
) -> None:
    image = noise(*size, seed=11)
    assert decoded(png.encode_rgb(image)).tobytes() == image.tobytes()


def test_encode_rgb_of_black_is_next_to_nothing() -> None:
    assert len(png.encode_rgb(Image.new("RGB", (512, 512)))) < 8192


def test_encode_rgb_of_a_part_of_a_picture_keeps_its_pixels() -> None:
    image = noise(64, 48, 7).crop((3, 5, 40, 31))
    assert decoded(png.encode_rgb(image)).tobytes() == image.tobytes()


def test_texts_come_back_in_any_language() -> None:
    texts = {
        "parameters": "ein Ballon\nSteps: 4",
        "flux_api": '{"prompt": "红色气球 🎈"}',
        "empty": "",
    }
    again = decoded(png.encode_rgb(noise(2, 2, 0), texts.items()))
    assert again.text == texts


def test_texts_stand_in_front_of_the_pixels() -> None:
    data = png.encode_rgb(noise(2, 2, 0), [("parameters", "a")])
    assert data.index(b"iTXt") < data.index(b"IDAT")


def test_every_chunk_has_its_checksum() -> None:
    data = png.encode_rgb(noise(5, 5, 1), [("parameters", "a")])
    position, kinds = len(png.SIGNATURE), []
    while position < len(data):
        length = int.from_bytes(data[position : position + 4])
        body = data[position + 4 : position + 8 + length]
        kinds.append(body[:4])
        assert int.from_bytes(data[position + 8 + length : position + 12 + length]) == zlib.crc32(
            body
        )
        position += 12 + length
    assert kinds == [b"IHDR", b"iTXt", b"IDAT", b"IEND"]


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK", "I;16"])
def test_encode_rgb_refuses_another_mode_by_name(mode: str) -> None:
    with pytest.raises(ValueError, match=mode):
        png.encode_rgb(Image.new(mode, (2, 2)))


@pytest.mark.parametrize("keyword", ["", "a" * 80, "a\0b"])
def test_encode_rgb_refuses_a_keyword_that_png_has_not(keyword: str) -> None:
    with pytest.raises(ValueError, match="keyword"):
        png.encode_rgb(noise(2, 2, 0), [(keyword, "words")])
