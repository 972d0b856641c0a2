"""A linear layer with room for LoRAs: what it adds, and that it is torch's layer otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.lora.branch import BranchedLinear, make_room


def make(*, bias: bool = True) -> tuple[BranchedLinear, nn.Linear]:
    torch.manual_seed(1)
    layer = nn.Linear(24, 40, bias=bias)
    other = nn.Linear(24, 40, bias=bias)
    other.load_state_dict(layer.state_dict())
    make_room(nn.Sequential(layer))
    assert isinstance(layer, BranchedLinear)
    return layer, other


def columns(rank: int, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(40, rank, generator=generator), torch.randn(rank, 24, generator=generator)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (3, 24), (2, 5, 24)])
@torch.no_grad()
def test_branch_adds_its_product_and_leaves_no_trace(bias: bool, shape) -> None:
    layer, plain = make(bias=bias)
    inputs = torch.randn(shape)
    assert torch.equal(layer(inputs), plain(inputs))
    for rank in (3, 1, 9):
        up, down = columns(rank)
        layer.set_extra(up, down)
        wanted = plain(inputs).double() + inputs.double() @ (up.double() @ down.double()).T
        torch.testing.assert_close(layer(inputs).double(), wanted, rtol=1e-5, atol=1e-4)
    layer.clear_extra()
    assert torch.equal(layer(inputs), plain(inputs))


def test_layer_keeps_its_weight_its_state_and_its_hooks() -> None:
    layer = nn.Linear(24, 40)
    weight, seen = layer.weight, []
    layer.register_forward_hook(lambda *_: seen.append(1))
    make_room(nn.Sequential(layer))
    layer.set_extra(*columns(3))
    layer(torch.ones(24))
    assert layer.weight is weight and seen == [1]
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


def test_moving_and_casting_the_model_takes_the_columns_along() -> None:
    layer, _ = make()
    layer.set_extra(*columns(3))
    nn.Sequential(layer).to(torch.bfloat16)
    assert layer._extra[0].dtype is torch.bfloat16
    assert layer(torch.ones(2, 24, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_layers_of_other_classes_stay_what_they_are() -> None:
    class Own(nn.Linear):
        pass

    own = Own(24, 40)
    make_room(nn.Sequential(own, nn.LayerNorm(40)))
    assert type(own) is Own
