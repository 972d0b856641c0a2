"""Text encoders that come and go. Where they go to is a GPU; that they compute the same is tested here."""

from __future__ import annotations

from pathlib import Path

import torch

from models.fp4 import nvfp4_engine, offload
from models.types import LoadOptions
from tests.models.fp4.conftest import TINY

CPU = torch.device("cpu")


@torch.no_grad()
def test_encoders_that_wait_encode_the_same(tiny_fp4: Path, options: LoadOptions) -> None:
    pipeline, _ = nvfp4_engine.load_pipeline(tiny_fp4, TINY, options)

    def encode() -> tuple[torch.Tensor, ...]:
        return pipeline.encode_prompt("a star", None, max_sequence_length=16)[:2]

    before = encode()
    offload.stream_text_encoder(pipeline.text_encoder, CPU)
    offload.stream_text_encoder(pipeline.text_encoder_2, CPU)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(encode(), before, strict=True))


@torch.no_grad()
def test_a_module_that_was_moved_meanwhile_still_waits(
    tiny_fp4: Path, options: LoadOptions
) -> None:
    """Moving gives a module new buffers; what waits is known by name."""
    pipeline, _ = nvfp4_engine.load_pipeline(tiny_fp4, TINY, options)
    t5 = pipeline.text_encoder_2
    ids = torch.arange(12)[None]
    before = t5(ids)[0]
    offload.stream_text_encoder(t5, CPU)
    t5._apply(lambda tensor: tensor.clone())
    assert torch.equal(t5(ids)[0], before)


def test_a_failing_forward_leaves_nothing_on_the_device() -> None:
    """Seen by which storage the weights have: afterwards the one that waits."""
    module = torch.nn.Linear(4, 4)
    offload.wait_in_main_memory(module, CPU)
    waiting = module.weight.data_ptr()
    try:
        module(torch.zeros(1, 5))
    except RuntimeError:
        assert module.weight.data_ptr() == waiting
    else:
        raise AssertionError("five inputs do not fit")


def test_inputs_come_with_the_weights() -> None:
    """The caller finds the weights in main memory and puts its ids there."""
    seen: list[torch.device] = []

    class Watches(torch.nn.Module):
        def forward(self, ids: torch.Tensor, *, mask: torch.Tensor | None = None) -> None:
            seen.extend(tensor.device for tensor in (ids, mask) if tensor is not None)

    module = Watches()
    offload.wait_in_main_memory(module, torch.device("meta"))
    module(torch.zeros(2), mask=torch.zeros(2))
    assert [device.type for device in seen] == ["meta", "meta"]
