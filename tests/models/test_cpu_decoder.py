"""A CPU's decoder: the same picture but for rounding, and nothing changed that it does not know."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.upsampling import Upsample2D
from torch import nn

from config.settings import ROOT
from models.cpu_decoder import Doubling, make_quick


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 4)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_doubling_is_the_convolution_of_the_doubled_picture(
    size: tuple[int, int], bias: bool
) -> None:
    torch.manual_seed(1)
    theirs = Upsample2D(6, use_conv=True, out_channels=9, bias=bias)
    inputs = torch.randn(2, 6, *size)
    ours = Doubling(theirs.conv)(inputs)
    assert ours.shape == (2, 9, 2 * size[0], 2 * size[1])
    torch.testing.assert_close(ours, theirs(inputs), rtol=1e-5, atol=1e-5)


def test_pictures_of_the_embedded_model_are_the_same_but_for_rounding() -> None:
    autoencoder = AutoencoderKL.from_pretrained(ROOT / "models" / "embedded" / "vae")
    quick = copy.deepcopy(autoencoder)
    make_quick(quick.decoder)
    make_quick(quick.decoder)  # as for a second model with the same part
    assert sum(isinstance(part, Doubling) for part in quick.modules()) == 3
    torch.manual_seed(2)
    latents = torch.randn(1, 16, 18, 26)
    wanted, got = autoencoder.decode(latents).sample, quick.decode(latents).sample
    assert got.shape == (1, 3, 144, 208)
    assert (wanted - got).abs().max() < 1e-4  # of a range of 2; a level of 8 bits is 0.008


@pytest.mark.parametrize(
    "options",
    [
        {"use_conv": False},
        {"use_conv": True, "kernel_size": 1, "padding": 0},
        {"use_conv_transpose": True},
        {"use_conv": True, "interpolate": False},
        {"use_conv": True, "norm_type": "ln_norm", "eps": 1e-5, "elementwise_affine": True},
    ],
    ids=str,
)
def test_what_does_more_than_doubling_stays(options: dict[str, object]) -> None:
    decoder = nn.Sequential(Upsample2D(4, **options))
    before = decoder[0]
    make_quick(decoder)
    assert decoder[0] is before


def test_doubling_refuses_a_size_of_its_own() -> None:
    doubling = Doubling(nn.Conv2d(4, 4, 3, padding=1))
    with pytest.raises(ValueError, match="doubled"):
        doubling(torch.zeros(1, 4, 8, 8), output_size=12)
