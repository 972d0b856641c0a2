"""Batches on a CPU whose pictures have the bits they have alone.

A matrix product of one row takes another kernel (GEMV) than one of several, which adds in another
order. Only layers on one vector per picture are such products of one row: the time, text and
guidance embedders and the modulations. In a batch they are given row by row. All else in the
transformer has a row per token, and computes each picture's rows as it would alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


@contextmanager
def rows_alone(module: torch.nn.Module) -> Iterator[None]:
    """Within it, every linear layer of `module` computes a (B, C) input as B inputs (1, C).

    Linear is whatever has `in_features`: torch's layers, quantised ones, LoRAs around them.
    """
    layers = [layer for layer in module.modules() if hasattr(layer, "in_features")]
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(_row_by_row, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward  # the class's own is seen again
            else:
                layer.forward = forward


def _row_by_row(
    forward: Callable[..., torch.Tensor], rows: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    if rows.ndim != 2 or len(rows) == 1:
        return forward(rows, *args, **kwargs)
    # Each a copy: a kernel may also depend on how its input is aligned in memory.
    return torch.cat([forward(row.clone(), *args, **kwargs) for row in rows.split(1)])
