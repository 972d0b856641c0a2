"""The plan: what the meter counts, and FLUX.1 [schnell] within 8 GB."""

from __future__ import annotations

import pytest
import torch

from models.fp4 import memory
from models.fp4.memory import MemoryPlan

MB = 1_000_000


@pytest.fixture(scope="module")
def plan() -> MemoryPlan:
    return memory.plan()


def mega(count: int) -> torch.Tensor:
    return torch.empty(count * MB, dtype=torch.uint8, device="meta")


def test_meter_counts_the_most_that_is_alive_at_once() -> None:
    def run() -> None:
        first = mega(10)
        second = mega(20)
        del first
        third = mega(5)
        del second, third
        mega(12)

    assert memory.peak_bytes(run) == 30 * MB


def test_meter_counts_a_view_once_and_what_was_there_before_not() -> None:
    before = mega(100)

    def run() -> None:
        tensor = before + 1
        views = [tensor.view(10, -1), tensor[5:], tensor.reshape(-1, 2).T]
        assert len(views) == 3

    assert memory.peak_bytes(run) == 100 * MB


def test_meter_takes_attention_as_fused() -> None:
    query = torch.empty(1, 2, 1000, 64, dtype=torch.bfloat16, device="meta")
    peak = memory.peak_bytes(
        lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query)
    )
    assert peak == query.nbytes


def test_schnell_at_1024_px_stays_within_8_gb(plan: MemoryPlan) -> None:
    assert plan.peak <= memory.LIMIT_BYTES == 8_000_000_000
    parts = [plan.text_encoding, plan.denoising, plan.decoding]
    assert plan.resident + max(parts) == plan.peak
    assert all(part > 100 * MB for part in parts), "nothing was counted"


def test_schnells_transformer_is_at_most_032_of_bf16(plan: MemoryPlan) -> None:
    assert plan.transformer_weights_bf16 == 2 * 11_891_178_560
    assert plan.transformer_weights <= 0.32 * plan.transformer_weights_bf16
    assert (
        plan.transformer_weights > 0.28 * plan.transformer_weights_bf16
    ), "branch and scales count"


def test_t5_is_four_bit_and_not_on_the_gpu(plan: MemoryPlan) -> None:
    assert 2.6e9 < plan.t5_weights < 3.2e9
    assert plan.text_encoding < plan.t5_weights / 3


def test_the_table_has_every_component(plan: MemoryPlan) -> None:
    table = plan.table()
    for word in ("transformer", "autoencoder", "encoding", "denoising", "decoding", "peak", "T5"):
        assert word in table
