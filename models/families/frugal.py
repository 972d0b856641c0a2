"""Less memory for more time: tiles in the autoencoder, weights that wait in main memory.

Offloading is diffusers' group offloading: one block of the transformer, or one layer of a text
encoder, is on the GPU at a time, so the peak is what a step computes with, not what the model
weighs. Offloading whole components would leave the transformer, 24 GB in BF16, as the peak. The
autoencoder is small (0.2 GB) and stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks import HookRegistry, apply_group_offloading

HOOKS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")


@contextmanager
def tiled(vae: Any) -> Iterator[None]:
    """Within it, `vae` decodes in overlapping tiles half as wide as the pictures it is made for.

    FLUX.1's is made for 1024 px: tiles of 512 px need a quarter of the memory at 1024 px, and no
    more for larger pictures. Each tile is normalised by itself and blended over a quarter of its
    side into the next, so colours differ a little from a picture decoded whole.
    """
    names = ("use_tiling", "tile_sample_min_size", "tile_latent_min_size")
    before = {name: getattr(vae, name) for name in names}
    pixels_per_latent = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.use_tiling = True
    vae.tile_sample_min_size = vae.config.sample_size // 2
    vae.tile_latent_min_size = vae.tile_sample_min_size // pixels_per_latent
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)


def enable_offloading(
    transformer: torch.nn.Module,
    text_encoders: Sequence[torch.nn.Module],
    devices: tuple[torch.device, torch.device],
    *,
    prefetch: bool,
) -> None:
    """Let weights wait in main memory until their block computes on a device.

    `devices` are the text encoders' and the transformer's. With `prefetch` the next block is
    copied while one computes: faster, for all the weights pinned in main memory.
    """
    for module, device, how in _plan(transformer, text_encoders, devices):
        apply_group_offloading(module, onload_device=device, use_stream=prefetch, **how)


def disable_offloading(
    transformer: torch.nn.Module,
    text_encoders: Sequence[torch.nn.Module],
    devices: tuple[torch.device, torch.device],
) -> None:
    """Undo `enable_offloading`: no hook is left, and all weights are on their device."""
    for module, device, _ in _plan(transformer, text_encoders, devices):
        for part in module.modules():
            registry = part.__dict__.get("_diffusers_hook")
            if isinstance(registry, HookRegistry):
                for name in HOOKS:
                    registry.remove_hook(name, recurse=False)
                _see_own_forward(part)
        module.to(device)


def _see_own_forward(module: torch.nn.Module) -> None:
    """A removed hook leaves the class's forward behind as an attribute, a cycle of references."""
    if getattr(module.__dict__.get("forward"), "__self__", None) is module:
        del module.forward


def _plan(
    transformer: torch.nn.Module,
    text_encoders: Sequence[torch.nn.Module],
    devices: tuple[torch.device, torch.device],
) -> Iterator[tuple[torch.nn.Module, torch.device, dict[str, Any]]]:
    """What is offloaded, from where, and how finely."""
    for encoder in text_encoders:
        # Their blocks lie deeper than block_level looks.
        yield encoder, devices[0], {"offload_type": "leaf_level"}
    yield transformer, devices[1], {"offload_type": "block_level", "num_blocks_per_group": 1}
