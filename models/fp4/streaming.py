"""Running a 16-bit model that does not fit into memory: one block's weights at a time.

FLUX's blocks are run over all samples while their weights are there, and make room for the next. What
stands in memory is one block, the embedders, and the samples' hidden states (on the CPU; for 64
prompts at 4 steps of 512 px some 2 GB at FLUX.1's size).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import nn

from config.catalog import ModelRow
from config.errors import ModelUnavailable
from models.fp4.source import SourceWeights

MAX_SIDE_PX = 512  # of the pictures that models are calibrated with


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


def side_px(row: ModelRow) -> int:
    """Side of the pictures that the row's model is calibrated with."""
    return min(row.default_width, row.default_height, MAX_SIDE_PX)


class StreamedFlux:
    """FLUX.1's transformer, read block by block from a 16-bit diffusers folder."""

    TRANSFORMER: ClassVar[type[nn.Module]] = FluxTransformer2DModel
    # What stands in memory all the time: everything but the blocks.
    OUTSIDE: ClassVar[tuple[str, ...]] = (
        "x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out",
    )  # fmt: skip

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.source = SourceWeights(folder, "transformer")
        self.folder, self.device, self.dtype = folder, device, dtype
        self.model = self.empty(folder)
        for name in self.OUTSIDE:
            self.source.fill(self.model.get_submodule(name), f"{name}.", device, dtype)

    @property
    def block_names(self) -> list[str]:
        model = self.model
        return [f"transformer_blocks.{n}" for n in range(len(model.transformer_blocks))] + [
            f"single_transformer_blocks.{n}" for n in range(len(model.single_transformer_blocks))
        ]

    @classmethod
    def empty(cls, folder: Path) -> nn.Module:
        """The transformer on the meta device, by the configuration in `folder/transformer`.

        Raises ModelUnavailable, naming the file, for a configuration that is missing, damaged or of
        another kind of model.
        """
        label = f"{folder.name}/transformer/config.json"
        config = read_config(folder / "transformer" / "config.json", label)
        if config.get("_class_name") != cls.TRANSFORMER.__name__:
            raise ModelUnavailable(
                f"{label} is of a {config.get('_class_name')}, "
                f"four bits are made here for a {cls.TRANSFORMER.__name__}"
            )
        return empty_model(label, lambda: cls.TRANSFORMER.from_config(config))

    def latent_side(self, row: ModelRow) -> int:
        """Of the pictures that the model is calibrated with; an even number."""
        return side_px(row) // (self.latent_px * 2) * 2

    @property
    def latent_px(self) -> int:
        """Side of a latent of the autoencoder."""
        config = AutoencoderKL.load_config(self.folder, subfolder="vae")
        return 2 ** (len(config["block_out_channels"]) - 1)

    def positions(self, row: ModelRow, text_tokens: int) -> Positions:
        side = self.latent_side(row) // 2
        image = FluxPipeline._prepare_latent_image_ids(1, side, side, "cpu", torch.float32)
        return Positions(text=torch.zeros(text_tokens, 3), image=image)

    def noise(self, row: ModelRow, seeds: Sequence[int]) -> torch.Tensor:
        """Latents (B, image tokens, channels) before the first step."""
        channels, side = self.model.out_channels // 4, self.latent_side(row)
        shape = (1, channels, side, side)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return FluxPipeline._pack_latents(torch.cat(noise), len(noise), channels, side, side)

    def shift(self, settings: Any, tokens: int, steps: int) -> float:
        """Of the sampler's levels of noise; `settings` are the scheduler's."""
        return calculate_shift(
            tokens,
            settings.get("base_image_seq_len", 256),
            settings.get("max_image_seq_len", 4096),
            settings.get("base_shift", 0.5),
            settings.get("max_shift", 1.15),
        )

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


class StreamedFill(StreamedFlux):
    """FLUX.1 Fill's, which is given a picture of which everything is free: it draws the whole of it."""

    def embed(self, latents: torch.Tensor, *rest: Any, held_out: bool) -> Batch:
        beside = self._all_free(latents.shape[1]).expand(len(latents), -1, -1)
        return super().embed(torch.cat([latents, beside], dim=2), *rest, held_out=held_out)

    def _all_free(self, tokens: int) -> torch.Tensor:
        """(1, tokens, channels): latents of nothing, and a mask of ones."""
        if self._beside is None or self._beside.shape[1] != tokens:
            vae = AutoencoderKL.from_pretrained(
                self.folder, subfolder="vae", dtype=torch.float32, use_safetensors=True
            )
            latents, channels = math.isqrt(tokens) * 2, vae.config.latent_channels
            pixels = torch.zeros(1, 3, latents * self.latent_px, latents * self.latent_px)
            nothing = vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor
            nothing = nothing * vae.config.scaling_factor
            packed = FluxPipeline._pack_latents(nothing, 1, channels, latents, latents)
            mask = torch.ones(1, tokens, self.model.config.in_channels - 2 * packed.shape[2])
            self._beside = torch.cat([packed, mask], dim=2)
        return self._beside

    _beside: torch.Tensor | None = None


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
    """FLUX.1's transformer on the meta device: see `StreamedFlux.empty`."""
    return StreamedFlux.empty(folder)


def empty_t5(folder: Path) -> nn.Module:
    """T5's encoder on the meta device, by the configuration in `folder/text_encoder_2`.

    Raises ModelUnavailable as `empty_transformer` does.
    """
    from transformers import T5Config, T5EncoderModel

    label = f"{folder.name}/text_encoder_2/config.json"
    config = read_config(folder / "text_encoder_2" / "config.json", label)
    return empty_model(label, lambda: T5EncoderModel(T5Config.from_dict(config)))


def read_config(path: Path, label: str) -> dict[str, Any]:
    """A configuration of the Hub. Raises ModelUnavailable, naming it by `label`, for one that is none."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelUnavailable(f"{label} is missing; fetch the model again") from error
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{label} cannot be read: {error}; fetch the model again") from error
    if not isinstance(config, dict):
        raise ModelUnavailable(f"{label} is no configuration; fetch the model again")
    return config


def empty_model(label: str, make: Callable[[], nn.Module]) -> nn.Module:
    """What `make` gives, on the meta device. Raises ModelUnavailable for values that make no model."""
    try:
        with init_empty_weights():
            model = make()
    except Exception as error:  # what a wrong value breaks inside has no common type
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()[:200]
        raise ModelUnavailable(
            f"{label} describes no model that can be built: {reason}; fetch the model again"
        ) from error
    return model.requires_grad_(False).eval()
