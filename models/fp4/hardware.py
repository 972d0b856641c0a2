"""Which path a device takes: asked once, when a model is loaded, and answered with the reason.

A path for a GPU is taken after it has multiplied a small layer on that GPU and come near the same
product in float64. One that raises or is wrong is passed over, and the next one's `describe` says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from models.fp4 import lowrank
from models.fp4.compute import Dequantized, Fp8, NativeFp4
from models.fp4.kernels import Kernels, compiled
from models.fp4.linear import ComputePath, Fp4Linear

log = logging.getLogger("models.fp4")

KEPT_WIDENED_BYTES = 2**30  # on a CPU, weights that are at most this large in FP32 are kept so
# Relative error of the trial product that a path may have; its own rounding is about half of it.
TOLERANCES = {"native-fp4": 0.2, "fp8": 0.08, "dequantized": 0.01}


def choose_path(
    device: torch.device, *, fp8_weights: str, weights: int, activations: int
) -> ComputePath:
    """The path for `device`, for a model of `weights` four-bit weights.

    `fp8_weights` is "memory" or "speed", for Ada and Hopper. `activations` is the checkpoint's: inputs
    are rounded to four bits only where it was made for that. Raises RuntimeError where a GPU can not
    even multiply widened weights.
    """
    if device.type != "cuda":
        return Dequantized(keep=weights * 4 <= KEPT_WIDENED_BYTES, dtype=torch.float32)
    kernels = compiled(device)
    capability = torch.cuda.get_device_capability(device)
    passed_over = []
    for make in candidates(capability, fp8_weights, kernels):
        path = make()
        if path.name == NativeFp4.name and activations > 4:
            passed_over.append(
                f"not {path.name}: these weights are not made for inputs of four bits"
            )
            continue
        reason = why_not(path, device)
        if reason is None:
            path.describe += "".join(f"; {text}" for text in passed_over)
            return path
        log.warning("%s", reason, extra={"action": "fp4_path_passed_over", "path": path.name})
        passed_over.append(f"not {path.name}: {reason}")
    raise RuntimeError(f"this GPU multiplies four-bit weights on no path: {'; '.join(passed_over)}")


def activation_bits(device: torch.device) -> int:
    """Bits that the best path of `device` rounds inputs to: 4 on Blackwell, else 16 for the fit."""
    native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (10, 0)
    return 4 if native else 16


def candidates(
    capability: tuple[int, int], fp8_weights: str, kernels: Kernels
) -> list[Callable[[], ComputePath]]:
    """The paths of a compute capability, best first."""
    paths: list[Callable[[], ComputePath]] = []
    if capability >= (10, 0):
        paths.append(lambda: NativeFp4(kernels))
    if capability >= (8, 9):
        paths.append(lambda: Fp8(convert_once=fp8_weights == "speed", kernels=kernels))
    paths.append(lambda: Dequantized(keep=False, dtype=torch.bfloat16, kernels=kernels))
    return paths


def why_not(path: ComputePath, device: torch.device) -> str | None:
    """None if `path` multiplies a trial layer rightly on `device`, else what was wrong."""
    try:
        error = trial_error(path, device)
    except (RuntimeError, ValueError, NotImplementedError, TypeError) as problem:
        return (str(problem).strip() or type(problem).__name__).splitlines()[0][:200]
    if not error <= TOLERANCES[path.name]:
        return f"a trial product was off by {error:.3f} (relative)"
    return None


def trial_error(path: ComputePath, device: torch.device) -> float:
    """The larger relative error, against float64, of many rows and of one row of a weight-only layer."""
    errors = []
    for weight_only, rows in ((False, 32), (True, 1)):
        layer, inputs = trial_layer(rows, weight_only=weight_only)
        wanted = inputs.double() @ layer.dense().double().T + layer.bias.double()
        layer = layer.to(device)
        layer.use(path)
        got = layer(inputs.to(device, torch.bfloat16)).cpu().double()
        errors.append(float((got - wanted).norm() / wanted.norm()))
    return max(errors)


def trial_layer(rows: int, *, weight_only: bool) -> tuple[Fp4Linear, torch.Tensor]:
    """A (256 → 128) layer of rank 16 with fixed random weights, and inputs, on the CPU."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(128, 256, generator=generator) / 16
    inputs = torch.randn(rows, 256, generator=generator).bfloat16()
    statistics = lowrank.InputStatistics(256)
    statistics.add(torch.randn(1024, 256, generator=generator))
    fit = lowrank.fit(weight, lowrank.Metric(statistics), 16, rounds=1)
    layer = Fp4Linear(256, 128, 16, weight_only=weight_only)
    layer.load_state_dict(
        {
            "packed": fit.weight.packed,
            "block_scale": fit.weight.block_scale,
            "global_scale": fit.weight.global_scale,
            "up": fit.up,
            "down": fit.down,
            "bias": torch.randn(128, generator=generator).bfloat16(),
        },
        assign=True,
    )
    return layer, inputs.float()
