"""The paths: how a four-bit layer multiplies, by hardware. Chosen once, when a model is loaded.

| hardware                    | path          | the product with Q                               |
|-----------------------------|---------------|--------------------------------------------------|
| Blackwell (10.x, 12.x)      | `NativeFp4`   | inputs rounded to NVFP4, FP4 tensor cores        |
| Ada (8.9), Hopper (9.0)     | `Fp8`         | Q and inputs in E4M3, FP8 tensor cores           |
| other CUDA                  | `Dequantized` | Q widened to BF16, layer by layer as it is used  |
| CPU                         | `Dequantized` | the whole weight in FP32, kept where all fit 1 GB |

The low-rank branch always takes the inputs as they are, in 16 bit. Layers marked `weight_only`
(modulation: few rows, and everything after hangs on them) take the widened weight on every GPU.

`Fp8`: an E2M1 value times its E4M3 scale has up to six significant bits, E4M3 keeps four. In units of
6 times the tensor's scale the codes 0, 1½, 3 and 6 are exact, the large ones among them; the others are
off by at most 1/16 (1.4 % of the weights' size in all; in units of 8 it would be 2.2 %). Inputs get a
scale per row. "memory" converts tiles of `TILE_ROWS` outputs as they are used. "speed" converts once, the
low-rank branch and all: what Q + U·V (and λ) make is rounded to E4M3 with a scale per output, which moves
it by 2.6 % of its size; a step then has one product for each layer, and the four-bit codes wait in main
memory. So "speed" takes a byte for every weight.

`NativeFp4`: inputs are rounded like weights, with a scale per 16 and one per tensor. Outliers would
take the resolution of their 15 neighbours: checkpoints made for this path (`activations = 4`) divide
inputs by λ first (SVDQuant's smoothing), and it is taken for no others. The scales of Q are put into
the tensor cores' order as they are used: a second copy would be 0.7 GB of FLUX.1.

A path for a GPU is tried on the device with a small product against float64 before it is taken. One
that fails is passed over, and `describe` says so.

Sources: PyTorch's `torch.nn.functional.scaled_mm` and its `float4_e2m1fn_x2`; NVIDIA cuBLAS 13, "1D
Block Scaling Factors Layout" (`swizzled`); SVDQuant (arXiv:2411.05007).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.functional import ScalingType, SwizzleType

from models.fp4.kernels import Kernels, rows_to_fp8, swizzled
from models.fp4.linear import Fp4Linear

TILE_ROWS = 4096  # outputs converted at a time: 64 MB of FP8 at 15,360 inputs
FP8_UNIT = 6.0  # Q is converted in units of this many global scales
FEW_ROWS = 8  # up to so many inputs are multiplied without writing the widened weight to memory


class Dequantized:
    """Q widened to the compute type, then an ordinary product."""

    name = "dequantized"

    def __init__(self, *, keep: bool, dtype: torch.dtype, kernels: Kernels | None = None) -> None:
        self._keep, self._dtype = keep, dtype
        self._kernels = kernels or Kernels()
        what = "FP32" if dtype is torch.float32 else "BF16"
        when = "once at load" if keep else "layer by layer as they are used"
        self.describe = f"NVFP4 weights widened to {what} {when}{self._kernels.note}"

    def prepare(self, layer: Fp4Linear) -> None:
        if self._keep:
            layer.kept["weight"] = layer.dense_without_extra().to(self._dtype)
        self.prepare_branch(layer)

    def prepare_branch(self, layer: Fp4Linear) -> None:
        if not self._keep:
            layer.kept["branches"] = layer.branches
        elif layer.extra is not None:  # the layer's own branch is in the weight
            layer.kept["branches"] = (layer.extra,)
        else:
            layer.kept.pop("branches", None)

    def multiply(self, layer: Fp4Linear, inputs: torch.Tensor) -> torch.Tensor:
        bias = _like(layer.bias, inputs)
        rows = inputs.reshape(-1, layer.in_features)
        if self._keep:
            product = F.linear(inputs, layer.kept["weight"].to(inputs.dtype), bias)
            if "branches" not in layer.kept:
                return product
            flat = product.reshape(-1, layer.out_features)
            return _with_branch(layer, rows, flat, None).reshape(product.shape)
        smooth = _smoothed(layer, rows, self._kernels)
        parts = layer.packed, layer.block_scale, layer.global_scale
        if not rows.is_cpu and rows.shape[0] <= FEW_ROWS:
            product = self._kernels.few_rows(smooth, *parts).to(inputs.dtype)
        else:
            product = smooth @ self._kernels.widen(*parts, inputs.dtype).T
        return _with_branch(layer, rows, product, bias).reshape(*inputs.shape[:-1], -1)


class Fp8:
    """Q and the inputs in E4M3, multiplied on FP8 tensor cores (on a CPU by PyTorch's reference)."""

    name = "fp8"

    def __init__(self, *, convert_once: bool, kernels: Kernels | None = None) -> None:
        self._convert_once = convert_once
        self._kernels = kernels or Kernels()
        self._exact = Dequantized(keep=False, dtype=torch.bfloat16, kernels=self._kernels)
        how = "once at load (speed)" if convert_once else "tile by tile as they are used (memory)"
        self.describe = (
            f"NVFP4 weights converted to FP8 {how}, FP8 scaled products{self._kernels.note}"
        )

    def prepare(self, layer: Fp4Linear) -> None:
        self.prepare_branch(layer)
        if not self._fits(layer):
            return
        if not self._convert_once:
            layer.kept["unit"] = (layer.global_scale * FP8_UNIT).expand(1, layer.out_features)
            return
        dense = layer.dense_without_extra()
        layer.kept["weight"], unit = rows_to_fp8(dense)
        layer.kept["unit"] = unit.T.contiguous()
        self._leave_codes(layer)

    def prepare_branch(self, layer: Fp4Linear) -> None:
        if not self._convert_once or not self._fits(layer):
            layer.kept["branches"] = layer.branches
            return
        # The layer's own branch is in the weight.
        layer.kept["branches"] = () if layer.extra is None else (layer.extra,)
        if "weight" in layer.kept:
            self._leave_codes(layer)

    @staticmethod
    def _leave_codes(layer: Fp4Linear) -> None:
        """What is not multiplied with takes no room on the GPU."""
        if layer.packed.is_cuda:
            layer.packed, layer.block_scale = layer.packed.cpu(), layer.block_scale.cpu()

    def multiply(self, layer: Fp4Linear, inputs: torch.Tensor) -> torch.Tensor:
        if not self._fits(layer):
            return self._exact.multiply(layer, inputs)
        rows = inputs.reshape(-1, layer.in_features)
        if self._convert_once:
            values, scale = self._kernels.to_fp8(rows)
            weight, unit = (layer.kept[name].to(rows.device) for name in ("weight", "unit"))
            product = self._product(values, scale, weight, unit)
        else:
            values, scale = self._kernels.to_fp8(_smoothed(layer, rows, self._kernels))
            product = torch.empty(
                rows.shape[0], layer.out_features, dtype=torch.bfloat16, device=rows.device
            )
            units = layer.kept["unit"].to(rows.device)
            for start in range(0, layer.out_features, TILE_ROWS):
                end = min(start + TILE_ROWS, layer.out_features)
                tile, unit = self._tile(layer, start, end), units[:, start:end]
                product[:, start:end] = self._product(values, scale, tile, unit)
        bias = _like(layer.bias, inputs)
        product = _with_branch(layer, rows, product.to(inputs.dtype), bias)
        return product.reshape(*inputs.shape[:-1], -1)

    @staticmethod
    def _fits(layer: Fp4Linear) -> bool:
        return not layer.weight_only and layer.out_features % 16 == 0

    def _tile(self, layer: Fp4Linear, start: int, end: int) -> torch.Tensor:
        one = torch.full((), 1 / FP8_UNIT, device=layer.packed.device)
        parts = layer.packed[start:end], layer.block_scale[start:end]
        return self._kernels.widen(*parts, one, torch.float8_e4m3fn)

    @staticmethod
    def _product(
        values: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, unit: torch.Tensor
    ) -> torch.Tensor:
        # `F.scaled_mm` is the same, but before PyTorch 2.12 the compiler does not know it.
        return torch._scaled_mm(
            values,
            weight.T,
            scale,
            unit.contiguous(),
            out_dtype=torch.bfloat16,
            use_fast_accum=values.is_cuda,  # Hopper: partial sums stay in the tensor core
        )


class NativeFp4:
    """Q as it is and the inputs rounded to NVFP4, multiplied on FP4 tensor cores."""

    name = "native-fp4"

    def __init__(self, kernels: Kernels | None = None) -> None:
        self._kernels = kernels or Kernels()
        self._exact = Dequantized(keep=False, dtype=torch.bfloat16, kernels=self._kernels)
        self.describe = f"NVFP4 weights and inputs, native FP4 scaled products{self._kernels.note}"

    def prepare(self, layer: Fp4Linear) -> None:
        self.prepare_branch(layer)

    def prepare_branch(self, layer: Fp4Linear) -> None:
        layer.kept["branches"] = layer.branches

    def multiply(self, layer: Fp4Linear, inputs: torch.Tensor) -> torch.Tensor:
        if not self._fits(layer):
            return self._exact.multiply(layer, inputs)
        rows = inputs.reshape(-1, layer.in_features)
        packed, scales, global_scale = self._kernels.to_fp4(_smoothed(layer, rows, self._kernels))
        recipe = [ScalingType.BlockWise1x16, ScalingType.TensorWise]
        swizzle = [SwizzleType.SWIZZLE_32_4_4, SwizzleType.NO_SWIZZLE]
        product = F.scaled_mm(
            packed.view(torch.float4_e2m1fn_x2),
            layer.packed.view(torch.float4_e2m1fn_x2).T,
            [scales, global_scale],
            recipe,
            [swizzled(layer.block_scale), layer.global_scale],
            recipe,
            swizzle_a=swizzle,
            swizzle_b=swizzle,
            output_dtype=torch.bfloat16,
        )
        bias = _like(layer.bias, inputs)
        product = _with_branch(layer, rows, product.to(inputs.dtype), bias)
        return product.reshape(*inputs.shape[:-1], -1)

    @staticmethod
    def _fits(layer: Fp4Linear) -> bool:
        divisible = layer.in_features % 32 == 0 and layer.out_features % 16 == 0
        return not layer.weight_only and divisible


def _smoothed(layer: Fp4Linear, rows: torch.Tensor, kernels: Kernels) -> torch.Tensor:
    if layer.inverse_smoothing is None:
        return rows
    return kernels.smooth(rows, layer.inverse_smoothing)


def _with_branch(
    layer: Fp4Linear, rows: torch.Tensor, product: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Add U·(V·x) and the bias to `product` (M, N)."""
    if bias is not None:
        product = product + bias
    branches = layer.kept["branches"] if "branches" in layer.kept else layer.branches
    for up, down in branches:
        if up.shape[1]:
            up, down = up.to(rows), down.to(rows)  # they may wait in main memory
            product = torch.addmm(product, rows @ down.T, up.T)
    return product


def _like(tensor: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(inputs.dtype)
