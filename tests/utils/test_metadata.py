"""What a picture says about itself: written, read back, and read from files that are not ours."""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from models.types import LoraRef, OutputFormat
from tests.utils.test_job_store import REQUEST
from utils import images
from utils.metadata import Origin, describe, infotext, read_png_texts, read_request, read_texts

ORIGIN = Origin(precision="bf16", engine="diffusers", model_reason="a test")


def png(**options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG", **options)
    return buffer.getvalue()


def encoded(prompt: str = "a", output_format: OutputFormat = OutputFormat.PNG) -> bytes:
    request = replace(REQUEST, prompt=prompt, output_format=output_format)
    return images.encode(Image.new("RGB", (2, 2)), request, seed=5, origin=ORIGIN)


def with_chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    whole = png()
    chunk = struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body))
    return whole[:33] + chunk + whole[33:]


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=50))
def test_read_request_gives_back_any_prompt(prompt: str) -> None:
    read = read_request(encoded(prompt))
    assert read == describe(replace(REQUEST, prompt=prompt), seed=5, origin=ORIGIN)
    assert read["request"]["prompt"] == prompt


def test_encode_same_request_gives_equal_bytes() -> None:
    assert encoded() == encoded()


@pytest.mark.parametrize("output_format", OutputFormat)
def test_encode_gives_the_format_asked_for(output_format: OutputFormat) -> None:
    image = Image.open(io.BytesIO(encoded(output_format=output_format)))
    assert image.format.lower() == output_format.value


@pytest.mark.parametrize("output_format", OutputFormat)
def test_read_texts_gives_back_what_was_written(output_format: OutputFormat) -> None:
    texts = read_texts(encoded("a red balloon", output_format))
    assert json.loads(texts["flux_api"])["request"]["prompt"] == "a red balloon"
    assert texts["parameters"].startswith("a red balloon")


@pytest.mark.parametrize("code", [b"ASCII\0\0\0", b"UNICODE\0"])
@pytest.mark.parametrize("name", ["JPEG", "WEBP"])
def test_read_texts_of_another_program_are_its_parameters(name: str, code: bytes) -> None:
    words = "a boat\nSteps: 20, Seed: 1"
    written = code + words.encode("utf-16-le" if code.startswith(b"U") else "latin-1")
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = written
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, name, exif=exif)
    assert read_texts(buffer.getvalue()) == {"parameters": words}


@settings(max_examples=150, deadline=None)
@given(
    place=st.integers(0, 700),
    byte=st.integers(0, 255),
    output_format=st.sampled_from(["jpeg", "webp"]),
)
def test_read_texts_of_a_damaged_file_reads_or_refuses(
    place: int, byte: int, output_format: str
) -> None:
    data = bytearray(encoded(output_format=OutputFormat(output_format)))
    data[place % len(data)] = byte
    try:
        assert isinstance(read_texts(bytes(data)), dict)
    except ValueError as error:
        assert str(error)


SKETCH = LoraRef(name="sketch", sha256="ab" * 32, weight=0.8, trigger_words=("sk3tch",))
INK = LoraRef(name="ink", sha256="cd" * 32, weight=-1.0)


def test_describe_has_the_loras_by_content() -> None:
    described = describe(replace(REQUEST, loras=(SKETCH, INK)), seed=5, origin=ORIGIN)
    assert described["request"]["loras"] == [
        {"name": "sketch", "sha256": "ab" * 32, "weight": 0.8, "trigger_words": ["sk3tch"]},
        {"name": "ink", "sha256": "cd" * 32, "weight": -1.0, "trigger_words": []},
    ]


def test_infotext_names_the_loras_as_others_do() -> None:
    prompt, parameters = infotext(replace(REQUEST, loras=(SKETCH, INK)), seed=5).splitlines()
    assert prompt == "sk3tch, a red balloon <lora:sketch:0.8> <lora:ink:-1>"
    assert parameters.endswith(', Lora hashes: "sketch: ababababab, ink: cdcdcdcdcd"')


def test_infotext_without_loras_says_nothing_of_them() -> None:
    assert "ora" not in infotext(REQUEST, seed=5)


def test_infotext_without_negative_prompt_has_the_guidance() -> None:
    text = infotext(replace(REQUEST, guidance_scale=3.5), seed=9)
    assert text.splitlines()[0] == "a red balloon"
    assert "Negative" not in text and "CFG scale: 3.5," in text and "Seed: 9," in text


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iTXt compressed"])
def test_read_png_texts_reads_every_kind(kind: str) -> None:
    info = PngInfo()
    if kind.startswith("iTXt"):
        info.add_itxt("key", "ä 🎈", zip="compressed" in kind)
    else:
        info.add_text("key", "value", zip=kind == "zTXt")
    expected = "ä 🎈" if kind.startswith("iTXt") else "value"
    assert read_png_texts(png(pnginfo=info)) == {"key": expected}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no PNG",
        b"\x89PNG\r\n\x1a\n",
        encoded()[:60],
        encoded()[:-1],
        encoded()[:-12],
        b"\x89PNG\r\n\x1a\n" + b"\xff\xff\xff\xffIHDR",
        with_chunk(b"zTXt", b"key\0\0not deflated"),
        with_chunk(b"iTXt", b"key\0\1\0\0\0not deflated"),
        with_chunk(b"iTXt", b"key\0\0\0\0\0\xff\xfe"),
        with_chunk(b"zTXt", b"key\0\0" + zlib.compress(b"a" * 2**21)),
    ],
    ids=range(11),
)
def test_read_png_texts_refuses_what_is_broken(data: bytes) -> None:
    with pytest.raises(ValueError):
        read_png_texts(data)


@pytest.mark.parametrize("position", range(0, 300, 7))
def test_read_png_texts_of_a_flipped_byte_reads_or_refuses(position: int) -> None:
    data = bytearray(encoded())
    data[position] ^= 0xFF
    try:
        texts = read_png_texts(bytes(data))
    except ValueError:
        return
    assert all(isinstance(text, str) for text in texts.values())


def test_read_request_of_a_foreign_png_says_so() -> None:
    with pytest.raises(ValueError, match="no flux_api chunk"):
        read_request(png())


def test_read_request_of_a_chunk_that_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError):
        read_request(with_chunk(b"tEXt", b"flux_api\0{"))
