"""The header's rules, each with the file that breaks it; and any bytes at all."""

from __future__ import annotations

import json
import os
import pickle
import socket
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from config.errors import TooLarge
from models.lora import convert as convert_module
from models.lora import json_cursor
from models.lora.convert import convert
from models.lora.errors import BadLoraFile, LoraError, NotSafetensors
from models.lora.finite import check_finite
from models.lora.header import MAX_HEADER_BYTES, read_header
from models.lora.inspect import inspect

GROWTH_BYTES = 50_000_000
A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def pack(
    header: str | bytes | dict, data: bytes = b"\0" * 8, *, length: int | None = None
) -> bytes:
    if isinstance(header, dict):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entries(count: int, shape: str = "[0]") -> str:
    rows = (f'"t{i}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}' for i in range(count))
    return "{" + ",".join(rows) + "}"


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


BROKEN: dict[str, tuple[bytes, str]] = {
    # what the safetensors library refuses by itself
    "empty": (b"", "0 bytes"),
    "seven bytes": (b"\x10\0\0\0\0\0\0", "7 bytes"),
    "header longer than the file": (pack({"a": A}, b"", length=5000), "cut"),
    "header length 2^63": (pack({"a": A}, length=2**63), str(2**63)),
    "header over 4 MiB": (pack(b"{" + b" " * MAX_HEADER_BYTES), "are allowed"),
    "bad JSON": (pack('{"a": nonsense}'), "not described"),
    "bad UTF-8": (pack(b'{"\xff\xfe": 1}'), "UTF-8"),
    "overlapping": (pack({"a": A, "b": A | {"data_offsets": [4, 12]}}, b"\0" * 12), "overlaps"),
    "same bytes twice": (pack({"a": A, "b": A}), "overlaps"),
    "past the end": (pack({"a": A}, b"\0" * 4), "after the end"),
    "trailing bytes": (pack({"a": A}, b"\0" * 9), "belong to no tensor"),
    "hole": (pack({"a": A, "b": A | {"data_offsets": [12, 20]}}, b"\0" * 20), "hole"),
    "hole at the start": (pack({"a": A | {"data_offsets": [4, 12]}}, b"\0" * 12), "hole"),
    "shape against size": (pack({"a": A | {"shape": [3]}}), "data_offsets"),
    "shape overflow": (pack({"a": A | {"shape": [2**62, 2**62]}}), "data_offsets"),
    "shape wraps to the size": (pack({"a": A | {"shape": [2**63 + 1, 2]}}), "data_offsets"),
    "unknown dtype": (pack({"a": A | {"dtype": "F77"}}), "F77"),
    "metadata is a number": (pack({"__metadata__": {"a": 1}, "a": A}), "not text"),
    "metadata is an object": (pack({"__metadata__": {"a": {"b": "c"}}, "a": A}), "not text"),
    "metadata is a list": (pack({"__metadata__": ["a"], "a": A}), "expected"),
    "metadata is null": (pack({"__metadata__": None, "a": A}), "expected"),
    # what the library lets through
    "no tensors": (pack("{}", b""), "no tensors"),
    "metadata alone": (pack({"__metadata__": {"a": "b"}}, b""), "no tensors"),
    "duplicate name": (pack(f'{{"a": {json.dumps(A)}, "a": {json.dumps(A)}}}'), "twice"),
    "duplicate name, escaped": (pack(f'{{"a": {json.dumps(A)}, "\\u0061": {json.dumps(A)}}}'), "twice"),
    "duplicate field": (
        pack('{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8],"shape":[2]}}'), "each once",
    ),
    "duplicate metadata": (pack(f'{{"__metadata__":{{"k":"1","k":"2"}},"a":{json.dumps(A)}}}'), "twice"),
    "two metadata": (pack(f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{json.dumps(A)}}}'), "twice"),
    "name is a path": (pack({"../../x": A}), "name"),
    "name is absolute": (pack({"/etc/passwd": A}), "name"),
    "name with backslash": (pack({"..\\x": A}), "name"),
    "name of two dots": (pack({"..": A}), "name"),
    "name with dots inside": (pack({"a..b": A}), "name"),
    "name with NUL": (pack({"a\0b": A}), "name"),
    "name empty": (pack({"": A}), "name"),
    "name not ASCII": (pack({"ä": A}), "name"),
    "name with half a character": (pack('{"\\ud800":' + json.dumps(A) + "}"), "name"),
    "name with a line feed at its end": (pack({"a\n": A}), "name"),
    "name long": (pack({"a" * 300: A}), "name"),
    "300 000 empty tensors": (pack(entries(70_000), b""), "empty"),
    "20 001 tensors": (
        pack(
            "{" + ",".join(
                f'"{i}":{{"dtype":"F8_E5M2","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i in range(20_001)
            ) + "}", b"\0" * 20_001,
        ), "more than 20000",
    ),
    "metadata over 64 KiB": (pack({"__metadata__": {"a": "b" * 65_536}, "a": A}), "metadata"),
    "metadata over 64 KiB in many": (
        pack({"__metadata__": {f"{i}": "é" * 9 for i in range(3_000)}, "a": A}), "metadata",
    ),
    "metadata of 4 MiB": (pack({"__metadata__": {"a": "b" * 4_100_000}, "a": A}), "metadata"),
    "metadata with NUL": (pack({"__metadata__": {"a": "b\0c"}, "a": A}), "not text"),
    "metadata with half a character": (
        pack('{"__metadata__":{"a":"\\udfff"},"a":' + json.dumps(A) + "}"), "not text",
    ),
    # ours
    "five dimensions": (pack({"a": A | {"shape": [1, 1, 1, 1, 2]}}), "at most 4"),
    "negative size": (pack({"a": A | {"shape": [-2]}}), "at most 4"),
    "size is a float": (pack({"a": A | {"shape": [2.0]}}), "at most 4"),
    "size is true": (pack({"a": A | {"shape": [True, 2]}}), "at most 4"),
    "negative offset": (pack({"a": A | {"data_offsets": [-8, 0]}}), "data_offsets"),
    "offsets backwards": (pack({"a": A | {"data_offsets": [8, 0]}}), "data_offsets"),
    "three offsets": (pack({"a": A | {"data_offsets": [0, 8, 8]}}), "data_offsets"),
    "weights of integers": (pack({"a": A | {"dtype": "I32"}}), "I32"),
    "dtype is a list": (pack({"a": A | {"dtype": ["F32"]}}), "dtype"),
    "field missing": (pack({"a": {"dtype": "F32", "shape": [2]}}), "must have"),
    "field too many": (pack({"a": A | {"x": 1}}), "must have"),
    "entry is a number": (pack('{"a": 5}'), "not described"),
    "entry is deep": (pack('{"a": {"shape": ' + "[" * 400 + "]" * 400 + "}}"), "a"),
    "entry with NaN": (pack('{"a": {"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}'), "JSON"),
    "deep nesting": (pack('{"a":' + "[" * 2_000_000 + "]" * 2_000_000 + "}"), "not described"),
    "nested objects": (pack('{"a":' * 500_000 + "1" + "}" * 500_000), "not described"),
    "four megabytes of numbers": (pack('{"a":{"shape":[' + "999," * 1_000_000 + "1]}}"), "not described"),
    "four megabytes of one string": (pack('{"' + "x" * 4_190_000), "string"),
    "four megabytes of one name": (pack('{"' + "x" * 4_190_000 + '":1}'), "name"),
    "four megabytes in four-byte characters": (pack('{"a' + "😀" * 1_000_000 + '":1}'), "name"),
    "array": (pack("[]        "), "first bytes"),
    "second object": (pack(json.dumps({"a": A}) + "{}"), "goes on"),
    "cut object": (pack('{"a": ' + json.dumps(A)), "where it ends"),
    "comma at the end": (pack('{"a": ' + json.dumps(A) + ",}"), "expected"),
    "length 0": (pack("", b"{}123456"), "header of 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_read_header_broken_rule_is_refused_in_little_memory(name: str, tmp_path: Path) -> None:
    content, words = BROKEN[name]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(LoraError) as caught:
            read_header(path)
        growth = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert words in caught.value.message
    assert caught.value.code == "bad_file" and caught.value.status in (415, 422)
    assert len(caught.value.message) < 400
    assert growth < GROWTH_BYTES


def test_read_header_largest_allowed_header_takes_little_memory(tmp_path: Path) -> None:
    count = 20_000
    rows = {
        "__metadata__": {"a": "😀" * 10_000},
        **{
            f"{i:0150d}": {"dtype": "F8_E5M2", "shape": [1, 1, 1, 1], "data_offsets": [i, i + 1]}
            for i in range(count)
        },
    }
    raw = json.dumps(rows, separators=(",", ":"), ensure_ascii=False)
    raw = raw.encode()[: MAX_HEADER_BYTES + 1]
    if len(raw) > MAX_HEADER_BYTES:  # as many as fit
        keep = raw[:MAX_HEADER_BYTES].rfind(b',"0')
        raw, count = raw[:keep] + b"}", raw[:keep].count(b"dtype")
    path = tmp_path / "a.safetensors"
    path.write_bytes(pack(raw, b"\0" * count))
    tracemalloc.start()
    try:
        header = read_header(path)
        check_finite(path, header)
        growth = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(header.tensors) == count > 15_000
    assert growth < GROWTH_BYTES


def test_read_header_valid_file_tells_where_tensors_are(tmp_path: Path) -> None:
    tensors = {"b.c": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(4, dtype=torch.int64)}
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(tensors, {"note": "ünï"}))
    header = read_header(path)
    assert header.metadata == {"note": "ünï"} and header.size_bytes == path.stat().st_size
    assert set(header.tensors) == {"b.c", "a"} and header.tensors["b.c"].shape == (2, 3)
    info, raw = header.tensors["b.c"], path.read_bytes()
    assert raw[info.offset : info.offset + info.size_bytes] == tensors["b.c"].numpy().tobytes()


@pytest.mark.parametrize("length", [0x5A4D, 0x8B1F, 0x0480])
def test_read_header_length_that_looks_like_another_format_is_accepted(
    length: int, tmp_path: Path
) -> None:
    raw = json.dumps({"a": A}).encode().ljust(length)
    path = tmp_path / "a.safetensors"
    path.write_bytes(pack(raw))
    assert list(read_header(path).tensors) == ["a"]


def test_read_header_file_over_the_limit_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(pack({"a": A}))
        file.truncate(2 * 1024**3 + 1)  # sparse
    with pytest.raises(TooLarge):
        read_header(path)


# Files of other kinds


def as_pickle(canary: Path, protocol: int) -> bytes:
    return pickle.dumps({"state": Canary(canary), "padding": "x" * 100}, protocol)


@pytest.mark.parametrize("kind", ["pickle0", "pickle2", "pickle4", "pickle5", "torch", "old torch"])
def test_pickle_named_safetensors_is_opened_by_no_parser(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary, path = tmp_path / "canary", tmp_path / "a.safetensors"
    if kind.startswith("pickle"):
        path.write_bytes(as_pickle(canary, int(kind[-1])))
    else:
        torch.save(Canary(canary), path, _use_new_zipfile_serialization=kind == "torch")

    def opened(*args, **kwargs):
        raise AssertionError("a parser was called")

    for parser in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, parser, opened)
    monkeypatch.setattr(torch, "load", opened)
    monkeypatch.setattr(zipfile, "ZipFile", opened)
    monkeypatch.setattr(convert_module, "safe_open", opened)
    monkeypatch.setattr(json_cursor, "scanstring", opened)
    for read in (read_header, inspect, convert):
        with pytest.raises(NotSafetensors) as caught:
            read(path)
        assert caught.value.status == 415
    assert not canary.exists()


def test_pickle_canary_would_have_been_touched(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(as_pickle(canary, 4))
    assert canary.exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"PK\x03\x04" + b"\0" * 100, "ZIP"), (b"\x1f\x8b\x08" + b"\xee" * 100, "gzip"),
        (b"GGUF\x03\0\0\0" + b"\0" * 100, "GGUF"), (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "PNG"),
        (b"<!DOCTYPE html><html>not found</html>", "text"), (b'{"error": "not found"}', "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "LFS"),
        (b"\x7fELF" + b"\x02" * 100, "program"), (b"\0" * 100, "first bytes"),
    ],
)  # fmt: skip
def test_read_header_other_format_is_named(content: bytes, word: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(NotSafetensors, match=word):
        read_header(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_link(path: Path) -> None:
    path.with_name("real").write_bytes(pack({"a": A}))
    path.symlink_to(path.with_name("real"))


@pytest.mark.parametrize("make", [os.mkfifo, make_socket, make_link, os.mkdir, lambda path: None])
def test_read_header_what_is_no_regular_file_is_not_opened(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "a"
    make(path)
    with pytest.raises(BadLoraFile):
        read_header(path)


@pytest.mark.parametrize("make", [os.mkfifo, make_link, os.mkdir])
def test_read_header_file_exchanged_after_the_first_look_is_not_read(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regular, path = tmp_path / "regular", tmp_path / "a"
    regular.write_bytes(pack({"a": A}))
    make(path)
    monkeypatch.setattr(os, "lstat", lambda _: os.stat(regular))
    with pytest.raises(BadLoraFile):
        read_header(path)


@pytest.mark.parametrize("path", ["/dev/zero", "a\0b", "x" * 300])
def test_read_header_hostile_path_is_refused(path: str) -> None:
    with pytest.raises(BadLoraFile):
        read_header(path)


# Any bytes


VALID = save(
    {
        "transformer.x_embedder.lora_A.weight": torch.ones(2, 3),
        "transformer.x_embedder.lora_B.weight": torch.ones(3, 2).bfloat16(),
    },
    {"a": "b"},
)
HEADER = VALID[8 : 8 + int.from_bytes(VALID[:8], "little")].decode()
quick = settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def accepted(path: Path, content: bytes) -> bool:
    """Whether we take it; if so the library must too, and describing it must not crash."""
    path.write_bytes(content)
    try:
        header = read_header(path)
    except LoraError:
        return False
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(header.tensors)
    inspect(path)
    return True


@quick
@given(st.binary(max_size=200))
def test_read_header_any_bytes_end_in_our_error(tmp_path: Path, content: bytes) -> None:
    accepted(tmp_path / "a", content)


@quick
@given(
    at=st.integers(0, len(VALID) - 1),
    replacement=st.binary(max_size=3),
    removed=st.integers(0, 3),
)
def test_read_header_damaged_file_ends_in_our_error_or_is_valid(
    tmp_path: Path, at: int, replacement: bytes, removed: int
) -> None:
    accepted(tmp_path / "a", VALID[:at] + replacement + VALID[at + removed :])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
tensor_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "I64", "F4", "F64"]) | json_values,
        "shape": st.lists(st.integers(-1, 3), max_size=5) | json_values,
        "data_offsets": st.lists(st.integers(-1, 20), max_size=3) | json_values,
    }
)


