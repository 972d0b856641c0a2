"""Training a LoRA: flow matching, with only the factors learning.

A noisy picture is x = (1 - s) picture + s noise, and the transformer learns the velocity
noise - picture. The noise level s is logit-normal and passed through the scheduler's own shift, as in
diffusers' DreamBooth script for FLUX. Models that draw in few steps visit few noise levels: with
`sampler_steps` half of the pictures are taken there.

Pictures that the model drew itself come with their noise (`picture_folder.py`); others get any.

Every step draws from a generator of its own number, so a resumed run draws what an uninterrupted one
would have drawn, and ends with the same bytes.
Source: diffusers `examples/dreambooth/train_dreambooth_lora_flux.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.training_utils import compute_density_for_timestep_sampling
from tqdm import tqdm

from scripts.embedded.training_state import load_state, save_state, step_generator
from scripts.lora import adapter
from scripts.lora.encoded import Bucket, Encoded

SAMPLER_SHARE = 0.5
MAX_GRADIENT_NORM = 1.0
LOSS_MEMORY = 0.02  # of the shown loss, a step's share


class ResumeError(ValueError):
    """A state that was saved by a run of other settings."""


class TrainingFailed(ValueError):
    """A loss that is no number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides what a run ends with, beside the model and the pictures."""

    steps: int
    rank: int
    alpha: float
    layers: str  # a group of `adapter.LAYER_GROUPS` or a regular expression
    learning_rate: float
    batch_size: int = 1
    accumulation: int = 1  # batches to one step of the optimiser
    warm_up_steps: int = 0
    schedule: str = "constant"  # or "cosine": falls to 0 at the end
    weight_decay: float = 1e-4
    ema_decay: float = 0.0  # 0 keeps no average
    trigger_share: float = 1.0  # of the captions, that get the trigger word
    guidance_scale: float = 3.5  # told to models with a guidance embedding
    sampler_steps: int | None = None
    seed: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        factor = min(1.0, (step + 1) / max(1, self.warm_up_steps))
        if self.schedule == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * factor


def train(
    transformer: FluxTransformer2DModel,
    scheduler: FlowMatchEulerDiscreteScheduler,
    encoded: Encoded,
    plan: Plan,
    *,
    state_path: Path,
    data: str,
    save_every: int = 100,
    checkpointing: bool = False,
    stop_after: int | None = None,
) -> tuple[adapter.Adapter, int]:
    """Train until `plan.steps` and return the LoRA and the steps it has.

    Goes on from `state_path` where that exists, and raises ResumeError if it was saved for another
    plan or other pictures (`data` is their fingerprint). `stop_after` ends the run early, with its
    state saved.
    """
    run = {"plan": asdict(plan), "data": data, "model": _identity(transformer)}
    state = load_state(state_path)
    _check_same_run(state, run, state_path)
    transformer.requires_grad_(False)
    layers = adapter.find_layers(transformer, plan.layers)
    outputs = adapter.linear_layers(transformer)
    torch.manual_seed(plan.seed)
    weights = adapter.add(transformer, layers, rank=plan.rank, alpha=plan.alpha)
    transformer.train()
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    optimiser = torch.optim.AdamW(
        weights.values(), lr=plan.learning_rate, weight_decay=plan.weight_decay
    )
    average = {name: weight.detach().clone() for name, weight in weights.items()}
    start = 0
    if state is not None:
        _restore(weights, state["weights"])
        _restore(average, state["average"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    levels = sampler_levels(scheduler, plan.sampler_steps)
    stop = plan.steps if stop_after is None else min(plan.steps, stop_after)
    progress = tqdm(range(start, stop), initial=start, total=plan.steps, desc="training")
    smooth = None
    for step in progress:
        for group in optimiser.param_groups:
            group["lr"] = plan.rate(step)
        loss = _gradients(transformer, scheduler, encoded, plan, levels, step)
        torch.nn.utils.clip_grad_norm_(weights.values(), MAX_GRADIENT_NORM)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        _move_average(average, weights, plan.ema_decay, step)
        smooth = loss if smooth is None else smooth + (loss - smooth) * LOSS_MEMORY
        progress.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if not math.isfinite(loss):
            raise TrainingFailed(
                f"the loss is {loss} at step {step}; lower --learning-rate, or use --dtype float32"
            )
        if (step + 1) % save_every == 0 or step + 1 == stop:
            save_state(
                state_path,
                run
                | {
                    "weights": {name: w.detach().cpu() for name, w in weights.items()},
                    "average": {name: w.cpu() for name, w in average.items()},
                    "optimiser": optimiser.state_dict(),
                    "step": step + 1,
                },
            )
    last = average if plan.ema_decay else weights
    factors = adapter.collect(
        {name: weight.detach().float().cpu() for name, weight in last.items()}
    )
    trained = adapter.Adapter(factors=factors, outputs=outputs, rank=plan.rank, alpha=plan.alpha)
    return trained, max(start, stop)


def sampler_levels(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int | None
) -> torch.Tensor | None:
    """Return the noise levels that a sampler of so many steps stops at, without 0."""
    if steps is None:
        return None
    if scheduler.config.use_dynamic_shifting:
        raise ValueError(
            "--sampler-steps is for models that draw in few steps; this one's scheduler shifts its "
            "noise levels by the size of the picture"
        )
    own = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    own.set_timesteps(sigmas=[1 - step / steps for step in range(steps)])
    return own.sigmas[:-1].cpu()


def draw_sigmas(
    count: int,
    scheduler: FlowMatchEulerDiscreteScheduler,
    levels: torch.Tensor | None,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return (count,) noise levels between 0 and 1."""
    density = compute_density_for_timestep_sampling(
        "logit_normal", count, logit_mean=0.0, logit_std=1.0, generator=generator
    )
    steps = scheduler.config.num_train_timesteps
    sigmas = scheduler.sigmas.cpu()[(density * steps).long().clamp(max=steps - 1)].float()
    if levels is None:
        return sigmas
    own = levels[torch.randint(len(levels), (count,), generator=generator)]
    often = torch.rand(count, generator=generator) < SAMPLER_SHARE
    return torch.where(often, own, sigmas)


