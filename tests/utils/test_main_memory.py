"""Main memory, and a container's limit of it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from utils import main_memory

GIB = 2**30


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    (tmp_path / "memory.max").write_text(f"{2 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{3 * GIB // 2}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {GIB // 4}\n")
    return tmp_path


def test_limit_of_a_container_counts(cgroup: Path) -> None:
    assert main_memory.total_gib(cgroup) == 2.0
    assert main_memory.free_gib(cgroup) == 0.75


def test_without_a_limit_it_is_the_machines(tmp_path: Path) -> None:
    machine = psutil.virtual_memory().total / GIB
    assert main_memory.total_gib(tmp_path) == machine
    (tmp_path / "memory.max").write_text("max\n")
    assert main_memory.total_gib(tmp_path) == machine
    assert 0 < main_memory.free_gib(tmp_path) < machine


def test_limit_above_the_machines_memory_is_none(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(str(2**62))
    assert main_memory.total_gib(tmp_path) == psutil.virtual_memory().total / GIB


def test_resident_is_what_this_process_holds() -> None:
    before = main_memory.resident_gib()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    assert main_memory.resident_gib() - before > 0.05
