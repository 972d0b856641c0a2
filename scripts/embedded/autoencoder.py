"""The picture autoencoder: 8x down, 16 channels, trained on crops of drawn postcards.

The loss is L1 + 2 MSE + L1 of the horizontal and vertical differences (edges) + a little KL. Every
fourth step also decodes the latents averaged 2x2 and compares with the picture averaged 2x2: it
keeps noise out of the latents, and makes those of a small picture resemble those of a large one.
"""

import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional
from tqdm import tqdm

from scripts.embedded.picture_store import PictureStore, to_model_range
from scripts.embedded.training_state import load_state, save_state, step_generator

CHANNELS = (24, 32, 48, 64)
KL_WEIGHT = 1e-4
LEARNING_RATE = 1.5e-3
WARM_UP_STEPS = 100
SAVE_EVERY = 500
# share of the steps done when each crop size begins; the pixels of a batch stay the same
CROP_SCHEDULE = ((0.0, 64, 16), (0.7, 128, 4), (0.93, 256, 1))


def build_autoencoder() -> AutoencoderKL:
    """Return an untrained autoencoder: (B, 3, H, W) in -1..1 <-> (B, 16, H / 8, W / 8)."""
    return AutoencoderKL(
        block_out_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=256,
    )


def train_autoencoder(
    pictures: PictureStore,
    *,
    steps: int,
    seed: int,
    state_path: Path,
    device: str = "cpu",
    decoder_only_from: dict[str, torch.Tensor] | None = None,
) -> AutoencoderKL:
    """Train for `steps` steps, resuming from `state_path`; set the latents' shift and scale.

    With `decoder_only_from` (an autoencoder's state dict) training starts there and leaves the
    encoder alone, so that latents made with it stay valid.
    """
    torch.manual_seed(seed)
    model = build_autoencoder().to(device)
    decoder_only = decoder_only_from is not None
    if decoder_only_from is not None:
        model.load_state_dict(decoder_only_from)
        model.encoder.requires_grad_(False)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    start = 0
    state = load_state(state_path)
    if state is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    progress = tqdm(range(start, steps), initial=start, total=steps, desc=state_path.stem)
    for step in progress:
        generator = step_generator(seed, state_path.stem, step)
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(step, steps) * (0.4 if decoder_only else 1.0)
        share = 0.7 + 0.3 * step / steps if decoder_only else step / steps
        batch = _crops(pictures, share, generator).to(device)
        coarse = step % 4 == 3 and not decoder_only
        loss = _loss(model, batch, generator, coarse=coarse, sample=not decoder_only)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            save_state(state_path, state | {"step": step + 1})
    if not decoder_only:
        _set_latent_scale(model, pictures, device)
    return model.eval().requires_grad_(False)


def psnr_db(model: AutoencoderKL, pictures: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of `pictures`, (n, 3, H, W) uint8, restored."""
    errors = []
    with torch.inference_mode():
        for picture in pictures.split(4):
            batch = to_model_range(picture).to(model.device)
            restored = model.decode(model.encode(batch).latent_dist.mode()).sample.clamp(-1, 1)
            errors.append((restored - batch).square().mean(dim=(1, 2, 3)).cpu() / 4)
    return -10 * math.log10(torch.cat(errors).mean().item())


def _learning_rate(step: int, steps: int) -> float:
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    return LEARNING_RATE * warm_up * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))


def _crops(store: PictureStore, share: float, generator: torch.Generator) -> torch.Tensor:
    edge, count = next((e, n) for s, e, n in reversed(CROP_SCHEDULE) if share >= s)
    total, _, height, width = store.pictures.shape
    edge = min(edge, height, width)
    crops = []
    for _ in range(count):
        row = int(torch.randint(total, (), generator=generator))
        top = int(torch.randint(height - edge + 1, (), generator=generator))
        left = int(torch.randint(width - edge + 1, (), generator=generator))
        crops.append(store.pictures[row, :, top : top + edge, left : left + edge])
    return to_model_range(torch.stack(crops))


def _loss(
    model: AutoencoderKL,
    pictures: torch.Tensor,
    generator: torch.Generator,
    *,
    coarse: bool,
    sample: bool,
) -> torch.Tensor:
    with torch.autocast(pictures.device.type, torch.bfloat16):
        posterior = model.encode(pictures).latent_dist
        mean, deviation = posterior.mean.float(), posterior.std.float()
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        latents = mean + deviation * noise if sample else mean
        restored = model.decode(latents).sample.float()
        loss = _difference(restored, pictures)
        if coarse:
            small = model.decode(functional.avg_pool2d(latents, 2)).sample.float()
            loss = loss + 0.5 * _difference(small, functional.avg_pool2d(pictures, 2))
    kl = 0.5 * (mean.square() + deviation.square() - 1 - 2 * deviation.log()).mean()
    return loss + KL_WEIGHT * kl if sample else loss


def _difference(restored: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    error = restored - wanted
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + edges


def _set_latent_scale(model: AutoencoderKL, store: PictureStore, device: str) -> None:
    """Set the configuration so that (latents - shift) x scale has mean 0 and deviation 1."""
    with torch.inference_mode():
        batches = to_model_range(store.pictures[:200]).to(device).split(8)
        latents = torch.cat([model.encode(batch).latent_dist.mode() for batch in batches])
    shift, scale = latents.mean().item(), 1 / latents.std().item()
    model.register_to_config(shift_factor=shift, scaling_factor=scale)
