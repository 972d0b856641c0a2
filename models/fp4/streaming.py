"""Running a 16-bit model that does not fit into memory: one block's weights at a time.

FLUX's blocks are run over all samples while their weights are there, and make room for the next. What
stands in memory is one block, the embedders, and the samples' hidden states (on the CPU; for 64
prompts at 4 steps of 512 px some 2 GB at FLUX.1's size).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel
from torch import nn

from config.errors import ModelUnavailable
from models.fp4.source import SourceWeights

OUTSIDE = ("x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out")


@dataclass(slots=True)
class Batch:
    """Samples on their way through the blocks; B of them, on the CPU between two blocks."""

    hidden: torch.Tensor  # (B, image tokens, C)
    context: torch.Tensor  # (B, text tokens, C)
    temb: torch.Tensor  # (B, C): time and pooled prompt
    held_out: bool  # not fitted to, only measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """Rows of (time, y, x) of text and image tokens; the same for every sample."""

    text: torch.Tensor  # (text tokens, 3)
    image: torch.Tensor  # (image tokens, 3)


Visit = Callable[[str, nn.Module, list[Batch]], None]


class StreamedFlux:
    """FLUX.1's transformer, read block by block from a 16-bit diffusers folder."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.source = SourceWeights(folder, "transformer")
        self.device, self.dtype = device, dtype
        self.model = empty_transformer(folder)
        for name in OUTSIDE:
            self.source.fill(self.model.get_submodule(name), f"{name}.", device, dtype)

    @property
    def block_names(self) -> list[str]:
        model = self.model
        return [f"transformer_blocks.{n}" for n in range(len(model.transformer_blocks))] + [
            f"single_transformer_blocks.{n}" for n in range(len(model.single_transformer_blocks))
        ]

    def embed(
        self,
        latents: torch.Tensor,
        time: float,
        prompt: torch.Tensor,
        pooled: torch.Tensor,
        guidance: float,
        *,
        held_out: bool,
    ) -> Batch:
        """Samples before the first block. `time` from 0 to 1; latents (B, image tokens, channels)."""
        model, rows = self.model, latents.shape[0]
        here = {"device": self.device, "dtype": self.dtype}
        times = torch.full((rows,), time * 1000, **here)
        condition = [times, pooled.to(**here)]
        if model.config.guidance_embeds:
            condition.insert(1, torch.full((rows,), guidance * 1000, **here))
        return Batch(
            hidden=model.x_embedder(latents.to(**here)).cpu(),
            context=model.context_embedder(prompt.to(**here)).cpu(),
            temb=model.time_text_embed(*condition).cpu(),
            held_out=held_out,
        )

    def through_blocks(self, batches: list[Batch], positions: Positions, visit: Visit) -> None:
        """Bring all batches through all blocks; `visit(name, block, batches)` once per block."""
        for name in self.block_names:
            block = self.model.get_submodule(name)
            self.source.fill(block, f"{name}.", self.device, self.dtype)
            try:
                visit(name, block, batches)
            finally:
                block.to("meta")

    def step(self, block: nn.Module, batch: Batch, positions: Positions) -> None:
        """One batch through one block."""
        ids = torch.cat([positions.text, positions.image]).to(self.device)
        context, hidden = block(
            hidden_states=batch.hidden.to(self.device),
            encoder_hidden_states=batch.context.to(self.device),
            temb=batch.temb.to(self.device),
            image_rotary_emb=self.model.pos_embed(ids),
        )
        batch.context, batch.hidden = context.cpu(), hidden.cpu()

    def finish(self, batch: Batch) -> torch.Tensor:
        """Samples after the last block to the predicted velocity, (B, image tokens, channels) FP32."""
        temb = batch.temb.to(self.device)
        hidden = self.model.norm_out(batch.hidden.to(self.device), temb)
        return self.model.proj_out(hidden).float().cpu()


@contextmanager
def streamed_t5(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    on_block: Callable[[str, nn.Module], Callable[[], None]] | None = None,
) -> Iterator[nn.Module]:
    """T5's encoder with the weights of one block at a time.

    `on_block(name, block)` is called when a block's weights have come; what it returns is called
    when the block has run.
    """
    model = empty_t5(folder)
    source = SourceWeights(folder, "text_encoder_2")
    source.check_fits(model)
    encoder = model.encoder
    source.fill(encoder.embed_tokens, "encoder.embed_tokens.", device, dtype)
    source.fill(encoder.final_layer_norm, "encoder.final_layer_norm.", device, dtype)
    if hasattr(model, "shared"):
        model.shared = encoder.embed_tokens
    after: dict[str, Callable[[], None]] = {}
    for number, block in enumerate(encoder.block):
        name = f"encoder.block.{number}"

        def fill(module: nn.Module, _inputs: object, name: str = name) -> None:
            source.fill(module, f"{name}.", device, dtype)
            if on_block is not None:
                after[name] = on_block(name, module)

        def drop(module: nn.Module, _inputs: object, _output: object, name: str = name) -> None:
            if name in after:
                after.pop(name)()
            module.to("meta")

        block.register_forward_pre_hook(fill)
        block.register_forward_hook(drop)
    yield model


def empty_transformer(folder: Path) -> nn.Module:
    """FLUX.1's transformer on the meta device, by the configuration in `folder/transformer`.

    Raises ModelUnavailable, naming the file, for a configuration that is missing, damaged or of
    another kind of model.
    """
    label = f"{folder.name}/transformer/config.json"
    config = _configuration(folder / "transformer" / "config.json", label)
    if config.get("_class_name") != FluxTransformer2DModel.__name__:
        raise ModelUnavailable(
            f"{label} is of a {config.get('_class_name')}, "
            "four bits are for FLUX.1's FluxTransformer2DModel"
        )
    return _empty(label, lambda: FluxTransformer2DModel.from_config(config))


def empty_t5(folder: Path) -> nn.Module:
    """T5's encoder on the meta device, by the configuration in `folder/text_encoder_2`.

    Raises ModelUnavailable as `empty_transformer` does.
    """
    from transformers import T5Config, T5EncoderModel

    label = f"{folder.name}/text_encoder_2/config.json"
    config = _configuration(folder / "text_encoder_2" / "config.json", label)
    return _empty(label, lambda: T5EncoderModel(T5Config.from_dict(config)))


def _configuration(path: Path, label: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelUnavailable(f"{label} is missing; fetch the model again") from error
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{label} cannot be read: {error}; fetch the model again") from error
    if not isinstance(config, dict):
        raise ModelUnavailable(f"{label} is no configuration; fetch the model again")
    return config


def _empty(label: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        with init_empty_weights():
            model = make()
    except Exception as error:  # what a wrong value breaks inside has no common type
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()[:200]
        raise ModelUnavailable(
            f"{label} describes no model that can be built: {reason}; fetch the model again"
        ) from error
    return model.requires_grad_(False).eval()
