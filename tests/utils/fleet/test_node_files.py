"""What a machine of a fleet keeps for jobs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from utils.fleet.node_files import YOUNG_SECONDS, NodeFiles

DATA = b"a picture" * 1000
SHA = hashlib.sha256(DATA).hexdigest()


def files(folder: Path, most_gib: float = 1.0) -> NodeFiles:
    return NodeFiles(folder / "loras", folder / "inputs", most_gib)


def receive(node: NodeFiles, kind: str, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    node.begin(kind, sha256)
    for start in range(0, len(data), 4000):
        node.write(sha256, data[start : start + 4000])
    node.end(kind, sha256)
    return sha256


@pytest.mark.parametrize(
    ("kind", "path"), [("lora", f"loras/{SHA}.safetensors"), ("input", f"inputs/{SHA}")]
)
def test_node_files_received_file_lies_where_workers_read(
    tmp_path: Path, kind: str, path: str
) -> None:
    node = files(tmp_path)
    assert node.missing([(kind, SHA)]) == [(kind, SHA)]
    receive(node, kind, DATA)
    assert (tmp_path / path).read_bytes() == DATA
    assert node.missing([(kind, SHA)]) == []


def test_node_files_damaged_file_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    node = files(tmp_path)
    node.begin("lora", SHA)
    node.write(SHA, DATA[:-1])
    with pytest.raises(ValueError, match="came damaged"):
        node.end("lora", SHA)
    assert list((tmp_path / "loras").iterdir()) == []


def test_node_files_begun_anew_forgets_the_first_half(tmp_path: Path) -> None:
    node = files(tmp_path)
    node.begin("input", SHA)
    node.write(SHA, b"half")
    receive(node, "input", DATA)
    assert [path.name for path in (tmp_path / "inputs").iterdir()] == [SHA]


@pytest.mark.parametrize("name", ["../../x", "a" * 63, "A" * 64, "/" * 64, ""])
def test_node_files_name_that_is_no_hash_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no SHA-256"):
        files(tmp_path).begin("lora", name)
    assert list(tmp_path.iterdir()) == []


def test_node_files_used_longest_ago_go_when_there_is_too_much(tmp_path: Path) -> None:
    node = files(tmp_path, most_gib=2.5 * len(DATA) / 2**30)
    names = [receive(node, "input", DATA[:-1] + bytes([index])) for index in range(2)]
    for age, name in zip((3, 2), names, strict=True):
        then = os.stat(tmp_path / "inputs" / name).st_mtime - age * YOUNG_SECONDS
        os.utime(tmp_path / "inputs" / name, (then, then))
    third = receive(node, "lora", DATA)
    assert node.missing([("input", names[0]), ("input", names[1]), ("lora", third)]) == [
        ("input", names[0])
    ]


def test_node_files_used_lately_stay_whatever_they_take(tmp_path: Path) -> None:
    node = files(tmp_path, most_gib=1e-9)
    kept = [receive(node, "input", DATA + bytes([index])) for index in range(3)]
    assert node.missing([("input", name) for name in kept]) == []
