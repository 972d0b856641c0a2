"""The header of a safetensors file, read before anything else touches the file.

A file is eight bytes (the header's length, little endian), the header (a JSON object), the tensors' bytes:

    {"__metadata__": {text: text, ...},
     name: {"dtype": "BF16", "shape": [32, 3072], "data_offsets": [begin, end]}, ...}

The safetensors library checks offsets and sizes, and lets through what costs time and memory or lies in
wait: duplicate names, names like paths, hundreds of thousands of empty tensors, megabytes of metadata.
Here every limit is met while reading, so that a hostile file costs no more than an honest one: at most
MAX_HEADER_BYTES are read, strings are taken one by one by the standard library's scanner, a tensor's
entry is parsed alone and is short, and the first broken rule ends it. Nothing is unpickled or unpacked,
and only a regular file is opened. No torch: this runs in the API process.

Source: the format, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from config.errors import TooLarge
from models.lora.errors import BadLoraFile, NotSafetensors
from models.lora.json_cursor import Cursor, shown

MAX_FILE_BYTES = 2 * 1024**3
MAX_HEADER_BYTES = 4 * 1024**2
MAX_METADATA_BYTES = 64 * 1024
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 4
START_BYTES = 9 + 64  # of a file, that tell what kind it is

# Bytes of one number. Weights are floating point; the others are taken as single numbers, which is
# how some trainers write alpha.
WEIGHT_DTYPES = {
    "F32": 4, "F16": 2, "BF16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
}  # fmt: skip
NUMBER_DTYPES = {"F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}

_NAME = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*")  # no slash, no "..", nothing at the ends
_MAX_NAME_CHARS = 256
_FOREIGN = (
    (b"PK\x03\x04", "a ZIP archive (a PyTorch .pt or .bin file is one)"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"GGUF", "a GGUF file"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"RIFF", "a WebP picture"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer and not the file it points to"),
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: its bytes are `size_bytes` from `offset`, counted from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header that keeps every rule; tensors in the order of their bytes."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    size_bytes: int  # of the whole file


def read_header(path: Path | str, *, max_bytes: int = MAX_FILE_BYTES) -> Header:
    """The checked header of a file on disk.

    Raises NotSafetensors for files of another kind, BadLoraFile for a broken rule, TooLarge above
    `max_bytes`. Each says which rule, with the value.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise TooLarge(f"the file has {size} bytes; a LoRA may have {max_bytes}")
        length = _header_length(file.read(START_BYTES), size)
        file.seek(8)
        raw = file.read(length)
    if len(raw) != length:
        raise BadLoraFile("the file became shorter while it was read")
    tensors, metadata = _parse(_decode(raw))
    return Header(
        tensors=_place(tensors, start=8 + length, size=size), metadata=metadata, size_bytes=size
    )


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file for reading if it is a regular file and no link; raises BadLoraFile otherwise."""
    try:
        _check_regular(os.lstat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such name"
        raise BadLoraFile(f"the file cannot be opened: {reason}") from error
    try:
        _check_regular(os.fstat(descriptor).st_mode)  # it may have been exchanged
    except BadLoraFile:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = "link" if stat.S_ISLNK(mode) else "directory" if stat.S_ISDIR(mode) else "device"
        raise BadLoraFile(f"not a regular file: a {kind}")


def check_start(first: bytes) -> None:
    """Raise NotSafetensors if a file that begins so is of another kind."""
    # The brace decides: a length may look like another format's first bytes ("MZ" is 23117).
    if first[8:9] != b"{" or int.from_bytes(first[:8], "little") > MAX_HEADER_BYTES:
        _refuse_foreign(first)


def _header_length(first: bytes, size: int) -> int:
    length = int.from_bytes(first[:8], "little")
    check_start(first)
    if size < 10:
        raise BadLoraFile(f"the file has {size} bytes; the smallest safetensors file has 10")
    if first[8:9] != b"{":
        raise NotSafetensors("its first bytes are not those of a safetensors file")
    if length > MAX_HEADER_BYTES:
        raise BadLoraFile(f"the header says it has {length} bytes; {MAX_HEADER_BYTES} are allowed")
    if 8 + length > size:
        raise BadLoraFile(f"the header of {length} bytes is cut: the file has {size} bytes")
    if length < 2:
        raise BadLoraFile(f"a header of {length} bytes is no JSON object")
    return length


def _refuse_foreign(first: bytes) -> None:
    for magic, what in _FOREIGN:
        if first.startswith(magic):
            raise NotSafetensors(f"{what}; LoRAs are taken as .safetensors alone")
    if first[:1] == b"\x80" and first[1:2] in b"\x00\x01\x02\x03\x04\x05":
        raise NotSafetensors("a Python pickle, which is never opened; use .safetensors")
    if first and first.isascii() and b"\0" not in first:
        raise NotSafetensors("text; LoRAs are taken as .safetensors alone")


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadLoraFile(f"the header is not UTF-8: {error.reason}") from error


def _parse(text: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors, with offsets from the start of the data, and metadata."""
    cursor = Cursor(text)
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for key in cursor.keys():
        if key == "__metadata__":
            metadata = _metadata(cursor)
            continue
        if len(key) > _MAX_NAME_CHARS or not _NAME.fullmatch(key):
            raise BadLoraFile(
                f"tensor name {shown(key)}: a name has letters, digits, _ and -, with single dots "
                f"between, and at most {_MAX_NAME_CHARS} characters"
            )
        if len(tensors) == MAX_TENSORS:
            raise BadLoraFile(f"the file has more than {MAX_TENSORS} tensors")
        tensors[key] = _tensor(key, cursor.entry(key))
    cursor.end()
    if not tensors:
        raise BadLoraFile("the file has no tensors")
    return tensors, metadata


