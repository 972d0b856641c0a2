"""Input pictures: kept by content, gone when nobody needs them, decoded whatever they are made of."""

from __future__ import annotations

import asyncio
import os
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from PIL import Image

from config.errors import BadPicture, NotAPicture, NotFound, StorageUnavailable, TooLarge
from tests.pictures import file_of, gradient, png_of_rows, turned
from utils import input_pictures
from utils.input_pictures import InputPicture, InputPictures, looked_at, open_image, open_mask

PNG = file_of(gradient(20, 10))


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "inputs"


@pytest.fixture
def pictures(folder: Path, clock: Clock) -> InputPictures:
    return InputPictures(folder, clock)


def kept_in(pictures: InputPictures, data: bytes) -> InputPicture:
    picture = looked_at("image", data)
    pictures.keep(picture, data)
    return picture


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def sweep(pictures: InputPictures, *wanted: str) -> None:
    async def open_inputs() -> set[str]:
        return set(wanted)

    async def once() -> None:
        await pictures.start(open_inputs)
        await pictures.stop()

    asyncio.run(once())


# Keeping


def test_keep_puts_the_bytes_under_their_content(pictures: InputPictures, folder: Path) -> None:
    kept = kept_in(pictures, PNG)
    assert (kept.width, kept.height) == (20, 10)
    assert (folder / kept.sha256).read_bytes() == PNG
    assert names(folder) == {kept.sha256}


def test_keep_of_the_same_bytes_is_one_file(pictures: InputPictures, folder: Path) -> None:
    assert kept_in(pictures, PNG) == kept_in(pictures, PNG)
    assert len(names(folder)) == 1


def test_keep_syncs_file_and_folder_before_it_returns(
    pictures: InputPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_mode))
    kept_in(pictures, PNG)
    assert [stat.S_ISDIR(mode) for mode in synced] == [False, True]


def test_keep_that_the_disk_refuses_leaves_nothing(
    pictures: InputPictures, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_handle: int) -> None:
        raise OSError(5, "no such luck")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageUnavailable, match="FLUX_DATA_DIR"):
        kept_in(pictures, PNG)
    assert names(folder) == set()


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"hello", NotAPicture, "PNG, JPEG or WebP"),
        (file_of(gradient(4, 4), "GIF"), NotAPicture, "PNG, JPEG or WebP"),
        (PNG[:-20], BadPicture, "cut off"),
        (b"", NotAPicture, "PNG, JPEG or WebP"),
    ],
)
def test_looked_at_refuses_what_is_no_sound_picture(data: bytes, error: type, words: str) -> None:
    with pytest.raises(error, match=f"mask: .*{words}"):
        looked_at("mask", data)


