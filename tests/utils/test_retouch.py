"""Masks and pictures in our form, made in a process of their own."""

from __future__ import annotations

import asyncio
import io

import pytest
from PIL import Image

from config.errors import BadPicture, NotAPicture, TooLarge
from tests.pictures import file_of, gradient, png_of_rows, turned
from utils import retouch
from utils.retouch import Retouch, apply, retouched

LEFT, RIGHT = (0, 0, 32, 64), (32, 0, 64, 64)


def halves(left: object, right: object, mode: str) -> Image.Image:
    picture = Image.new(mode, (64, 64), right)
    picture.paste(left, LEFT)
    return picture


def made(picture: Image.Image, **options: object) -> Image.Image:
    return Image.open(io.BytesIO(apply(file_of(picture), Retouch(**options))))


def sides(mask: Image.Image) -> tuple[int, int]:
    assert mask.mode == "L"
    return mask.getpixel((4, 32)), mask.getpixel((60, 32))


def test_transparent_is_white() -> None:
    mask = halves((9, 9, 9, 0), (9, 9, 9, 255), "RGBA")
    assert sides(made(mask, mask_from="alpha")) == (255, 0)


def test_palette_with_a_transparent_colour_is_read() -> None:
    mask = halves(0, 1, "P")
    mask.putpalette([0, 0, 0, 255, 255, 255])
    data = file_of(mask, transparency=0)
    with Image.open(io.BytesIO(apply(data, Retouch(mask_from="alpha")))) as picture:
        assert sides(picture) == (255, 0)


def test_mask_without_transparency_is_refused() -> None:
    with pytest.raises(ValueError, match="no transparency"):
        apply(file_of(halves(0, 255, "L")), Retouch(mask_from="alpha"))


def test_grey_is_as_it_is_and_transparent_is_black() -> None:
    assert sides(made(halves((200, 200, 200), (0, 0, 0), "RGB"), mask_from="grey")) == (200, 0)
    mask = halves((255, 255, 255, 0), (255, 255, 255, 255), "RGBA")
    assert sides(made(mask, mask_from="grey")) == (0, 255)


def test_channel_is_taken() -> None:
    mask = halves((255, 0, 7), (0, 255, 7), "RGB")
    assert sides(made(mask, mask_from="red")) == (255, 0)
    assert sides(made(mask, mask_from="green")) == (0, 255)
    assert sides(made(mask, mask_from="blue")) == (7, 7)


def test_inverted_blurred_and_stretched() -> None:
    mask = halves(255, 0, "L")
    assert sides(made(mask, mask_from="grey", invert=True)) == (0, 255)
    blurred = made(mask, mask_from="grey", blur_px=4)
    assert 0 < blurred.getpixel((30, 32)) < 255
    assert sides(blurred) == (255, 0)
    assert made(mask, mask_from="grey", size=(32, 16)).size == (32, 16)


def test_picture_is_turned_upright() -> None:
    data = file_of(gradient(64, 32), "JPEG", exif=turned(6))
    with Image.open(io.BytesIO(apply(data, Retouch()))) as picture:
        assert picture.size == (32, 64)


def test_child_makes_what_is_asked_for() -> None:
    mask = file_of(halves((9, 9, 9, 0), (9, 9, 9, 255), "RGBA"))
    data = asyncio.run(retouched("mask", mask, Retouch(mask_from="alpha")))
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, sides(picture)) == ("PNG", (255, 0))


def test_child_says_what_is_wrong_under_the_field() -> None:
    with pytest.raises(BadPicture, match="no transparency") as raised:
        asyncio.run(retouched("mask", file_of(halves(0, 255, "L")), Retouch(mask_from="alpha")))
    assert raised.value.fields[0].field == "mask"


def test_pixels_that_are_damaged_are_refused() -> None:
    data = bytearray(file_of(gradient(64, 64)))
    data[60:80] = bytes(20)
    with pytest.raises(BadPicture):
        asyncio.run(retouched("image", bytes(data), Retouch(size=(32, 32))))


@pytest.mark.parametrize(
    ("depth", "words"), [(8, "its pixels are cut off"), (3, "cannot be used: it is damaged$")]
)
def test_faults_that_no_decoder_tells_are_said_in_words(depth: int, words: str) -> None:
    data = png_of_rows(16, 16, bytes(1 + 4 * 16) * 10, depth=depth, colour=6)
    with pytest.raises(BadPicture, match=words):
        asyncio.run(retouched("mask", data, Retouch(mask_from="alpha")))


@pytest.mark.parametrize(
    ("data", "error"),
    [(b"none", NotAPicture), (file_of(gradient(8, 8))[:40], BadPicture)],
    ids=["no picture", "cut off"],
)
def test_what_has_no_header_starts_no_child(
    data: bytes, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio, "create_subprocess_exec", None)
    with pytest.raises(error):
        asyncio.run(retouched("mask", data, Retouch()))


def test_what_is_too_large_starts_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "create_subprocess_exec", None)
    data = bytearray(file_of(gradient(8, 8)))
    data[16:24] = (50_000).to_bytes(4, "big") * 2
    with pytest.raises(TooLarge):
        asyncio.run(retouched("mask", bytes(data), Retouch()))


def test_child_has_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX_API_KEYS", "secret-0123456789")
    monkeypatch.setattr(
        retouch, "_START", "import os, sys; print(os.environ, file=sys.stderr); sys.exit(3)"
    )
    with pytest.raises(BadPicture) as raised:
        asyncio.run(retouched("mask", file_of(gradient(8, 8)), Retouch()))
    assert "secret" not in raised.value.message


def test_child_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retouch, "_START", "import time; time.sleep(600)")
    monkeypatch.setattr(retouch, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(Exception, match="took too long"):
        asyncio.run(retouched("mask", file_of(gradient(8, 8)), Retouch()))