def _gradients(
    transformer: FluxTransformer2DModel,
    scheduler: FlowMatchEulerDiscreteScheduler,
    encoded: Encoded,
    plan: Plan,
    levels: torch.Tensor | None,
    step: int,
) -> float:
    """Add one step's gradients and return its loss."""
    generator = step_generator(plan.seed, "lora", step)
    sizes = torch.tensor([float(len(bucket.tokens)) for bucket in encoded.buckets])
    total = 0.0
    for _ in range(plan.accumulation):
        bucket = encoded.buckets[int(torch.multinomial(sizes, 1, generator=generator))]
        loss = _loss(transformer, scheduler, encoded, bucket, plan, levels, generator)
        (loss / plan.accumulation).backward()
        total += loss.item() / plan.accumulation
    return total


def _loss(
    transformer: FluxTransformer2DModel,
    scheduler: FlowMatchEulerDiscreteScheduler,
    encoded: Encoded,
    bucket: Bucket,
    plan: Plan,
    levels: torch.Tensor | None,
    generator: torch.Generator,
) -> torch.Tensor:
    device, dtype = transformer.device, transformer.dtype
    count = min(plan.batch_size, len(bucket.tokens))
    rows = torch.randperm(len(bucket.tokens), generator=generator)[:count]
    called = torch.rand(count, generator=generator) < plan.trigger_share
    captions = torch.where(called, bucket.triggered[rows], bucket.captions[rows])
    sigmas = draw_sigmas(count, scheduler, levels, generator)
    pictures = bucket.tokens[rows]  # (B, seq, 64)
    noise = bucket.noise(rows, generator)
    share = sigmas[:, None, None]
    noisy = (1 - share) * pictures + share * noise
    text = encoded.text[captions].to(device, dtype)
    guidance = None
    if transformer.config.guidance_embeds:
        guidance = torch.full((count,), plan.guidance_scale, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        velocity = transformer(
            hidden_states=noisy.to(device, dtype),
            timestep=sigmas.to(device),
            guidance=guidance,
            encoder_hidden_states=text,
            pooled_projections=encoded.pooled[captions].to(device, dtype),
            img_ids=bucket.ids.to(device),
            txt_ids=torch.zeros(text.shape[1], 3, device=device),
            return_dict=False,
        )[0]
    return (velocity.float() - (noise - pictures).to(device)).square().mean()


def _move_average(
    average: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    decay: float,
    step: int,
) -> None:
    share = min(decay, (step + 1) / (step + 10))  # short at first, when everything still moves
    with torch.no_grad():
        torch._foreach_lerp_(
            list(average.values()), [weights[name].detach() for name in average], 1 - share
        )


def _restore(target: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, weight in target.items():
            weight.copy_(saved[name])


def _check_same_run(state: dict[str, Any] | None, run: dict[str, Any], path: Path) -> None:
    if state is None:
        return
    differs = [key for key in run["plan"] if state["plan"].get(key) != run["plan"][key]]
    differs += [key for key in ("data", "model") if state[key] != run[key]]
    if differs:
        raise ResumeError(
            f"{path} was saved by a run that differs in {', '.join(differs)}; go on with the same "
            "settings, or begin anew with --restart or another --work"
        )


def _identity(transformer: FluxTransformer2DModel) -> dict[str, Any]:
    config = transformer.config
    return {
        "layers": [config.num_layers, config.num_single_layers],
        "width": config.num_attention_heads * config.attention_head_dim,
        "guidance_embeds": bool(config.guidance_embeds),
        "dtype": str(transformer.dtype),
    }
