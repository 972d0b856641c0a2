"""Training the transformer: flow matching, then straightening the sampler's few steps.

Flow matching: a noisy picture is x = (1 - s) picture + s noise, and the transformer learns the
velocity noise - picture. The loss counts more where the subject is, and s near 1 is drawn more
often, as the sampler's first step decides the layout. Cut-outs around the subject, at their true
positions, show it four times as often for the same work as whole pictures.

Straightening: the sampler's four steps go from s_i to s_(i+1). The teacher, the averaged weights at
the start of the phase, goes there in several small steps; the student learns the one velocity that
ends in the same place.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from tqdm import tqdm

from scripts.embedded.captions import random_caption
from scripts.embedded.latent_store import LatentStore
from scripts.embedded.text_encoders import TextEncoders
from scripts.embedded.training_state import load_state, save_state, step_generator
from scripts.embedded.transformer import TOKEN_PX, PlainAttention, build_transformer, position_ids

TEXT_LENGTHS = (28, 28, 28, 28, 32, 32, 48, 64)
LONG_TEXT_LENGTHS = (77, 128, 256, 512)
LONG_TEXT_SHARE = 0.02
WARM_UP_STEPS = 150
EMA_DECAY = 0.998


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFormat:
    """Pictures of one size as the transformer meets them."""

    store: LatentStore
    batch_size: int
    frame_scale: int = 1  # 2 spreads the positions over a frame twice as large
    weight: float = 1.0  # how often, against the other formats
    window: int = 0  # tokens each way of a cut-out around the subject; 0 is the whole picture


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowPhase:
    """A stretch of training with one learning rate curve; its name is that of its state file."""

    name: str
    steps: int
    formats: tuple[PictureFormat, ...]
    learning_rate: float
    subject_weight: float = 5.0  # of the loss where the subject is, against 1 elsewhere
    decay_share: float = 0.4  # of the steps, at the end, in which the learning rate falls to 0
    sampler_share: float = 0.0  # of the pictures, at the sampler's own noise levels
    straighten_share: float = 0.0  # of the steps
    sigmas: tuple[float, ...] = ()  # of the sampler, from 1 to 0
    teacher_steps: int = 4  # small steps for each of the sampler's
    save_every: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    tokens: torch.Tensor  # (B, seq, 64) the pictures
    weights: torch.Tensor  # (B, seq) of the loss, mean 1
    noise: torch.Tensor  # (B, seq, 64)
    ids: torch.Tensor  # (seq, 3)
    pooled: torch.Tensor  # (B, CLIP_WIDTH)
    text: torch.Tensor  # (B, text length, T5_WIDTH)


def train_phase(
    phase: FlowPhase,
    text: TextEncoders,
    *,
    initial: dict[str, torch.Tensor] | None,
    seed: int,
    state_folder: Path,
    device: str = "cpu",
) -> dict[str, torch.Tensor]:
    """Run `phase` from the weights `initial` (None: random) and return the averaged weights.

    Continues from `state_folder / f"{phase.name}.pt"` where that exists.
    """
    torch.manual_seed(seed)
    model = build_transformer().to(device)
    if initial is not None:
        model.load_state_dict(initial)
    model.set_attn_processor(PlainAttention())
    average = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    teacher = None
    if phase.straighten_share > 0:
        teacher = build_transformer().to(device)
        teacher.load_state_dict(average)
        teacher.set_attn_processor(PlainAttention())
        teacher.requires_grad_(False)
    optimisers = build_optimisers(model, phase.learning_rate)
    state_path = state_folder / f"{phase.name}.pt"
    start = 0
    state = load_state(state_path)
    if state is not None:
        model.load_state_dict(state["model"])
        average = {name: weight.to(device) for name, weight in state["average"].items()}
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        start = state["step"]
    progress = tqdm(range(start, phase.steps), initial=start, total=phase.steps, desc=phase.name)
    smooth_loss = 0.0
    for step in progress:
        generator = step_generator(seed, phase.name, step)
        rng = random.Random(f"{seed}/{phase.name}/{step}")
        factor = _learning_rate_factor(step, phase)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = phase.learning_rate * factor * group["relative_rate"]
        batch = draw_batch(phase, text, rng, generator, device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            if teacher is not None and rng.random() < phase.straighten_share:
                loss = _straightening_loss(model, teacher, batch, phase, rng)
            else:
                loss = _flow_loss(model, batch, phase, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        _update_average(average, model, step)
        smooth_loss += (loss.item() - smooth_loss) * max(0.02, 1 / (step - start + 1))
        if step % 10 == 0:
            progress.set_postfix(loss=f"{smooth_loss:.4f}")
        if (step + 1) % phase.save_every == 0 or step + 1 == phase.steps:
            save_state(
                state_path,
                {
                    "model": model.state_dict(),
                    "average": average,
                    "optimisers": [optimiser.state_dict() for optimiser in optimisers],
                    "step": step + 1,
                },
            )
    return average


def build_optimisers(model: FluxTransformer2DModel, rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the blocks and AdamW for everything else."""
    matrices, others = [], []
    for name, weight in model.named_parameters():
        inside = "transformer_blocks" in name and weight.ndim == 2
        (matrices if inside else others).append(weight)
    muon = torch.optim.Muon(
        matrices,
        lr=rate,
        weight_decay=0.02,
        adjust_lr_fn="match_rms_adamw",
        momentum=0.95,
    )
    adamw = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    muon.param_groups[0]["relative_rate"] = 1.0
    adamw.param_groups[0]["relative_rate"] = 0.7
    return [muon, adamw]


