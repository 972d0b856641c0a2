"""NaN and infinity are found in every dtype, wherever they stand, in bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from models.lora.errors import BadLoraFile
from models.lora.finite import CHUNK_BYTES, check_finite
from models.lora.header import read_header

EIGHT_BITS = (
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz
)  # fmt: skip


def is_finite(path: Path, tensors: dict[str, torch.Tensor]) -> bool:
    save_file(tensors, path)
    try:
        check_finite(path, read_header(path))
    except BadLoraFile as error:
        assert "'bad'" in error.message and error.status == 422
        return False
    return True


@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_check_finite_agrees_with_torch_on_every_byte(dtype: torch.dtype, tmp_path: Path) -> None:
    for byte in range(256):
        tensor = torch.tensor([0, byte], dtype=torch.uint8).view(dtype)
        expected = bool(tensor.float().isfinite().all())
        assert is_finite(tmp_path / "a", {"bad": tensor}) == expected, byte


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_check_finite_agrees_with_torch_on_every_sixteen_bits(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    finite = every.float().isfinite()
    assert is_finite(tmp_path / "a", {"good": every[finite]})
    for number in every[~finite][::37]:
        assert not is_finite(tmp_path / "a", {"bad": torch.stack([every[0] * 0, number])})


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    exponent=st.integers(0, 255) | st.sampled_from([254, 255]),
    mantissa=st.integers(0, 2**23 - 1) | st.just(0),
    negative=st.booleans(),
)
def test_check_finite_agrees_with_torch_on_any_single(
    tmp_path: Path, exponent: int, mantissa: int, negative: bool
) -> None:
    bits = (exponent << 23 | mantissa) - (2**31 if negative else 0)
    tensor = torch.tensor([0, bits], dtype=torch.int32).view(torch.float32)
    assert is_finite(tmp_path / "a", {"bad": tensor}) == bool(tensor.isfinite().all())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, CHUNK_BYTES // 4 - 1, CHUNK_BYTES // 4, -1])
def test_check_finite_one_number_in_a_large_tensor_is_found(
    value: float, at: int, tmp_path: Path
) -> None:
    tensor = torch.zeros(CHUNK_BYTES // 4 * 2 + 5)
    tensor[at] = value
    assert not is_finite(tmp_path / "a", {"good": torch.ones(3), "bad": tensor})


def test_check_finite_nan_alpha_is_found(tmp_path: Path) -> None:
    assert not is_finite(tmp_path / "a", {"bad": torch.tensor(float("nan"), dtype=torch.float64)})
    assert is_finite(tmp_path / "a", {"good": torch.tensor(2**62)})


def test_check_finite_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    save_file({"good": torch.zeros(25 * 1024**2)}, tmp_path / "a")  # 100 MiB
    header = read_header(tmp_path / "a")
    tracemalloc.start()
    try:
        check_finite(tmp_path / "a", header)
        growth = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert growth < 8 * CHUNK_BYTES


def test_check_finite_file_cut_after_its_header_was_read_is_refused(tmp_path: Path) -> None:
    save_file({"good": torch.zeros(1000)}, tmp_path / "a")
    header = read_header(tmp_path / "a")
    with (tmp_path / "a").open("r+b") as file:
        file.truncate(header.size_bytes - 10)
    with pytest.raises(BadLoraFile, match="shorter"):
        check_finite(tmp_path / "a", header)
