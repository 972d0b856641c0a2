"""The plan: what the meter counts, and FLUX.1 [schnell] within 8 GB."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel

from models.fp4 import hardware, memory
from models.fp4.compute import Fp8
from models.fp4.kernels import Kernels
from models.fp4.memory import MemoryPlan
from tests.models.fp4.layer import make_layer

MB = 1_000_000


@pytest.fixture(scope="module")
def plans() -> dict[str, MemoryPlan]:
    return {name: memory.plan(name) for name in memory.PATHS}


@pytest.fixture(params=list(memory.PATHS))
def plan(plans: dict[str, MemoryPlan], request: pytest.FixtureRequest) -> MemoryPlan:
    return plans[request.param]


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


def test_more_blocks_of_a_kind_take_no_more_than_two(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(num_layers=3, num_single_layers=3).bfloat16()
    peaks = set()
    for count in (2, 3):
        monkeypatch.setattr(memory, "BLOCKS_RUN", count)
        with torch.no_grad():
            peaks.add(memory.peak_bytes(lambda: memory._denoise(transformer, 256, 256, 64)))
    assert len(peaks) == 1
    assert len(transformer.transformer_blocks) == len(transformer.single_transformer_blocks) == 3


def test_schnells_transformer_is_at_most_032_of_bf16(plan: MemoryPlan) -> None:
    assert plan.transformer_weights_bf16 == 2 * 11_891_178_560
    assert plan.transformer_weights <= 0.32 * plan.transformer_weights_bf16
    assert (
        plan.transformer_weights > 0.28 * plan.transformer_weights_bf16
    ), "branch and scales count"


def test_t5_is_four_bit_and_not_on_the_gpu(plan: MemoryPlan) -> None:
    assert 2.6e9 < plan.t5_weights < 3.2e9
    assert plan.text_encoding < plan.t5_weights / 3


def test_every_path_that_a_gpu_can_take_is_planned() -> None:
    paths = [make() for make in hardware.candidates((12, 0), "memory", Kernels())]
    assert {path.name for path in paths} == set(memory.PATHS)
    assert all(type(memory.PATHS[path.name]()) is type(path) for path in paths)


def test_what_a_path_keeps_is_counted_and_what_it_only_looks_at_is_not() -> None:
    layer, _ = make_layer(128, 96)
    model = torch.nn.Sequential(layer)
    for once, kept in ((False, 0), (True, 96 * 128)):
        layer.use(Fp8(convert_once=once))
        assert kept <= memory.kept_bytes(model) <= kept + 4 * 96, "a scale for each row besides"


def test_the_table_has_every_component_by_every_path(plans: dict[str, MemoryPlan]) -> None:
    table = memory.table(plans)
    assert all(name in table for name in plans)
    for word in ("transformer", "autoencoder", "encoding", "denoising", "decoding", "peak", "T5"):
        assert word in table
