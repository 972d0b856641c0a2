"""The fit: which four bits, and which low-rank branch beside them.

A linear layer W (N, K) with bias b becomes Q + U·V and b': Q in NVFP4, U (N, r) and V (r, K) in BF16.
What counts is the layer's output on the inputs x that it really gets. With their mean μ and their
covariance C (K, K) from calibration prompts and E = W − Q − U·V,

    mean of |E·x + b − b'|²  =  trace(E·C·Eᵀ) + |E·μ + b − b'|²

so b' = b + E·μ removes the second term for nothing, and the first is made small by turns:

    Q ← round(W − L)   Columns are rounded one after the other. What column k loses is corrected in
                       the columns to its right, which have not been rounded yet, as far as C says
                       that their inputs move with column k's (GPTQ; the same as LDLQ in CALDERA).
                       Each block's scale is the one of nine candidates with the least weighted error.
    L ← U·V            The best rank r for what is left, D = W − Q. With C = R·Rᵀ (Cholesky) the error
                       is |(D − L)·R|², so L = SVD_r(D·R)·R⁻¹. Any root of C gives the same L.

Turns end in the nearest minimum, so they begin at two places: at no L, and at the best rank r of W
itself, which is by far the better one for weights with a few large directions. Each has a turn, the
better one goes on, and the best round is kept. `damping` adds a share of C's mean diagonal to its diagonal: inputs that the
calibration did not see are not free.

Error: what is left of plain NVFP4's output error is reported layer by layer on held-out prompts by
`quantize.py`. The branch costs 2·r·(N + K) bytes and as many products as r extra columns.

Sources: LQER (Zhang et al. 2024, arXiv:2402.02446: the SVD of the error, weighted by input size);
QERA (Zhang et al. 2024, arXiv:2410.06040: weighted by the covariance, in closed form); CALDERA (Saha et
al. 2024, arXiv:2405.18886: by turns, with LDLQ); SVDQuant (Li et al. 2024, arXiv:2411.05007: a 16-bit
branch beside four bits in diffusion transformers, and `smoothing`, for where activations are four bits
too); GPTQ (Frantar et al. 2022, arXiv:2210.17323).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.fp4 import nvfp4
from models.fp4.nvfp4 import BLOCK, E2M1_MAX, E4M3_MAX, Nvfp4Tensor

DAMPING = 1e-2  # of the covariance's mean diagonal
ROUNDS = 12
SCALE_CANDIDATES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 2 / 3, 0.6)  # of max|block| / 6
_COLUMNS = 128  # rounded before the columns further right are corrected, in one product
_SAMPLE_ROWS = 512  # inputs that statistics keep as they are
_SAMPLE_ROWS_EACH = 32  # of a batch
_EXACT_INPUTS = 4096  # up to this many inputs statistics and factors are kept in float64


class InputStatistics:
    """Mean and covariance of a layer's inputs, gathered batch by batch.

    Inputs are counted from the first batch's mean. Some channels of large transformers are large and
    hardly move; squares of what they are would leave nothing of their covariance in float32.
    """

    def __init__(self, inputs: int, device: torch.device | str = "cpu") -> None:
        exact = inputs <= _EXACT_INPUTS and torch.device(device).type == "cpu"
        dtype = torch.float64 if exact else torch.float32
        self._products = torch.zeros(inputs, inputs, dtype=dtype, device=device)
        self._sum = torch.zeros(inputs, dtype=dtype, device=device)
        self._origin: torch.Tensor | None = None  # (K,)
        self._largest = torch.zeros(inputs, dtype=dtype, device=device)
        self._rows: list[torch.Tensor] = []
        self.count = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Count a batch of inputs, (..., K)."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).to(self._products)
        if self._origin is None:
            self._origin = rows.mean(dim=0)
        moved = rows - self._origin
        self._products.addmm_(moved.T, moved)
        self._sum += moved.sum(dim=0)
        self._largest = torch.maximum(self._largest, rows.abs().amax(dim=0))
        self.count += rows.shape[0]
        if len(self._rows) * _SAMPLE_ROWS_EACH < _SAMPLE_ROWS:
            step = max(1, rows.shape[0] // _SAMPLE_ROWS_EACH)
            self._rows.append(rows[::step][:_SAMPLE_ROWS_EACH].float())

    @property
    def rows(self) -> torch.Tensor:
        """Some of the inputs, (n, K) float32."""
        return torch.cat(self._rows)

    @property
    def mean(self) -> torch.Tensor:
        moved = self._sum / self.count  # (K,)
        return moved if self._origin is None else self._origin + moved

    @property
    def largest(self) -> torch.Tensor:
        return self._largest  # (K,) magnitudes

    @property
    def covariance(self) -> torch.Tensor:
        moved = self._sum / self.count
        return self._products / self.count - moved[:, None] * moved  # (K, K)

    def scaled(self, factor: torch.Tensor) -> InputStatistics:
        """The statistics of inputs multiplied, channel by channel, by `factor` (K,)."""
        other = object.__new__(InputStatistics)
        factor = factor.to(self._sum)
        other._products = self._products * factor[:, None] * factor
        other._sum, other._largest = self._sum * factor, self._largest * factor.abs()
        other._origin = None if self._origin is None else self._origin * factor
        other._rows = [rows * factor.float() for rows in self._rows]
        other.count = self.count
        return other


class Metric:
    """The factors of a covariance that `fit` needs; layers with the same inputs share one.

    Raises ValueError, naming the layer, for inputs with infinite values or NaN.
    """

    def __init__(
        self, inputs: InputStatistics, damping: float = DAMPING, *, name: str = "weight"
    ) -> None:
        mean, covariance = inputs.mean, inputs.covariance
        diagonal = covariance.diagonal()
        if not diagonal.isfinite().all():
            raise ValueError(
                f"{name}: its inputs become infinite or NaN; weights before it are damaged"
            )
        # Inputs that are constantly zero would leave nothing to divide by.
        floor = diagonal.mean().clamp(min=torch.finfo(covariance.dtype).tiny * 1e6)
        diagonal += damping * floor
        self.mean = mean
        self.root = torch.linalg.cholesky(covariance)  # R, lower: C = R·Rᵀ
        inverse = torch.cholesky_inverse(self.root)
        self.inverse_root = torch.linalg.cholesky(inverse, upper=True)  # H: C⁻¹ = Hᵀ·H

    def error(self, difference: torch.Tensor) -> float:
        """trace(E·C·Eᵀ) of E (N, K): the mean squared error of the output, bias corrected."""
        return float((difference @ self.root).square().sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A layer in four bits and a low-rank branch."""

    weight: Nvfp4Tensor  # Q, (N, K)
    up: torch.Tensor  # U, (N, r) bfloat16
    down: torch.Tensor  # V, (r, K) bfloat16
    bias_shift: torch.Tensor  # b' − b, (N,) float32

    def dense(self) -> torch.Tensor:
        """Q + U·V, (N, K) float32."""
        return nvfp4.dequantize(self.weight) + self.up.float() @ self.down.float()


