"""FLUX.1's parts at their true size with random weights: right for speed and memory, not for pictures."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from models.fp4 import hardware, memory
from models.fp4.checkpoint import replace_layers
from models.fp4.layers import plan_layers
from models.fp4.linear import ComputePath, Fp4Linear, fp4_layers

RANK = memory.RANK
TEXT_TOKENS = 256


def transformer(device: torch.device, **config: Any) -> Any:
    """`FluxTransformer2DModel` of FLUX.1 [schnell] in BF16, but for what `config` changes."""
    from diffusers import FluxTransformer2DModel

    return _filled(_empty(FluxTransformer2DModel, guidance_embeds=False, **config), device)


def fp4_transformer(device: torch.device, *, fp8_weights: str) -> tuple[Any, ComputePath]:
    """The same with four-bit weights, and the path it multiplies by here."""
    from diffusers import FluxTransformer2DModel

    model = _empty(FluxTransformer2DModel, guidance_embeds=False)
    plans, _ = plan_layers(model, RANK)
    replace_layers(model, plans, "random", smooth=False)
    model = _filled(model, device)
    layers = fp4_layers(model).values()
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    path = hardware.choose_path(device, fp8_weights=fp8_weights, weights=weights, activations=16)
    for layer in layers:
        fill_fp4(layer)
        layer.use(path)
    return model, path


def autoencoder(device: torch.device, **config: Any) -> Any:
    from diffusers import AutoencoderKL

    return _filled(_empty(AutoencoderKL, **memory.VAE | config), device)


def t5(device: torch.device, **config: Any) -> Any:
    from transformers import T5Config, T5EncoderModel

    with init_empty_weights():
        model = T5EncoderModel(T5Config(**memory.T5 | config)).bfloat16()
    model = _filled(model, device)
    model.encoder.embed_tokens.weight = model.shared.weight
    return model


def clip(device: torch.device, **config: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device(device):  # its buffers are computed, so it is not made empty
        return CLIPTextModel(CLIPTextConfig(**memory.CLIP | config)).bfloat16().eval()


def inputs(device: torch.device, width: int, height: int, batch: int = 1) -> dict[str, Any]:
    """What the transformer is called with for pictures of `width` x `height` px."""
    tokens = (width // 16) * (height // 16)
    generator = torch.Generator(device).manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.bfloat16)

    img_ids = torch.zeros(height // 16, width // 16, 3, device=device)
    img_ids[..., 1] += torch.arange(height // 16, device=device)[:, None]
    img_ids[..., 2] += torch.arange(width // 16, device=device)[None]
    return {
        "hidden_states": noise(batch, tokens, 64),
        "encoder_hidden_states": noise(batch, TEXT_TOKENS, 4096),
        "pooled_projections": noise(batch, 768),
        "timestep": torch.full((batch,), 0.5, device=device, dtype=torch.bfloat16),
        "img_ids": img_ids.reshape(tokens, 3),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3, device=device),
        "return_dict": False,
    }


def fill_fp4(layer: Fp4Linear) -> None:
    """Random codes with scales that make weights of about 0.02."""
    layer.packed.random_(0, 256)
    layer.block_scale.copy_(torch.full(layer.block_scale.shape, 64.0, device=layer.up.device))
    layer.global_scale.fill_(1e-4)
    layer.up.normal_(std=0.01)
    layer.down.normal_(std=0.01)
    for tensor, value in ((layer.bias, 0.0), (layer.inverse_smoothing, 1.0)):
        if tensor is not None:
            tensor.fill_(value)


def _empty(kind: Any, **config: Any) -> nn.Module:
    with init_empty_weights():
        model = kind(**config)
    for tensor in model.parameters():
        tensor.data = tensor.data.bfloat16()
    return model


def _filled(model: nn.Module, device: torch.device) -> Any:
    model = model.to_empty(device=device).eval().requires_grad_(False)
    torch.manual_seed(0)
    for name, tensor in model.named_parameters():
        # Norms keep their size, so that numbers neither run over nor vanish on the way.
        tensor.fill_(1.0) if "norm" in name and tensor.dim() == 1 else tensor.normal_(std=0.02)
    for tensor in model.buffers():
        if tensor.is_floating_point() and tensor.dtype.itemsize > 1:
            tensor.zero_()
    return model