@quick
@given(
    header=st.dictionaries(
        st.text(max_size=8) | st.sampled_from(["a", "b", "__metadata__", "a.lora_A.weight"]),
        tensor_entries | json_values,
        max_size=3,
    ),
    size=st.integers(0, 24),
)
def test_read_header_any_json_ends_in_our_error_or_is_valid(
    tmp_path: Path, header: dict, size: int
) -> None:
    accepted(tmp_path / "a", pack(header, b"\0" * size))


@settings(quick, max_examples=100)
@given(
    dtypes=st.lists(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), min_size=1, max_size=4),
    shape=st.lists(st.integers(1, 4), max_size=4),
    metadata=st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=3),
)  # fmt: skip
def test_read_header_whatever_the_library_writes_is_accepted(
    tmp_path: Path, dtypes: list[torch.dtype], shape: list[int], metadata: dict[str, str]
) -> None:
    tensors = {f"t{i}": torch.zeros(shape, dtype=dtype) for i, dtype in enumerate(dtypes)}
    assert accepted(tmp_path / "a", save(tensors, metadata))
    assert read_header(tmp_path / "a").metadata == metadata


def test_valid_file_of_the_fuzzers_is_accepted(tmp_path: Path) -> None:
    assert accepted(tmp_path / "a", VALID) and json.loads(HEADER)["__metadata__"] == {"a": "b"}