def fit(
    weight: torch.Tensor,
    metric: Metric,
    rank: int,
    *,
    rounds: int = ROUNDS,
    name: str = "weight",
) -> Fit:
    """Fit Q + U·V to a floating-point (N, K) `weight`.

    Raises ValueError, naming the layer, for a shape NVFP4 cannot hold, a rank that the shape does
    not have, or values that are no numbers.
    """
    nvfp4.check_shape(weight.shape, name)
    if not 0 <= rank <= min(weight.shape):
        raise ValueError(
            f"{name}: rank {rank} is not from 0 to {min(weight.shape)}, its smaller side"
        )
    if not weight.isfinite().all():
        raise ValueError(f"{name}: the weight has infinite values or NaN; its file is damaged")
    wanted = weight.to(metric.root)
    starts = [torch.zeros_like(wanted)]
    if rank:
        up, down = best_low_rank(wanted, metric, rank)
        starts.append(up.to(wanted) @ down.to(wanted))
    turn = best = min((_turn(wanted, start, metric, rank) for start in starts), key=_error)
    for _ in range(rounds - 1 if rank else 0):
        turn = _turn(wanted, turn.up.to(wanted) @ turn.down.to(wanted), metric, rank)
        best = min(best, turn, key=_error)
    left = wanted - nvfp4.dequantize(best.weight).to(wanted)
    left -= best.up.to(wanted) @ best.down.to(wanted)
    shift = (left @ metric.mean).float()
    return Fit(weight=best.weight, up=best.up, down=best.down, bias_shift=shift)


@dataclass(frozen=True, slots=True)
class _Turn:
    error: float
    weight: Nvfp4Tensor
    up: torch.Tensor
    down: torch.Tensor


def _error(turn: _Turn) -> float:
    return turn.error


def _turn(wanted: torch.Tensor, low_rank: torch.Tensor, metric: Metric, rank: int) -> _Turn:
    """Q for the branch that is there, then the branch for that Q."""
    quantized = round_with_feedback(wanted - low_rank, metric)
    left = wanted - nvfp4.dequantize(quantized).to(wanted)
    up, down = best_low_rank(left, metric, rank)
    return _Turn(metric.error(left - up.to(wanted) @ down.to(wanted)), quantized, up, down)


