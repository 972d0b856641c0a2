"""NVFP4: how a weight becomes four bits, and back.

A weight matrix W of shape (N, K), N outputs and K inputs, is cut into blocks of 16 along K. Each
value is written as

    W[n, k]  ≈  value(code[n, k]) · scale[n, k // 16] · global_scale

code          E2M1, four bits: a sign and one of 0, ½, 1, 1½, 2, 3, 4, 6. Bit 3 is the sign, bits 2 to
              0 the index in that list. Two codes share a byte, the even column in the low half.
scale         E4M3 (1 sign, 4 exponent, 3 mantissa bits; at most 448), one per block: the block's
              largest magnitude comes to lie at 6, the largest code.
global_scale  FP32, one per tensor: max|W| / (448 · 6), so that the largest block scale is 448.

Size: 4 bits and 8 bits per 16 values, 4.5 bits a weight, 28.1 % of BF16.
Error: half a step of the grid, which is 1/12 of the block's largest value near zero and 1/6 near the
top; for normally distributed weights 9.5 % of their size (root mean square). An E4M3 scale is itself
off by up to 1/16. What the low-rank branch makes of that is in `lowrank.py`.

`quantize` and `dequantize` agree bit for bit with diffusers (`quantizers/bfl/utils.py`, the layout of
NVIDIA's ModelOpt). That includes its one oddity: for a tensor so small that its global scale is no
number to divide by (all zeros, or deep subnormals) the block scales are NaN. `without_nan` makes
zeros of such blocks, which is what they are; everything that is kept goes through it.

Sources: NVIDIA, "Introducing NVFP4 for Efficient and Accurate Low-Precision Inference" (2025);
Open Compute Project, "OCP Microscaling Formats (MX) Specification 1.0" (E2M1, E4M3);
NVIDIA TensorRT Model Optimizer, `NVFP4QTensor`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK = 16  # values along K that share a scale
E2M1_MAX = 6.0
E4M3_MAX = 448.0
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # by the lower three bits of a code


@dataclass(frozen=True, slots=True, kw_only=True)
class Nvfp4Tensor:
    """A quantised (N, K) matrix."""

    packed: torch.Tensor  # (N, K/2) uint8, even column in the low half
    block_scale: torch.Tensor  # (N, K/16) float8_e4m3fn
    global_scale: torch.Tensor  # () float32

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.block_scale.nbytes + self.global_scale.nbytes


def check_shape(shape: tuple[int, ...] | torch.Size, name: str = "weight") -> None:
    """Raises ValueError, naming the tensor, where `shape` is not (N, K) with K a multiple of 16."""
    if len(shape) != 2:
        raise ValueError(f"{name}: NVFP4 holds matrices (N, K), not a tensor of shape {(*shape,)}")
    if shape[1] == 0 or shape[1] % BLOCK:
        raise ValueError(
            f"{name}: {shape[1]} inputs are not a multiple of {BLOCK}, the block of NVFP4; "
            "keep this layer in 16 bit"
        )


def quantize(weight: torch.Tensor, name: str = "weight") -> Nvfp4Tensor:
    """Round a floating-point (N, K) matrix to NVFP4, to the nearest code, ties to the even one.

    Raises ValueError as `check_shape` does.
    """
    check_shape(weight.shape, name)
    weight = weight.float()
    rows, columns = weight.shape
    global_scale = weight.abs().amax() / (E4M3_MAX * E2M1_MAX)
    blocks = weight.reshape(rows, columns // BLOCK, BLOCK)
    block_scale = (blocks.abs().amax(dim=-1) / E2M1_MAX / global_scale).to(torch.float8_e4m3fn)
    scale = (block_scale.float() * global_scale)[..., None]
    scaled = torch.where(scale > 0, blocks / scale, torch.zeros_like(blocks))
    codes = encode(scaled).reshape(rows, columns)
    return Nvfp4Tensor(packed=pack(codes), block_scale=block_scale, global_scale=global_scale)


def dequantize(tensor: Nvfp4Tensor) -> torch.Tensor:
    """The (N, K) float32 matrix that the codes and scales stand for."""
    values = decode(unpack(tensor.packed))
    scale = tensor.block_scale.float() * tensor.global_scale
    return values * scale.repeat_interleave(BLOCK, dim=1)


def without_nan(tensor: Nvfp4Tensor) -> Nvfp4Tensor:
    """The same tensor with zeros for blocks that are too small to have a scale."""
    scale = tensor.block_scale.float()
    return Nvfp4Tensor(
        packed=tensor.packed,
        block_scale=torch.where(scale.isnan(), 0.0, scale).to(torch.float8_e4m3fn),
        global_scale=tensor.global_scale,
    )


def round_e2m1(scaled: torch.Tensor) -> torch.Tensor:
    """The nearest E2M1 magnitudes to |scaled|, as floats 0 to 6; ties to the even code.

    The grid's spacing is ½ below 2, 1 below 4 and 2 above.
    """
    magnitude = scaled.abs().clamp(max=E2M1_MAX)
    return torch.where(
        magnitude < 2,
        torch.round(magnitude * 2) / 2,
        torch.where(magnitude < 4, torch.round(magnitude), torch.round(magnitude / 2) * 2),
    )


class Grid:
    """The same as `round_e2m1` with the sign, in two operations: for a column at a time, where each counts."""

    def __init__(self, like: torch.Tensor) -> None:
        values = torch.tensor(E2M1_VALUES, dtype=like.dtype, device=like.device)
        middles = (values[1:] + values[:-1]) / 2
        down = torch.nextafter(middles, torch.zeros_like(middles))
        # `bucketize` counts the bounds below a value. A middle belongs to its even neighbour.
        even_above = torch.arange(len(middles), device=like.device) % 2 == 1
        self._values = torch.cat([-values[1:].flip(0), values])
        self._bounds = torch.cat(
            [
                -torch.where(even_above, middles, torch.nextafter(middles, values[1:])).flip(0),
                torch.where(even_above, down, middles),
            ]
        )

    def nearest(self, scaled: torch.Tensor) -> torch.Tensor:
        """The nearest values of the grid, (n,), ties to the even code."""
        return self._values.index_select(0, torch.bucketize(scaled, self._bounds))


def encode(scaled: torch.Tensor) -> torch.Tensor:
    """Values in units of their block's scale to codes 0 to 15 (uint8, one per value)."""
    magnitude = round_e2m1(scaled)
    index = torch.where(
        magnitude < 2,
        magnitude * 2,
        torch.where(magnitude < 4, magnitude + 2, magnitude / 2 + 4),
    )
    return index.to(torch.uint8) | ((scaled < 0).to(torch.uint8) << 3)


def decode(codes: torch.Tensor) -> torch.Tensor:
    """Codes 0 to 15 to their values, float32, -0.0 for code 8."""
    values = torch.tensor(E2M1_VALUES + tuple(-value for value in E2M1_VALUES), device=codes.device)
    return values[codes.int()]


def pack(codes: torch.Tensor) -> torch.Tensor:
    """(N, K) codes to (N, K/2) bytes, the even column in the low half."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """(N, K/2) bytes to (N, K) codes."""
    return torch.stack([packed & 0x0F, packed >> 4], dim=-1).reshape(packed.shape[0], -1)
