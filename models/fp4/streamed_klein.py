"""FLUX.2 Klein for the quantiser: its transformer and its text encoder, one block's weights at a time.

The transformer's blocks are given their modulations by layers that the model has once; its single blocks
take text and picture as one. The text encoder stays in 16 bit: its outputs in the middle are the
embeddings, so nothing evens out what four bits would change there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import nn

from config.catalog import ModelRow
from models.families.flux2_klein import leave_out_unused_layers
from models.fp4.source import SourceWeights
from models.fp4.streaming import Batch, Positions, StreamedFlux, empty_model, read_config

_PROMPTS_AT_ONCE = 16


class StreamedKlein(StreamedFlux):
    """FLUX.2's transformer, read block by block from a 16-bit diffusers folder."""

    TRANSFORMER = Flux2Transformer2DModel
    OUTSIDE = (
        "x_embedder", "context_embedder", "time_guidance_embed", "double_stream_modulation_img",
        "double_stream_modulation_txt", "single_stream_modulation", "norm_out", "proj_out",
    )  # fmt: skip

    def positions(self, row: ModelRow, text_tokens: int) -> Positions:
        side = self.latent_side(row) // 2
        pipeline = Flux2KleinPipeline
        return Positions(
            text=pipeline._prepare_text_ids(torch.empty(1, text_tokens, 1))[0],
            image=pipeline._prepare_latent_ids(torch.empty(1, 1, side, side))[0],
        )

    def noise(self, row: ModelRow, seeds: Sequence[int]) -> torch.Tensor:
        side = self.latent_side(row) // 2
        shape = (1, self.model.config.in_channels, side, side)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return Flux2KleinPipeline._pack_latents(torch.cat(noise))

    def shift(self, settings: object, tokens: int, steps: int) -> float:
        return compute_empirical_mu(tokens, steps)

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
        """As `StreamedFlux.embed`; Klein has neither pooled prompt nor guidance embeddings."""
        model, here = self.model, {"device": self.device, "dtype": self.dtype}
        times = torch.full((latents.shape[0],), time * 1000, **here)
        return Batch(
            hidden=model.x_embedder(latents.to(**here)).cpu(),
            context=model.context_embedder(prompt.to(**here)).cpu(),
            temb=model.time_guidance_embed(times, None).cpu(),
            held_out=held_out,
        )

    def step(self, block: nn.Module, batch: Batch, positions: Positions) -> None:
        model, temb = self.model, batch.temb.to(self.device)
        ids = torch.cat([positions.text, positions.image]).to(self.device)
        if block in list(model.transformer_blocks):
            modulation = {
                "temb_mod_img": model.double_stream_modulation_img(temb),
                "temb_mod_txt": model.double_stream_modulation_txt(temb),
            }
        else:
            modulation = {
                "temb_mod": model.single_stream_modulation(temb),
                "split_hidden_states": True,
            }
        context, hidden = block(
            hidden_states=batch.hidden.to(self.device),
            encoder_hidden_states=batch.context.to(self.device),
            image_rotary_emb=model.pos_embed(ids),
            **modulation,
        )
        batch.context, batch.hidden = context.cpu(), hidden.cpu()


def encode_prompts(
    folder: Path,
    row: ModelRow,
    prompts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    on_progress: Callable[[float], None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(P, text tokens, 3 C) embeddings, on the CPU, and (P, 0): there is nothing pooled."""
    pipeline = Flux2KleinPipeline.from_pretrained(
        folder, transformer=None, vae=None, text_encoder=None, dtype=dtype, use_safetensors=True
    )
    parts = []
    for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
        with streamed_qwen(folder, device, dtype) as pipeline.text_encoder:
            embeddings, _ = pipeline.encode_prompt(
                list(prompts[start : start + _PROMPTS_AT_ONCE]),
                device=device,
                max_sequence_length=row.max_sequence_length,
            )
        parts.append(embeddings.cpu())
        on_progress(min(1.0, (start + _PROMPTS_AT_ONCE) / len(prompts)))
    return torch.cat(parts), torch.zeros(len(prompts), 0)


@contextmanager
def streamed_qwen(folder: Path, device: torch.device, dtype: torch.dtype) -> Iterator[nn.Module]:
    """The text encoder's layers that are used, with the weights of one at a time."""
    model = empty_qwen(folder)
    source = SourceWeights(folder, "text_encoder")
    source.check_fits(model)
    leave_out_unused_layers(model)
    source.fill(model.model.embed_tokens, "model.embed_tokens.", device, dtype)
    for number, layer in enumerate(model.model.layers):

        def fill(
            module: nn.Module, _inputs: object, prefix: str = f"model.layers.{number}."
        ) -> None:
            source.fill(module, prefix, device, dtype)

        def drop(module: nn.Module, _inputs: object, _output: object) -> None:
            module.to("meta")

        layer.register_forward_pre_hook(fill)
        layer.register_forward_hook(drop)
    yield model


def empty_qwen(folder: Path) -> nn.Module:
    """The text encoder on the meta device, by the configuration in `folder/text_encoder`.

    Raises ModelUnavailable, naming the file, for a configuration that is missing or damaged.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    label = f"{folder.name}/text_encoder/config.json"
    config = read_config(folder / "text_encoder" / "config.json", label)
    return empty_model(label, lambda: Qwen3ForCausalLM(Qwen3Config.from_dict(config)))