def bomb(width: int, height: int) -> bytes:
    """A small PNG whose header says that it is large."""
    header = struct.pack(">II", width, height) + PNG[24:29]
    return PNG[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + PNG[33:]


def test_looked_at_refuses_more_pixels_than_are_taken() -> None:
    assert looked_at("image", bomb(8192, 8192)).width == 8192
    with pytest.raises(TooLarge, match="image: has 8193x8192 px"):
        looked_at("image", bomb(8193, 8192))


# Letting go


def test_require_of_a_picture_that_is_gone_is_not_found(pictures: InputPictures) -> None:
    with pytest.raises(NotFound, match="send it again"):
        pictures.require(["ab" * 32])


def test_sweep_leaves_what_an_open_job_has(
    pictures: InputPictures, folder: Path, clock: Clock
) -> None:
    kept = kept_in(pictures, PNG)
    clock.now += 10 * input_pictures.KEPT_SECONDS
    sweep(pictures, kept.sha256)
    assert names(folder) == {kept.sha256}


def test_sweep_removes_what_nobody_has_had_for_a_while(
    pictures: InputPictures, folder: Path, clock: Clock
) -> None:
    kept_in(pictures, PNG)
    clock.now += input_pictures.KEPT_SECONDS + 1
    sweep(pictures)
    assert names(folder) == set()


def test_sweep_leaves_the_pictures_of_a_job_that_has_just_ended(
    pictures: InputPictures, folder: Path, clock: Clock
) -> None:
    kept = kept_in(pictures, PNG)
    clock.now += 2 * input_pictures.KEPT_SECONDS
    pictures.job_ended([kept.sha256, "cd" * 32])
    clock.now += input_pictures.KEPT_SECONDS / 2
    sweep(pictures)
    assert names(folder) == {kept.sha256}
    pictures.require([kept.sha256])


def test_sweep_removes_the_oldest_when_they_are_too_much(
    pictures: InputPictures, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_pictures, "KEPT_BYTES", 2.5 * len(PNG))
    kept = []
    for width in (21, 22, 23, 24):
        picture = file_of(gradient(width, 10))
        kept.append(kept_in(pictures, picture + b"\0" * (len(PNG) - len(picture))).sha256)
        clock.now += 100
    sweep(pictures, kept[1])
    assert names(folder) == {kept[1], kept[2], kept[3]}


def test_sweep_leaves_a_picture_whose_job_is_on_its_way(
    pictures: InputPictures, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_pictures, "KEPT_BYTES", 0)
    kept = kept_in(pictures, PNG)
    clock.now += input_pictures.NEW_SECONDS - 1
    sweep(pictures)
    assert names(folder) == {kept.sha256}


def test_start_removes_what_a_process_left_half_way(pictures: InputPictures, folder: Path) -> None:
    folder.mkdir()
    (folder / ".half").write_bytes(b"half")
    sweep(pictures)
    assert names(folder) == set()


# Decoding

Opened = Callable[..., Image.Image]


@pytest.fixture
def opened(pictures: InputPictures, folder: Path) -> Opened:
    def opened(data: bytes, size: tuple[int, int], how=open_image) -> Image.Image:
        return how(folder, kept_in(pictures, data).sha256, size)

    return opened


def test_open_image_of_the_right_size_has_the_very_pixels(opened: Opened) -> None:
    picture = gradient(48, 32)
    assert opened(file_of(picture), (48, 32)).tobytes() == picture.tobytes()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_open_image_is_upright(opened: Opened, format: str, orientation: int) -> None:
    # What the camera saw has a bright left half; the file holds it turned.
    upright = numpy.zeros((32, 48, 3), numpy.uint8)
    upright[:, :24] = 255
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(upright)
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    data = file_of(stored, format, exif=turned(orientation))
    seen = numpy.asarray(opened(data, (48, 32)))
    assert seen[:, :20].min() > 240 and seen[:, 28:].max() < 15


def test_open_image_transparent_parts_are_white(opened: Opened) -> None:
    picture = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    picture.paste((0, 0, 200, 255), (0, 0, 8, 16))
    seen = opened(file_of(picture), (16, 16))
    assert (seen.getpixel((2, 2)), seen.getpixel((12, 2))) == ((0, 0, 200), (255, 255, 255))


def test_open_image_of_a_palette_with_a_transparent_colour(opened: Opened) -> None:
    picture = Image.new("P", (16, 16), 1)
    picture.putpalette([10, 20, 30, 0, 250, 0])
    picture.paste(0, (0, 0, 8, 16))
    seen = opened(file_of(picture, transparency=0), (16, 16))
    assert (seen.getpixel((2, 2)), seen.getpixel((12, 2))) == ((255, 255, 255), (0, 250, 0))


def test_open_image_of_16_bits_keeps_its_brightness(opened: Opened) -> None:
    values = numpy.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(numpy.uint16)
    seen = numpy.asarray(opened(file_of(Image.fromarray(values)), (16, 16))).astype(int)
    assert numpy.abs(seen[..., 0] - values / 257).max() <= 1


def test_open_image_of_cmyk_is_the_colour(opened: Opened) -> None:
    data = file_of(Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK"), "JPEG", quality=95)
    seen = opened(data, (16, 16))
    assert seen.mode == "RGB"
    assert all(abs(a - b) < 12 for a, b in zip(seen.getpixel((8, 8)), (200, 30, 60), strict=True))


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (16, 48)])
def test_open_image_of_another_shape_covers_and_keeps_its_middle(
    opened: Opened, size: tuple[int, int]
) -> None:
    picture = Image.new("RGB", (120, 90), (0, 0, 0))
    picture.paste((255, 255, 255), (50, 35, 70, 55))
    seen = opened(file_of(picture), size)
    assert seen.size == size
    assert seen.getpixel((size[0] // 2, size[1] // 2)) == (255, 255, 255)
    assert seen.getpixel((0, 0)) == (0, 0, 0)


def test_open_mask_transparent_parts_stay(opened: Opened) -> None:
    mask = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 8, 16))
    seen = opened(file_of(mask), (16, 16), open_mask)
    assert (seen.mode, seen.getpixel((2, 2)), seen.getpixel((12, 2))) == ("L", 255, 0)


def test_open_mask_keeps_greys(opened: Opened) -> None:
    assert opened(file_of(Image.new("L", (16, 16), 77)), (16, 16), open_mask).getpixel((3, 3)) == 77


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_open_image_of_a_damaged_stream_is_refused_by_name(folder: Path, format: str) -> None:
    whole = file_of(gradient(64, 64), format)
    if format == "PNG":
        start = whole.index(b"IDAT") + 8
        damaged = whole[:start] + bytes(40) + whole[start + 40 :]
    else:
        damaged = whole[: len(whole) * 2 // 3]
    folder.mkdir()
    (folder / ("ab" * 32)).write_bytes(damaged)
    with pytest.raises(BadPicture, match="image: the picture cannot be decoded"):
        open_image(folder, "ab" * 32, (64, 64))


@pytest.mark.parametrize(
    ("bits", "rows", "words"),
    [
        (
            8,
            40,
            "its pixels are cut off; send it whole",
        ),  # of 64: Pillow alone would leave the rest black
        (3, 64, "it is damaged; send it whole"),  # there is no such depth
    ],
)
def test_open_image_whose_fault_no_decoder_tells_is_refused_in_words(
    folder: Path, bits: int, rows: int, words: str
) -> None:
    folder.mkdir()
    data = png_of_rows(64, 64, bytes(1 + 3 * 64) * rows, depth=bits)
    (folder / ("ab" * 32)).write_bytes(data)
    with pytest.raises(BadPicture, match=f"image: the picture cannot be decoded: {words}"):
        open_image(folder, "ab" * 32, (64, 64))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_open_image_that_tells_two_sizes_is_refused_before_a_pixel(
    folder: Path, format: str
) -> None:
    whole = file_of(gradient(16, 16), format)
    if format == "PNG":
        data = whole[:33] + bomb(9000, 9000)[8:33] + whole[33:]
    else:
        start = whole.index(b"\xff\xc0")
        frame = whole[start : start + 2 + int.from_bytes(whole[start + 2 : start + 4])]
        large = frame[:5] + struct.pack(">HH", 9000, 9000) + frame[9:]
        data = whole[: start + len(frame)] + large + whole[start + len(frame) :]
    folder.mkdir()
    (folder / ("ab" * 32)).write_bytes(data)
    with pytest.raises(BadPicture, match="two sizes"):
        open_image(folder, "ab" * 32, (64, 64))


def test_open_image_that_is_gone_is_not_found(folder: Path) -> None:
    with pytest.raises(NotFound, match="mask: .*send it again"):
        open_mask(folder, "ab" * 32, (64, 64))
