"""Encoded postcards: latents of many pictures of one size, on disk and in memory."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from scripts.embedded.picture_store import draw_pictures, to_model_range
from scripts.embedded.scene import Scene
from scripts.embedded.training_state import load_state, save_state
from scripts.embedded.transformer import pack_latents

ENCODED_PIXELS = 2**19  # pixels of a batch through the encoder
CHUNK_PICTURES = 2000  # pictures drawn and held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentStore:
    """Packed latents, shifted and scaled, with the scenes they show."""

    size: tuple[int, int]  # width, height in pixels
    scenes: list[Scene]
    tokens: torch.Tensor  # (n, seq, 64) float16
    masks: torch.Tensor  # (n, seq) float16, share of the token that the subject covers


def encode_pictures(
    autoencoder: AutoencoderKL,
    *,
    count: int,
    seed: int,
    size: tuple[int, int],
    path: Path,
) -> LatentStore:
    """Draw and encode `count` scenes at `size` (width, height); keep them at `path`."""
    state = load_state(path)
    if state is None:
        state = _encode(autoencoder, count, seed, size)
        save_state(path, state)
    return LatentStore(
        size=size,
        scenes=[Scene(**facts) for facts in state["scenes"]],
        tokens=state["tokens"],
        masks=state["masks"],
    )


def _encode(
    autoencoder: AutoencoderKL, count: int, seed: int, size: tuple[int, int]
) -> dict[str, object]:
    config = autoencoder.config
    batch_size = max(1, ENCODED_PIXELS // (size[0] * size[1]))
    scenes, tokens, masks = [], [], []
    for start in range(0, count, CHUNK_PICTURES):
        store = draw_pictures(
            min(CHUNK_PICTURES, count - start), seed + start, size, quiet=start > 0
        )
        label = f"encoding {size[0]}x{size[1]}, {start} of {count}"
        for batch in tqdm(store.pictures.split(batch_size), desc=label):
            with torch.inference_mode(), torch.autocast(autoencoder.device.type, torch.bfloat16):
                pictures = to_model_range(batch).to(autoencoder.device)
                latents = autoencoder.encode(pictures).latent_dist.mode().float()
            latents = (latents - config.shift_factor) * config.scaling_factor
            tokens.append(pack_latents(latents).half().cpu())
        scenes += [asdict(scene) for scene in store.scenes]
        masks.append((store.masks.flatten(1).float() / 255).half())
    return {"scenes": scenes, "tokens": torch.cat(tokens), "masks": torch.cat(masks)}
