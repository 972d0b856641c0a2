"""Text encoders that wait in main memory and come to the GPU for the moment they compute.

T5 in four bits is 2.9 GB, CLIP 0.25 GB: beside a transformer of 7 GB they would not fit into 8 GB. T5
comes block by block (110 MB), CLIP whole; copies are pinned, so they come at the bus's speed (about a
tenth of a second for T5). The weights do not change, so nothing is copied back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def wait_in_main_memory(module: nn.Module, device: torch.device) -> None:
    """From now on `module` is on `device` only while its forward runs."""
    waiting = {name: _pinned(tensor) for name, tensor in _tensors(module)}
    # By name: moving a module gives it new buffers.
    for name, tensor in _tensors(module):
        tensor.data = waiting[name]

    def come(
        part: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for name, tensor in _tensors(part):
            tensor.data = waiting[name].to(device, non_blocking=True)
        # The caller sees weights in main memory and puts its token ids there.
        return tuple(map(there, inputs)), {name: there(value) for name, value in options.items()}

    def there(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    def go(part: nn.Module, _inputs: Any, _output: Any) -> None:
        for name, tensor in _tensors(part):
            tensor.data = waiting[name]

    module.register_forward_pre_hook(come, with_kwargs=True)
    module.register_forward_hook(go, always_call=True)


def stream_text_encoders(clip: nn.Module, t5: nn.Module, device: torch.device) -> None:
    """CLIP whole and T5 block by block; T5's table and last norm as well."""
    wait_in_main_memory(clip, device)
    encoder = t5.encoder
    for block in encoder.block:
        wait_in_main_memory(block, device)
    wait_in_main_memory(encoder.embed_tokens, device)
    wait_in_main_memory(encoder.final_layer_norm, device)


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.detach().cpu()
    return copy.pin_memory() if torch.cuda.is_available() else copy
