"""The layer: what it stands for, and extra columns that come and go without a trace."""

from __future__ import annotations

import pytest
import torch

from models.fp4.compute import Dequantized, Fp8
from models.fp4.linear import Fp4Linear, fp4_layers
from tests.models.fp4.layer import make_inputs, make_layer, product64, relative

PATHS = [
    lambda: Dequantized(keep=True, dtype=torch.float32),
    lambda: Dequantized(keep=False, dtype=torch.float32),
    lambda: Fp8(convert_once=True),
    lambda: Fp8(convert_once=False),
]


def loras(layer: Fp4Linear, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(layer.out_features, rank, generator=generator).bfloat16()
    down = torch.randn(rank, layer.in_features, generator=generator).bfloat16()
    return up / 8, down / 8


@pytest.mark.parametrize("smooth", [False, True])
def test_dense_is_near_the_weight_it_was_fitted_to(smooth: bool) -> None:
    layer, weight = make_layer(smooth=smooth)
    assert relative(layer.dense(), weight.double()) < 0.2
    inputs = make_inputs(50, 128, seed=9)
    assert relative(inputs @ layer.dense().T, inputs.double() @ weight.double().T) < 0.05


def test_extra_columns_add_exactly_their_product() -> None:
    layer, _ = make_layer()
    before = layer.dense()
    one, other = loras(layer, 4, 1), loras(layer, 16, 2)
    layer.set_extra(torch.cat([one[0], other[0]], 1), torch.cat([one[1], other[1]], 0))
    assert layer.extra_rank == 20
    added = one[0].double() @ one[1].double() + other[0].double() @ other[1].double()
    torch.testing.assert_close(layer.dense().double(), before.double() + added, rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("smooth", [False, True])
def test_extra_columns_act_and_leave_no_trace(path, smooth: bool) -> None:
    layer, _ = make_layer(smooth=smooth)
    layer.use(path())
    inputs = make_inputs(9, 128, seed=5)
    before = layer(inputs)
    layer.set_extra(*loras(layer, 4, 1))
    with_lora = layer(inputs)
    assert relative(with_lora, product64(layer, inputs)) < 0.05
    layer.set_extra(*loras(layer, 2, 2))  # in place of the first
    layer.clear_extra()
    assert torch.equal(layer(inputs), before)
    assert relative(with_lora, before.double()) > 0.01


@pytest.mark.parametrize(
    ("up", "down"), [((96, 4), (4, 112)), ((95, 4), (4, 128)), ((96, 4), (5, 128)), ((96,), (128,))]
)
def test_extra_columns_of_another_shape_are_refused(up, down) -> None:
    layer, _ = make_layer()
    with pytest.raises(ValueError, match="do not fit a layer of 96 outputs and 128 inputs"):
        layer.set_extra(torch.zeros(up), torch.zeros(down))
    assert layer.extra_rank == 0


def test_extra_columns_are_no_part_of_the_state() -> None:
    layer, _ = make_layer()
    names = set(layer.state_dict())
    layer.set_extra(*loras(layer, 4, 1))
    assert set(layer.state_dict()) == names


def test_a_cast_of_the_model_leaves_the_format_alone() -> None:
    layer, _ = make_layer()
    before = {name: (t.dtype, t.clone()) for name, t in layer.state_dict().items()}
    torch.nn.Sequential(layer).to(torch.float16)
    for name, tensor in layer.state_dict().items():
        assert tensor.dtype == before[name][0]
        assert torch.equal(tensor.float(), before[name][1].float())


def test_a_layer_of_inputs_that_are_no_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="100 inputs are not a multiple of 16"):
        Fp4Linear(100, 32, 4)


def test_a_layer_without_bias_or_branch_multiplies() -> None:
    layer, _ = make_layer(rank=0, bias=False)
    layer.use(Dequantized(keep=False, dtype=torch.float32))
    inputs = make_inputs(3, 128)
    assert relative(layer(inputs), product64(layer, inputs)) < 1e-5
    assert fp4_layers(torch.nn.Sequential(layer)) == {"0": layer}
