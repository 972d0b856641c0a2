"""A linear layer of torch's with room for LoRAs: y = W·x + b + U·(V·x).

The class of a layer is exchanged, not the layer: its weight, its name, its place in the model and the
hooks on it stay, and so does its arithmetic while there is nothing in the branch. U and V are neither
parameters nor buffers: what moves weights about (offloading) does not know them, and they stay on the
device that the layer computes on.

With a fixed rank the branch is always computed, and LoRAs are written into tensors that are there, the
rest of the ranks being zeros. A compiled model then sees the same graph whatever LoRAs it draws with.
More ranks than fixed take the next power of two, for which it is compiled once more. The shape, and
with it the order of the sums, follows from the LoRAs alone and not from those before.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Pair = tuple[torch.Tensor, torch.Tensor]  # U (out, e), V (e, in)


class BranchedLinear(nn.Linear):
    """Made of a layer by `make_room`, never by itself."""

    _extra: Pair | None = None
    _fixed_rank: int | None = None
    _device: torch.device | None = None  # where it computes; None: where its weight is

    def set_extra(self, up: torch.Tensor, down: torch.Tensor) -> None:
        """Add `up` (out, e) · `down` (e, in) to the weight, in place of what was added before."""
        if self._fixed_rank is None:
            self._extra = up, down
        else:
            self._write(up, down)

    def clear_extra(self) -> None:
        """Take away what was added; the layer computes the same bits as before it came."""
        if self._fixed_rank is None:
            self._extra = None
        else:
            none = self.weight.new_zeros(0, device=self._computes_on)
            self._write(none.reshape(self.out_features, 0), none.reshape(0, self.in_features))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        product = F.linear(inputs, self.weight, self.bias)
        if self._extra is None:
            return product
        up, down = self._extra
        return product + F.linear(F.linear(inputs, down), up)

    @torch.no_grad()
    def _write(self, up: torch.Tensor, down: torch.Tensor) -> None:
        rank = self._fixed_rank
        assert rank is not None
        while rank < up.shape[1]:
            rank *= 2
        if self._extra is None or self._extra[0].shape[1] != rank:
            like = {"dtype": self.weight.dtype, "device": self._computes_on}
            self._extra = (
                torch.zeros(self.out_features, rank, **like),
                torch.zeros(rank, self.in_features, **like),
            )
        own_up, own_down = self._extra
        own_up[:, : up.shape[1]] = up
        own_up[:, up.shape[1] :] = 0
        own_down[: up.shape[1]] = down
        own_down[up.shape[1] :] = 0

    @property
    def _computes_on(self) -> torch.device:
        return self._device or self.weight.device

    def _apply(self, fn: Any, recurse: bool = True) -> BranchedLinear:
        super()._apply(fn, recurse)
        if self._extra is not None:
            self._extra = fn(self._extra[0]), fn(self._extra[1])
        return self


def make_room(
    module: nn.Module, device: torch.device | None = None, *, fixed_rank: int | None = None
) -> None:
    """Give every linear layer of `module` a branch. `device` is where it computes, unless where it lies.

    To be called before hooks are put on the layers: they remember what a layer's forward was.
    """
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = BranchedLinear
        if isinstance(part, BranchedLinear):
            part._device = device
            if fixed_rank is not None:
                part._fixed_rank = fixed_rank
                part.clear_extra()
