"""LoKr and LoHa as low-rank products, with what that loses.

LoKr:  ΔW = W₁ ⊗ W₂ (Kronecker).  With W = U·diag(s)·Vᵀ for both factors, the singular vectors of ΔW are
       the Kronecker products of theirs and its singular values all products sᵢ·tⱼ. So the best
       approximation of a rank and its error are known without ever making ΔW.
LoHa:  ΔW = (A₁B₁) ∘ (A₂B₂) (element by element).  Row by row the products of the columns of A₁ and A₂,
       and of the rows of B₁ and B₂, give ΔW as a product of inner size r₁·r₂ exactly; QR of both sides
       makes its singular values a small problem.

In both the smallest rank is kept whose error is at most TOLERANCE, and no more than the given maximum.
The best approximation of a rank is the truncated singular value decomposition, and its squared error
the sum of the squares left out (Eckart and Young 1936).
Sources: LyCORIS (Yeh et al. 2024, arXiv 2309.14859), `lycoris/modules/{lokr,loha}.py`; peft
`tuners/{lokr,loha}/layer.py`, whose `get_delta_weight` these are equal to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from models.lora.whole import MAX_RANK

TOLERANCE = 1e-6  # relative, in the Frobenius norm

Svd = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # U (out, k), s (k,), Vᵀ (k, in)


@dataclass(frozen=True, slots=True)
class LowRank:
    """`up` (out, r) · `down` (r, in), float32; squared norms of what was left out and of the whole."""

    up: torch.Tensor
    down: torch.Tensor
    lost_squared: float
    norm_squared: float


def from_lokr(parts: Mapping[str, torch.Tensor], max_rank: int = MAX_RANK) -> LowRank:
    """`parts` by the names of `keys.LOKR`, each factor whole (a, c) or as a product."""
    left, right = (_factor(parts, name) for name in ("lokr_w1", "lokr_w2"))
    values = (left[1][:, None] * right[1][None, :]).flatten()  # (k₁·k₂,)
    order = values.argsort(descending=True, stable=True)
    kept, lost, norm = _cut(values[order], max_rank)
    first, second = order[:kept] // len(right[1]), order[:kept] % len(right[1])
    root = values[order[:kept]].sqrt()
    up = left[0][:, first][:, None] * right[0][:, second][None]  # (a, b, r)
    down = left[2][first][:, :, None] * right[2][second][:, None]  # (r, c, d)
    return LowRank(
        (up.flatten(0, 1) * root).float(), (down.flatten(1) * root[:, None]).float(), lost, norm
    )


def from_loha(parts: Mapping[str, torch.Tensor], max_rank: int = MAX_RANK) -> LowRank:
    """`parts` by the names of `keys.LOHA`: A₁ (out, r₁), B₁ (r₁, in), A₂ (out, r₂), B₂ (r₂, in)."""
    up_1, down_1, up_2, down_2 = (
        parts[name].double() for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    )
    if up_1.shape[1] * up_2.shape[1] < min(up_1.shape[0], down_1.shape[1]):
        up = (up_1[:, :, None] * up_2[:, None, :]).flatten(1)  # (out, r₁·r₂)
        down = (down_1[:, None, :] * down_2[None, :, :]).flatten(0, 1)  # (r₁·r₂, in)
        u, values, v = _svd_of_product(up, down)
    else:
        u, values, v = _svd((up_1 @ down_1) * (up_2 @ down_2))
    kept, lost, norm = _cut(values, max_rank)
    root = values[:kept].sqrt()
    return LowRank((u[:, :kept] * root).float(), (v[:kept] * root[:, None]).float(), lost, norm)


def _factor(parts: Mapping[str, torch.Tensor], name: str) -> Svd:
    if name in parts:
        return _svd(parts[name].double())
    return _svd_of_product(parts[f"{name}_a"].double(), parts[f"{name}_b"].double())


def _svd(matrix: torch.Tensor) -> Svd:
    return tuple(torch.linalg.svd(matrix, full_matrices=False))


def _svd_of_product(up: torch.Tensor, down: torch.Tensor) -> Svd:
    left, upper = torch.linalg.qr(up)
    right, lower = torch.linalg.qr(down.T)
    u, values, v = _svd(upper @ lower.T)
    return left @ u, values, v @ right.T


def _cut(values: torch.Tensor, max_rank: int) -> tuple[int, float, float]:
    """How many of the descending values to keep, and the squared norms left out and in all."""
    squares = values.square()
    norm = squares.sum().item()
    tails = squares.flip(0).cumsum(0).flip(0)  # of what is left out when i are kept
    enough = int((tails > norm * TOLERANCE**2).sum())
    kept = max(1, min(enough, max_rank, len(values)))
    return kept, squares[kept:].sum().item(), norm
