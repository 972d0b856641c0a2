"""A linear layer of torch's with room for LoRAs: y = W·x + b + U·(V·x).

The class of a layer is exchanged, not the layer: its weight, its name, its place in the model and the
hooks on it stay, and so does its arithmetic while there is nothing in the branch. U and V are neither
parameters nor buffers: what moves weights about (offloading) does not know them, and they stay on the
device that the layer computes on.

A compiled model is one graph for layers without a branch and one for each width of branches, which is why
`merged.py` gives all layers of a compiled model branches of one width or none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Pair = tuple[torch.Tensor, torch.Tensor]  # U (out, e), V (e, in)


class BranchedLinear(nn.Linear):
    """Made of a layer by `make_room`, never by itself."""

    _extra: Pair | None  # the layer's own from the start: a compiled model looks who has it

    def set_extra(self, up: torch.Tensor, down: torch.Tensor) -> None:
        """Add `up` (out, e) · `down` (e, in) to the weight, in place of what was added before."""
        self._extra = up, down

    def clear_extra(self) -> None:
        """Take away what was added; the layer computes the same bits as before it came."""
        self._extra = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        product = F.linear(inputs, self.weight, self.bias)
        if self._extra is None:
            return product
        # Weights that wait in main memory take their branch along, and come without it.
        up, down = (tensor.to(inputs.device) for tensor in self._extra)
        return product + F.linear(F.linear(inputs, down), up)

    def _apply(self, fn: Any, recurse: bool = True) -> BranchedLinear:
        super()._apply(fn, recurse)
        if self._extra is not None:
            self._extra = fn(self._extra[0]), fn(self._extra[1])
        return self


def make_room(module: nn.Module) -> None:
    """Give every linear layer of `module` a branch.

    To be called before hooks are put on the layers: they remember what a layer's forward was.
    """
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = BranchedLinear
            part._extra = None