def draw_batch(
    phase: FlowPhase,
    text: TextEncoders,
    rng: random.Random,
    generator: torch.Generator,
    device: str,
) -> _Batch:
    """Draw pictures of one of the phase's formats, fresh captions and noise."""
    form = rng.choices(phase.formats, [form.weight for form in phase.formats])[0]
    length, batch_size = rng.choice(TEXT_LENGTHS), form.batch_size
    if rng.random() < LONG_TEXT_SHARE:
        length = rng.choice(LONG_TEXT_LENGTHS)
        batch_size = max(1, batch_size * 100 // (100 + length))
    store = form.store
    rows = torch.randint(len(store.scenes), (batch_size,), generator=generator)
    seen = torch.arange(store.masks.shape[1])
    if form.window > 0:
        rows, seen = _cut_out(form, batch_size, generator)
    captions = [random_caption(store.scenes[row], rng).text for row in rows.tolist()]
    with torch.no_grad():
        pooled, states = text.encode(captions, length)
    # a token that the subject only touches holds its outline, so it counts for more than its share
    covered = (3 * store.masks[rows][:, seen].float()).clamp(max=1)
    weights = 1 + (phase.subject_weight - 1) * covered
    tokens = store.tokens[rows][:, seen].float()
    noise = torch.randn(tokens.shape, generator=generator)
    return _Batch(
        tokens=tokens.to(device),
        weights=(weights / weights.mean()).to(device),
        noise=noise.to(device),
        ids=position_ids(store.size, form.frame_scale)[seen].to(device),
        pooled=pooled,
        text=states,
    )


def _cut_out(
    form: PictureFormat, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `count` rows of the store that share a layout, and the tokens around a subject.

    Positions are common to a batch, so its pictures must have their subjects in the same places.
    """
    store = form.store
    columns, lines = store.size[0] // TOKEN_PX, store.size[1] // TOKEN_PX
    first = int(torch.randint(len(store.scenes), (), generator=generator))
    layouts = [(scene.number, scene.place, scene.floats) for scene in store.scenes]
    alike = torch.tensor([row for row, each in enumerate(layouts) if each == layouts[first]])
    rows = alike[torch.randint(len(alike), (count,), generator=generator)]
    chances = store.masks[first].float() + 1e-6
    middle = int(torch.multinomial(chances, 1, generator=generator))
    jitter = torch.randint(-1, 2, (2,), generator=generator).tolist()
    top = middle // columns - form.window // 2 + jitter[0]
    left = middle % columns - form.window // 2 + jitter[1]
    top = min(max(top, 0), lines - form.window)
    left = min(max(left, 0), columns - form.window)
    grid = torch.arange(lines * columns).view(lines, columns)
    seen = grid[top : top + form.window, left : left + form.window]
    return rows, seen.flatten()


def draw_sigmas(count: int, generator: torch.Generator) -> torch.Tensor:
    """Return (count,) noise levels in 0..1: half logit-normal, a fifth even, the rest near 1."""
    kind = torch.rand(count, generator=generator)
    even = torch.rand(count, generator=generator)
    normal = torch.sigmoid(torch.randn(count, generator=generator) + 0.4)
    near_one = 1 - 0.2 * even.square()
    return torch.where(kind < 0.5, normal, torch.where(kind < 0.7, even, near_one))


def _learning_rate_factor(step: int, phase: FlowPhase) -> float:
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    left = 1 - step / phase.steps
    decay = min(1.0, left / phase.decay_share) if phase.decay_share > 0 else 1.0
    return warm_up * max(0.02, decay)


def _predict(
    model: FluxTransformer2DModel,
    noisy: torch.Tensor,
    sigmas: torch.Tensor,
    batch: _Batch,
) -> torch.Tensor:
    return model(
        hidden_states=noisy,
        timestep=sigmas,
        encoder_hidden_states=batch.text,
        pooled_projections=batch.pooled,
        img_ids=batch.ids,
        txt_ids=batch.ids.new_zeros(batch.text.shape[1], 3),
        return_dict=False,
    )[0].float()


def _noisy(batch: _Batch, sigmas: torch.Tensor) -> torch.Tensor:
    share = sigmas[:, None, None]
    return (1 - share) * batch.tokens + share * batch.noise


def _weighted(error: torch.Tensor, batch: _Batch) -> torch.Tensor:
    return (error.square().mean(dim=-1) * batch.weights).mean()


def _flow_loss(
    model: FluxTransformer2DModel, batch: _Batch, phase: FlowPhase, generator: torch.Generator
) -> torch.Tensor:
    count = len(batch.tokens)
    sigmas = draw_sigmas(count, generator)
    if phase.sampler_share > 0:
        levels = torch.tensor(phase.sigmas[:-1])
        own = levels[torch.randint(len(levels), (count,), generator=generator)]
        often = torch.rand(count, generator=generator) < phase.sampler_share
        sigmas = torch.where(often, own, sigmas)
    sigmas = sigmas.to(batch.tokens.device)
    velocity = _predict(model, _noisy(batch, sigmas), sigmas, batch)
    return _weighted(velocity - (batch.noise - batch.tokens), batch)


def _straightening_loss(
    model: FluxTransformer2DModel,
    teacher: FluxTransformer2DModel,
    batch: _Batch,
    phase: FlowPhase,
    rng: random.Random,
) -> torch.Tensor:
    step = rng.randrange(len(phase.sigmas) - 1)
    start, stop = phase.sigmas[step], phase.sigmas[step + 1]
    ones = torch.ones(len(batch.tokens), device=batch.tokens.device)
    first = _noisy(batch, ones * start)
    place = first
    stride = (start - stop) / phase.teacher_steps
    with torch.no_grad():
        for small in range(phase.teacher_steps):
            velocity = _predict(teacher, place, ones * (start - small * stride), batch)
            place = place - stride * velocity
    wanted = (first - place) / (start - stop)
    return _weighted(_predict(model, first, ones * start, batch) - wanted, batch)


def _update_average(
    average: dict[str, torch.Tensor], model: FluxTransformer2DModel, step: int
) -> None:
    decay = min(EMA_DECAY, (step + 1) / (step + 10))
    names = list(average)
    current = model.state_dict()
    torch._foreach_lerp_(
        [average[name] for name in names], [current[name] for name in names], 1 - decay
    )
