"""Pictures and captions as the transformer takes them, computed once.

Text encoders and autoencoder are loaded for this alone and let go before the transformer is loaded,
so that they never share a GPU's memory with it. What is kept lies in main memory: a caption of FLUX.1
takes 4 MB in bfloat16, a picture of 1024 x 1024 half a megabyte. Equal captions are kept once.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from diffusers import AutoencoderKL, FluxPipeline
from tqdm import tqdm

from scripts.lora.picture_folder import Example

TEXT_BATCH = 8
MAX_TEXT_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Pictures of one size and the numbers of their captions, without and with the trigger word."""

    size: tuple[int, int]  # width, height in pixels
    tokens: torch.Tensor  # (n, seq, 64) packed latents, shifted and scaled
    ids: torch.Tensor  # (seq, 3)
    captions: torch.Tensor  # (n,) int64
    triggered: torch.Tensor  # (n,) int64; the same where there is no trigger word
    seeds: tuple[int | None, ...]  # of pictures with a noise of their own

    def noise(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return (rows, seq, 64) noise: what the pipeline draws from a picture's seed, or any."""
        drawn = torch.randn(self.tokens[rows].shape, generator=generator)
        height, width = (2 * int(self.ids[:, axis].max() + 1) for axis in (1, 2))
        for place, row in enumerate(rows.tolist()):
            if (seed := self.seeds[row]) is not None:
                channels = drawn.shape[2] // 4
                own = torch.Generator().manual_seed(seed)
                latents = torch.randn((1, channels, height, width), generator=own)
                drawn[place] = FluxPipeline._pack_latents(latents, 1, channels, height, width)[0]
        return drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Everything that is learned from."""

    buckets: tuple[Bucket, ...]
    pooled: torch.Tensor  # (captions, CLIP width)
    text: torch.Tensor  # (captions, text tokens, T5 width)


def encode(
    model: Path | str,
    examples: Sequence[Example],
    *,
    trigger_word: str | None,
    device: str,
    dtype: torch.dtype,
    max_text_tokens: int | None,
) -> Encoded:
    """Encode `examples` with the parts of a FLUX.1 model folder (or an id of the Hub)."""
    pipeline = FluxPipeline.from_pretrained(model, transformer=None, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    length = min(pipeline.tokenizer_2.model_max_length, MAX_TEXT_TOKENS)
    length = length if max_text_tokens is None else min(length, max_text_tokens)
    plain = [example.caption for example in examples]
    called = [with_trigger(caption, trigger_word) for caption in plain]
    texts = list(dict.fromkeys(plain + called))
    number = {text: index for index, text in enumerate(texts)}
    with torch.no_grad():
        pooled, states = _encode_texts(pipeline, texts, length)
        buckets = tuple(
            _encode_bucket(
                pipeline.vae,
                size,
                [example for example in examples if example.size == size],
                lambda text: number[text],
                trigger_word,
            )
            for size in sorted({example.size for example in examples})
        )
    del pipeline
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
    return Encoded(buckets=buckets, pooled=pooled, text=states)


def with_trigger(caption: str, trigger_word: str | None) -> str:
    """Return the caption with the trigger word before it, unless it has it already."""
    if not trigger_word or trigger_word.lower() in caption.lower():
        return caption
    return f"{trigger_word}, {caption}"


def _encode_texts(
    pipeline: FluxPipeline, texts: list[str], length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    pooled, states = [], []
    for start in tqdm(range(0, len(texts), TEXT_BATCH), desc="encoding captions"):
        part = texts[start : start + TEXT_BATCH]
        embeddings, pools, _ = pipeline.encode_prompt(part, max_sequence_length=length)
        states.append(embeddings.cpu())
        pooled.append(pools.cpu())
    return torch.cat(pooled), torch.cat(states)


def _encode_bucket(
    autoencoder: AutoencoderKL,
    size: tuple[int, int],
    examples: list[Example],
    number: Callable[[str], int],
    trigger_word: str | None,
) -> Bucket:
    tokens = []
    for example in tqdm(examples, desc=f"encoding {size[0]}x{size[1]}"):
        pixels = torch.from_numpy(numpy.array(example.open())).permute(2, 0, 1)[None]
        pixels = (pixels.float() / 127.5 - 1).to(autoencoder.device, autoencoder.dtype)
        # the mean of the distribution; its spread is far below what the pictures differ by
        latents = autoencoder.encode(pixels).latent_dist.mode().float()
        latents = (latents - autoencoder.config.shift_factor) * autoencoder.config.scaling_factor
        _, channels, height, width = latents.shape
        tokens.append(FluxPipeline._pack_latents(latents, 1, channels, height, width).cpu())
    called = [with_trigger(example.caption, trigger_word) for example in examples]
    return Bucket(
        size=size,
        tokens=torch.cat(tokens),
        ids=FluxPipeline._prepare_latent_image_ids(
            1, height // 2, width // 2, torch.device("cpu"), torch.float32
        ),
        captions=torch.tensor([number(example.caption) for example in examples]),
        triggered=torch.tensor([number(text) for text in called]),
        seeds=tuple(example.seed for example in examples),
    )