def round_with_feedback(target: torch.Tensor, metric: Metric) -> Nvfp4Tensor:
    """NVFP4 codes and scales for `target` (N, K) with little error in `metric`."""
    left = target.T.contiguous()  # (K, N): one column after the other is worked on
    factor = metric.inverse_root
    columns, rows = left.shape
    scales = torch.zeros(columns // BLOCK, rows, dtype=torch.float8_e4m3fn, device=target.device)
    global_scale = (target.abs().amax() / (E4M3_MAX * E2M1_MAX)).float()
    if not global_scale > torch.finfo(torch.float32).tiny:
        global_scale = torch.zeros_like(global_scale)  # a matrix of zeros, as far as FP32 can tell
        return _stored(torch.zeros_like(left), scales, global_scale)
    grid = nvfp4.Grid(target)
    scaled = torch.empty_like(left)
    weights = factor.diagonal() ** -2
    for group in range(0, columns, _COLUMNS):
        end = min(group + _COLUMNS, columns)
        errors = torch.empty(end - group, rows, dtype=target.dtype, device=target.device)
        for start in range(group, end, BLOCK):
            stop = start + BLOCK
            chosen = _choose_scale(left[start:stop], weights[start:stop], global_scale)
            scales[start // BLOCK] = chosen
            scale = (chosen.float() * global_scale).to(target)
            divisor = torch.where(scale > 0, scale, torch.inf)
            for column in range(start, stop):
                torch.div(left[column], divisor, out=scaled[column])
                lost = errors[column - group]
                torch.sub(left[column], grid.nearest(scaled[column]) * scale, out=lost)
                lost /= factor[column, column]
                left[column + 1 : stop] -= factor[column, column + 1 : stop, None] * lost
            own = errors[start - group : stop - group]
            left[stop:end] -= factor[start:stop, stop:end].T @ own
        left[end:] -= factor[group:end, end:].T @ errors
    return _stored(scaled, scales, global_scale)


def _stored(scaled: torch.Tensor, scales: torch.Tensor, global_scale: torch.Tensor) -> Nvfp4Tensor:
    """Values in units of their scales, (K, N), and the scales, (K/16, N), as they are kept."""
    packed = nvfp4.pack(nvfp4.encode(scaled.T))
    return Nvfp4Tensor(
        packed=packed.contiguous(), block_scale=scales.T.contiguous(), global_scale=global_scale
    )


def best_low_rank(
    left: torch.Tensor, metric: Metric, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """U (N, r) and V (r, K), BF16, with U·V the best of rank r for `left` in `metric`.

    The singular vectors come from the smaller Gram matrix of M = left·R.
    """
    rows, columns = left.shape
    if rank == 0:
        empty = left.new_zeros(rows, 0).bfloat16(), left.new_zeros(0, columns).bfloat16()
        return empty
    weighted = left @ metric.root  # (N, K)
    if rows <= columns:
        vectors = torch.linalg.eigh(weighted @ weighted.T).eigenvectors[:, -rank:]  # (N, r)
        up, down = vectors, vectors.T @ left  # M·R⁻¹ is `left`
    else:
        vectors = torch.linalg.eigh(weighted.T @ weighted).eigenvectors[:, -rank:]  # (K, r)
        up = weighted @ vectors
        down = torch.linalg.solve_triangular(metric.root, vectors.T, upper=False, left=False)
    # Equal sizes on both sides, so that neither loses more than the other in BF16.
    sizes = up.norm(dim=0), down.norm(dim=1)
    balance = torch.where(sizes[0] > 0, (sizes[1] / sizes[0].clamp(min=1e-30)).sqrt(), 1.0)
    balance = torch.where(balance > 0, balance, 1.0)
    return (up * balance).bfloat16(), (down / balance[:, None]).bfloat16()


def smoothing(inputs: InputStatistics, weight: torch.Tensor, strength: float = 0.5) -> torch.Tensor:
    """SVDQuant's λ, (K,) float32: inputs are divided by it and columns of the weight multiplied.

    λ = max|x|^α / max|W|^(1−α), a column at a time, evens out inputs and weights. Used where
    activations are rounded to four bits as well; elsewhere it is ones.
    """
    largest_weight = weight.abs().amax(dim=0).double()
    largest_input = inputs.largest.double()
    known = (largest_input > 0) & (largest_weight > 0)
    factor = largest_input.clamp(min=1e-12) ** strength
    factor = factor / largest_weight.clamp(min=1e-12) ** (1 - strength)
    factor = torch.where(known, factor, 1.0)
    factor = factor / factor[known].log().mean().exp() if known.any() else factor
    return factor.clamp(1e-3, 1e3).float()


def _choose_scale(
    block: torch.Tensor, weights: torch.Tensor, global_scale: torch.Tensor
) -> torch.Tensor:
    """For each column of `block` (16, N) the E4M3 scale with the least weighted error."""
    sizes = block.abs()
    candidates = torch.tensor(SCALE_CANDIDATES, dtype=block.dtype, device=block.device)
    wanted = sizes.amax(dim=0) * candidates[:, None] / E2M1_MAX / global_scale
    scales = wanted.clamp(max=E4M3_MAX).float().to(torch.float8_e4m3fn)  # (candidates, N)
    scale = (scales.float() * global_scale).to(block)
    divisor = torch.where(scale > 0, scale, torch.inf)
    rounded = nvfp4.round_e2m1(sizes / divisor[:, None]).mul_(scale[:, None])
    error = rounded.sub_(sizes).square_().mul_(weights[:, None]).sum(dim=1)
    best = error.argmin(dim=0, keepdim=True)
    return scales.view(torch.uint8).gather(0, best)[0].view(torch.float8_e4m3fn)
