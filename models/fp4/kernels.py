"""The elementwise parts of the paths: four bits to wider types, inputs to narrower ones, scales in order.

Run one operation after the other they would pass over memory some ten times (45 bytes moved for a
weight of half a byte); compiled, each is one kernel. `compiled` does that on a GPU.

Source of the block scales' order: NVIDIA cuBLAS 13, "1D Block Scaling Factors Layout".
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from models.fp4 import nvfp4
from models.fp4.nvfp4 import BLOCK, E4M3_MAX

log = logging.getLogger("models.fp4")


def widened(packed: torch.Tensor, block_scale: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Q in units of `unit`: (N, K/2) bytes and (N, K/16) scales to (N, K) float32.

    The three lower bits of a code are exponent and mantissa of E2M1. Put where float16 has its own,
    they are the value times 2⁻¹⁴, zero and ½ included, so no table is looked up.
    """
    halves = torch.stack([packed & 0x0F, packed >> 4], dim=-1).to(torch.int16)
    bits = ((halves & 7) << 9) | ((halves & 8) << 12)
    values = bits.view(torch.float16).float() * 2.0**14  # (N, K/2, 2)
    rows = packed.shape[0]
    scale = block_scale.float() * unit
    return (values.reshape(rows, -1, BLOCK) * scale[..., None]).reshape(rows, -1)


def widened_as(
    packed: torch.Tensor, block_scale: torch.Tensor, unit: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    return widened(packed, block_scale, unit).to(dtype)


def few_rows_product(
    inputs: torch.Tensor, packed: torch.Tensor, block_scale: torch.Tensor, unit: torch.Tensor
) -> torch.Tensor:
    """(M, K) inputs times Q as one sum; compiled, it reads the four bits and writes (M, N) float32."""
    weight = widened(packed, block_scale, unit)
    return torch.stack([(weight * row).sum(dim=-1) for row in inputs.float()])


def smoothed(inputs: torch.Tensor, inverse_smoothing: torch.Tensor) -> torch.Tensor:
    """(M, K) inputs times 1/λ (K,) float32; compiled, the product in float32 is never in memory."""
    return (inputs * inverse_smoothing).to(inputs.dtype)


def rows_to_fp8(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(M, K) inputs to E4M3 and their scales (M, 1) float32, a scale per row."""
    values = inputs.float()
    scale = (values.abs().amax(dim=1, keepdim=True) / E4M3_MAX).clamp(min=1e-12)
    return (values / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale


def swizzled(scales: torch.Tensor) -> torch.Tensor:
    """(rows, columns) block scales in the order the tensor cores read them, flat.

    Tiles of 128 rows and 4 columns, row-major; within a tile the row r and column c lie at
    (r mod 32)·16 + (r div 32)·4 + c. Missing rows and columns are zero.
    """
    rows, columns = scales.shape
    tiles = -(-rows // 128), -(-columns // 4)
    missing = tiles[1] * 4 - columns, tiles[0] * 128 - rows
    padded = F.pad(scales.view(torch.uint8), (0, missing[0], 0, missing[1]))
    blocks = padded.reshape(tiles[0], 4, 32, tiles[1], 4)  # tile row, r div 32, r mod 32, tile, c
    return blocks.permute(0, 3, 2, 1, 4).reshape(-1).view(torch.float8_e4m3fn)


def rows_to_fp4(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(M, K) inputs to packed codes, swizzled E4M3 block scales and the tensor's scale."""
    rounded = nvfp4.without_nan(nvfp4.quantize(inputs))
    return rounded.packed, swizzled(rounded.block_scale), rounded.global_scale


@dataclass(slots=True)
class Kernels:
    """The elementwise parts, compiled into one kernel each where that works."""

    widen: Callable[..., torch.Tensor] = widened_as
    few_rows: Callable[..., torch.Tensor] = few_rows_product
    smooth: Callable[..., torch.Tensor] = smoothed
    to_fp8: Callable[..., tuple[torch.Tensor, torch.Tensor]] = rows_to_fp8
    to_fp4: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = rows_to_fp4
    note: str = ""  # why they are not compiled, for `describe`


def compiled(device: torch.device) -> Kernels:
    """The parts compiled for a CUDA device, tried once; eager ones, with the reason, if that fails."""
    kernels = Kernels(
        widen=torch.compile(widened_as, dynamic=True),
        few_rows=torch.compile(few_rows_product, dynamic=True),
        smooth=torch.compile(smoothed, dynamic=True),
        to_fp8=torch.compile(rows_to_fp8, dynamic=True),
        to_fp4=torch.compile(rows_to_fp4, dynamic=True),
    )
    packed = torch.full((16, 16), 0x21, dtype=torch.uint8, device=device)
    scale = torch.ones(16, 2, dtype=torch.float8_e4m3fn, device=device)
    one = torch.ones((), device=device)
    try:
        kernels.widen(packed, scale, one, torch.bfloat16)
    except Exception as error:  # no gcc, no Triton, no ptxas: what it lacks has no common type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        log.warning("not compiled: %s", reason, extra={"action": "fp4_not_compiled"})
        return Kernels(note=f"; not compiled ({reason})")
    return kernels
