"""Text encoders that wait in main memory and come to the GPU for the moment they compute.

T5 in four bits is 2.9 GB, CLIP 0.25 GB: beside a transformer of 7 GB they would not fit into 8 GB. T5
comes block by block (110 MB), as does FLUX.2 Klein's language model (200 to 390 MB), CLIP whole; copies are pinned, so they come at the bus's speed (about a
tenth of a second for T5). The weights do not change, so nothing is copied back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import Qwen3ForCausalLM, T5EncoderModel


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


def stream_text_encoder(encoder: nn.Module, device: torch.device) -> None:
    """T5 and a language model block by block, with their tables; CLIP, which is small, whole."""
    if isinstance(encoder, T5EncoderModel):
        inside = encoder.encoder
        parts = [*inside.block, inside.embed_tokens, inside.final_layer_norm]
    elif isinstance(encoder, Qwen3ForCausalLM):
        parts = [*encoder.model.layers, encoder.model.embed_tokens]
    else:
        parts = [encoder]
    for part in parts:
        wait_in_main_memory(part, device)


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.detach().cpu()
    return copy.pin_memory() if torch.cuda.is_available() else copy
