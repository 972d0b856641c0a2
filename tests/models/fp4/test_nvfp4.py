"""The format: bit for bit diffusers' own, and what the head of the module says of it."""

from __future__ import annotations

import pytest
import torch
from diffusers.quantizers.bfl.utils import dequantize_nvfp4, quantize_nvfp4
from hypothesis import given, settings
from hypothesis import strategies as st

from models.fp4 import nvfp4

SEEDS = st.integers(0, 2**31)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    kinds = {torch.float32: torch.int32, torch.float8_e4m3fn: torch.uint8}
    return tensor.view(kinds.get(tensor.dtype, tensor.dtype))


def assert_as_diffusers(weight: torch.Tensor) -> None:
    ours = nvfp4.quantize(weight)
    theirs = quantize_nvfp4(weight)
    for mine, other in zip((ours.packed, ours.block_scale, ours.global_scale), theirs, strict=True):
        assert mine.dtype == other.dtype and torch.equal(bits(mine), bits(other))
    assert torch.equal(bits(nvfp4.dequantize(ours)), bits(dequantize_nvfp4(*theirs)))


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    rows=st.integers(1, 20),
    blocks=st.integers(1, 6),
    exponent=st.integers(-44, 37),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    tail=st.sampled_from([1, 3, 9]),
)
def test_random_tensors_of_any_size_agree_with_diffusers(
    seed: int, rows: int, blocks: int, exponent: int, dtype: torch.dtype, tail: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, 16 * blocks, generator=generator).clamp(-3, 3)
    # Odd powers keep the sign and make the tails longer.
    assert_as_diffusers((values**tail * 10.0**exponent / 3.0 ** (tail - 1)).to(dtype))


def test_every_code_and_every_tie_agree_with_diffusers() -> None:
    steps = torch.arange(-24, 25) / 4  # all E2M1 values and all middles between two
    weight = torch.stack([steps.roll(n)[:48] for n in range(49)])
    weight[:, ::16] = 6.0  # so that every block's scale is 1 of the tensor's
    assert_as_diffusers(weight * 448)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grid_rounds_every_value_and_every_tie_as_encode_does(dtype: torch.dtype) -> None:
    ties = torch.arange(-32, 33, dtype=dtype) / 4
    beside = [torch.nextafter(ties, torch.full_like(ties, side)) for side in (-100, 100)]
    scaled = torch.cat([ties, *beside, torch.tensor([-0.0, 1e-30, -1e30], dtype=dtype)])
    assert torch.equal(
        nvfp4.Grid(scaled).nearest(scaled), nvfp4.decode(nvfp4.encode(scaled)).to(dtype)
    )


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(4, 32),
        -torch.zeros(4, 32),
        torch.full((2, 16), 1e-45),
        torch.full((2, 16), -1.1e-38),
        torch.full((2, 16), torch.finfo(torch.float32).max),
        torch.randn(8, 64, generator=torch.Generator().manual_seed(1)) * 1e-41,
        torch.cat([torch.zeros(4, 16), torch.ones(4, 16)], dim=1),
        torch.ones(4, 64).index_fill(1, torch.tensor([17]), 1e30),
        torch.ones(1, 16) * torch.tensor([1e-30] * 15 + [1e30]),
    ],
    ids=[
        "zeros", "minus zeros", "smallest subnormal", "subnormal", "largest", "subnormals",
        "a block of zeros", "outlier in every row", "outlier in the block",
    ],
)  # fmt: skip
def test_extreme_tensors_agree_with_diffusers(weight: torch.Tensor) -> None:
    assert_as_diffusers(weight)


@pytest.mark.parametrize("weight", [torch.zeros(4, 32), torch.full((2, 16), 1e-45)])
def test_without_nan_makes_zeros_of_what_is_too_small(weight: torch.Tensor) -> None:
    tensor = nvfp4.quantize(weight)
    assert tensor.block_scale.float().isnan().any(), "diffusers' oddity is gone: drop without_nan"
    assert torch.equal(nvfp4.dequantize(nvfp4.without_nan(tensor)), torch.zeros_like(weight))


def test_without_nan_leaves_ordinary_tensors_alone() -> None:
    tensor = nvfp4.quantize(torch.randn(8, 32))
    assert torch.equal(bits(nvfp4.without_nan(tensor).block_scale), bits(tensor.block_scale))


@pytest.mark.parametrize("columns", [0, 1, 8, 17, 100])
def test_quantize_refuses_columns_that_are_no_blocks_by_name(columns: int) -> None:
    with pytest.raises(ValueError, match=rf"blocks\.3\.to_q: {columns} inputs.*multiple of 16"):
        nvfp4.quantize(torch.ones(4, columns), "blocks.3.to_q")


def test_quantize_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match=r"conv: .*\(4, 16, 3\)"):
        nvfp4.quantize(torch.ones(4, 16, 3), "conv")


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_error_is_at_most_what_the_grid_allows(seed: int) -> None:
    """Half of the widest gap, 1/6 of a block's largest value, and what an E4M3 scale is off by."""
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed))
    error = (nvfp4.dequantize(nvfp4.quantize(weight)) - weight).abs().reshape(8, 4, 16)
    largest = weight.reshape(8, 4, 16).abs().amax(dim=-1, keepdim=True)
    assert (error <= largest * (1 / 6 + 1 / 16)).all()


def test_error_of_normal_weights_is_what_the_head_says() -> None:
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    error = nvfp4.dequantize(nvfp4.quantize(weight)) - weight
    assert 0.093 < float(error.norm() / weight.norm()) < 0.097


def test_even_columns_are_in_the_low_half() -> None:
    packed = nvfp4.pack(torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8))
    assert packed.tolist() == [[0x21, 0x0F]]
    assert nvfp4.unpack(packed).tolist() == [[1, 2, 15, 0]]


def test_size_is_four_and_a_half_bits_a_weight() -> None:
    assert nvfp4.quantize(torch.ones(64, 256)).nbytes == 64 * 256 * 4.5 / 8 + 4