def _metadata(cursor: Cursor) -> dict[str, str]:
    start, metadata = cursor.at, {}
    for key in cursor.keys():
        if not cursor.at_text():
            raise BadLoraFile(f"metadata {shown(key)} is not text")
        metadata[key] = value = cursor.string()
        if cursor.at - start > MAX_METADATA_BYTES:
            break
        if "\0" in key + value or not _encodes(key + value):
            raise BadLoraFile(f"metadata {shown(key)} is not text")
    if len(cursor.text[start : cursor.at].encode()) > MAX_METADATA_BYTES:
        raise BadLoraFile(f"the metadata has more than {MAX_METADATA_BYTES} bytes")
    return metadata


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _tensor(name: str, pairs: Any) -> TensorInfo:
    fields = [pair[0] for pair in pairs]
    if sorted(fields) != ["data_offsets", "dtype", "shape"]:
        raise BadLoraFile(
            f"the entry of tensor {shown(name)} must have dtype, shape and data_offsets, each once"
        )
    entry = dict(pairs)
    shape, dtype = entry["shape"], entry["dtype"]
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS:
        raise BadLoraFile(f"tensor {shown(name)}: the shape must be at most {MAX_DIMENSIONS} sizes")
    count = math.prod(shape)
    if not count:
        raise BadLoraFile(f"tensor {shown(name)} is empty: shape {shape}")
    width = WEIGHT_DTYPES.get(dtype) if isinstance(dtype, str) else None
    if width is None and count == 1 and isinstance(dtype, str):
        width = NUMBER_DTYPES.get(dtype)
    if width is None:
        known = ", ".join(WEIGHT_DTYPES)
        raise BadLoraFile(f"tensor {shown(name)}: dtype {shown(str(dtype))} is none of {known}")
    offsets = entry["data_offsets"]
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != count * width:
        raise BadLoraFile(
            f"tensor {shown(name)}: {dtype} of shape {shown(str(shape))} has not the size its "
            f"data_offsets say"
        )
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1] - offsets[0])


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _place(tensors: dict[str, TensorInfo], *, start: int, size: int) -> dict[str, TensorInfo]:
    """Offsets from the start of the file; every byte of the data must belong to one tensor."""
    placed, expected = {}, 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1].offset):
        if info.offset != expected:
            what = (
                "overlaps the one before" if info.offset < expected else "leaves a hole before it"
            )
            raise BadLoraFile(f"tensor {shown(name)} at byte {shown(str(info.offset))} {what}")
        expected += info.size_bytes
        if start + expected > size:
            raise BadLoraFile(f"tensor {shown(name)} ends after the end of the file ({size} bytes)")
        placed[name] = TensorInfo(info.dtype, info.shape, start + info.offset, info.size_bytes)
    if start + expected != size:
        raise BadLoraFile(f"the file has {size - start - expected} bytes that belong to no tensor")
    return placed
