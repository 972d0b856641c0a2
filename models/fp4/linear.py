"""The layer: what stands in the place of `nn.Linear` in a model with four-bit weights.

    y = Q·(x / λ) + U·(V·x) + Σ extra U·(V·x) + b

Q is NVFP4, U and V are BF16, λ (only where the checkpoint was made for four-bit activations) smooths
the inputs of Q. The extra columns are room for LoRAs: they are kept beside U and V and never mixed
into them, so taking them away gives back the same bits.

How the product is computed is not the layer's affair: a path (`compute.py`) is given to all layers of
a model once, prepares what it wants to keep and multiplies.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from models.fp4 import nvfp4
from models.fp4.nvfp4 import BLOCK, Nvfp4Tensor


class ComputePath(Protocol):
    """How layers multiply on one kind of device."""

    name: str  # short, for logs
    describe: str  # a sentence for /info

    def prepare(self, layer: Fp4Linear) -> None:
        """Make what is kept with the layer; again after its tensors changed."""

    def prepare_branch(self, layer: Fp4Linear) -> None:
        """The part of `prepare` that is done again after the extra columns changed."""

    def multiply(self, layer: Fp4Linear, inputs: torch.Tensor) -> torch.Tensor:
        """(..., K) to (..., N), in the dtype of `inputs`."""


class Fp4Linear(nn.Module):
    """A linear layer with NVFP4 weights and a low-rank branch of rank r in BF16.

    Made empty on the meta device (`device="meta"`), filled by `load_state_dict(assign=True)`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool = True,
        smooth: bool = False,
        weight_only: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        nvfp4.check_shape((out_features, in_features))
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.weight_only = weight_only  # its inputs must not be rounded, on no hardware
        for name, (shape, dtype) in self.layout(
            in_features, out_features, rank, bias=bias, smooth=smooth
        ).items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device=device))
        if not bias:
            self.bias = None
        if not smooth:
            self.inverse_smoothing = None
        self.weight = None  # T5 asks its layers for a weight's dtype; there is none to adapt to
        self.path: ComputePath | None = None
        self.kept: dict[str, Any] = {}  # what the path keeps; no part of the state
        self._extra: tuple[torch.Tensor, torch.Tensor] | None = None

    @staticmethod
    def layout(
        in_features: int, out_features: int, rank: int, *, bias: bool, smooth: bool
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every tensor of a layer, by name."""
        layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "packed": ((out_features, in_features // 2), torch.uint8),
            "block_scale": ((out_features, in_features // BLOCK), torch.float8_e4m3fn),
            "global_scale": ((), torch.float32),
            "up": ((out_features, rank), torch.bfloat16),
            "down": ((rank, in_features), torch.bfloat16),
        }
        if bias:
            layout["bias"] = ((out_features,), torch.bfloat16)
        if smooth:
            layout["inverse_smoothing"] = ((in_features,), torch.float32)
        return layout

    @property
    def quantized(self) -> Nvfp4Tensor:
        return Nvfp4Tensor(
            packed=self.packed, block_scale=self.block_scale, global_scale=self.global_scale
        )

    @property
    def branch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """U (N, r + extra) and V (r + extra, K) of the branch with the extra columns."""
        if self._extra is None:
            return self.up, self.down
        up, down = self._extra
        return torch.cat([self.up, up], dim=1), torch.cat([self.down, down], dim=0)

    @property
    def branches(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """The products U·(V·x) that make up the branch: one, with all ranks side by side.

        Two while the layer waits in main memory between its uses: the extra columns, which are few,
        stay where it computes.
        """
        if self._extra is None or self._extra[0].device == self.up.device:
            return (self.branch,)
        return (self.up, self.down), self._extra

    @property
    def extra(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The extra columns as they were given; None without any."""
        return self._extra

    @property
    def extra_rank(self) -> int:
        return 0 if self._extra is None else self._extra[0].shape[1]

    def use(self, path: ComputePath) -> None:
        """Compute with `path` from now on."""
        self.path = path
        self.kept.clear()
        path.prepare(self)

    def set_extra(self, up: torch.Tensor, down: torch.Tensor) -> None:
        """Add `up` (N, e) · `down` (e, K) to the weight, in place of what was added before.

        Several LoRAs are their ranks side by side: up = [w₁s₁B₁, w₂s₂B₂ …], down = [A₁; A₂ …], both on
        the device the layer computes on, best in the dtype it computes in. Raises ValueError for shapes that do not fit the layer.
        """
        ranks = up.shape[-1], down.shape[0]
        fits = up.shape == (self.out_features, ranks[0]) and down.shape == (
            ranks[1],
            self.in_features,
        )
        if not fits or ranks[0] != ranks[1]:
            raise ValueError(
                f"extra columns {tuple(up.shape)} · {tuple(down.shape)} do not fit a layer of "
                f"{self.out_features} outputs and {self.in_features} inputs"
            )
        self._change_extra((up, down))

    def clear_extra(self) -> None:
        """Take the extra columns away; the layer computes the same bits as before they came."""
        if self._extra is not None:
            self._change_extra(None)

    def dense(self) -> torch.Tensor:
        """The weight that the layer stands for, extra columns included: (N, K) float32."""
        up, down = self.branch
        return self._widened() + up.float() @ down.float()

    def dense_without_extra(self) -> torch.Tensor:
        """The layer's own weight: (N, K) float32."""
        return self._widened() + self.up.float() @ self.down.float()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        assert self.path is not None, "a path is chosen when the model is loaded"
        return self.path.multiply(self, inputs)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.rank}+{self.extra_rank}"

    def _widened(self) -> torch.Tensor:
        weight = nvfp4.dequantize(self.quantized)
        return weight if self.inverse_smoothing is None else weight * self.inverse_smoothing

    def _change_extra(self, extra: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        before, self._extra = self._extra, extra
        try:
            if self.path is not None:
                self.path.prepare_branch(self)
        except BaseException:  # no room for the branch: the layer is what it was
            self._extra = before
            raise

    def _apply(self, fn: Any, recurse: bool = True) -> Fp4Linear:
        """Move to a device. Dtypes are part of the format: a cast of the model passes them by."""

        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)
        if self._extra is not None:
            self._extra = keep_dtype(self._extra[0]), keep_dtype(self._extra[1])
        if self.path is not None:
            # What is kept moves too: it is not made again, which takes seconds on a CPU.
            self.kept = {
                name: keep_dtype(kept)
                for name, kept in self.kept.items()
                if isinstance(kept, torch.Tensor)
            }
            self.path.prepare_branch(self)
        return self


def fp4_layers(model: nn.Module) -> dict[str, Fp4Linear]:
    """The four-bit layers of a model by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, Fp4Linear)}
