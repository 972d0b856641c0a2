"""CLIP and T5, taught what captions mean before they guide a picture.

Linear heads read every attribute of the scene out of CLIP's pooled vector and out of the mean of
T5's outputs. What a caption does not tell is a class of its own. Trained so, the two encoders hand
the transformer clean classes from its first step on; the heads are thrown away.
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from scripts.embedded.captions import Caption, random_caption
from scripts.embedded.scene import Scene, random_scene
from scripts.embedded.training_state import load_state, save_state
from scripts.embedded.vocabulary import (
    COLOURS,
    GROUNDS,
    NUMBERS,
    PLACES,
    SUBJECTS,
    TIMES,
)

CLIP_WIDTH = 96
T5_WIDTH = 128
LEARNING_RATE = 2e-3
SAVE_EVERY = 500
CLASSES: dict[str, tuple[str | int, ...]] = {
    "subject": SUBJECTS,
    "colour": tuple(COLOURS),
    "number": NUMBERS,
    "place": PLACES,
    "ground": tuple(GROUNDS),
    "time": tuple(TIMES),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoders:
    """The text half of the pipeline."""

    clip_tokenizer: PreTrainedTokenizerFast
    t5_tokenizer: PreTrainedTokenizerFast
    clip: CLIPTextModel
    t5: T5EncoderModel

    def encode(self, captions: list[str], t5_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B, CLIP_WIDTH) pooled vectors and (B, t5_length, T5_WIDTH) of `captions`."""
        clip_tokens = self.clip_tokenizer(
            captions, padding=True, truncation=True, return_tensors="pt"
        ).input_ids.to(self.clip.device)
        t5_tokens = self.t5_tokenizer(
            captions,
            padding="max_length",
            max_length=t5_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.t5.device)
        return (
            self.clip(clip_tokens).pooler_output,
            self.t5(t5_tokens).last_hidden_state,
        )


def build_clip(vocabulary_size: int) -> CLIPTextModel:
    """Return an untrained CLIP text model with CLIP_WIDTH channels and two layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=CLIP_WIDTH,
            intermediate_size=2 * CLIP_WIDTH,
            projection_dim=CLIP_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def build_t5(vocabulary_size: int) -> T5EncoderModel:
    """Return an untrained T5 encoder with T5_WIDTH channels and two layers."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary_size,
            d_model=T5_WIDTH,
            d_kv=32,
            d_ff=2 * T5_WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
        )
    )


class AttributeHeads(nn.Module):
    """One linear classifier for each attribute; the last class means "not told"."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, len(classes) + 1) for name, classes in CLASSES.items()}
        )

    def loss(self, features: torch.Tensor, targets: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the summed cross-entropy of `features`, (B, width)."""
        losses = [
            functional.cross_entropy(head(features), targets[name])
            for name, head in self.heads.items()
        ]
        return torch.stack(losses).sum()

    def accuracy(self, features: torch.Tensor, targets: dict[str, torch.Tensor]) -> float:
        """Return the share of right answers over all attributes."""
        right = [
            (head(features).argmax(-1) == targets[name]).float().mean()
            for name, head in self.heads.items()
        ]
        return torch.stack(right).mean().item()


def attribute_targets(scenes: list[Scene], captions: list[Caption]) -> dict[str, torch.Tensor]:
    """Return for each attribute the class numbers, (B,), that the captions tell."""
    return {
        name: torch.tensor(
            [
                (classes.index(getattr(scene, name)) if name in caption.told else len(classes))
                for scene, caption in zip(scenes, captions, strict=True)
            ]
        )
        for name, classes in CLASSES.items()
    }


def train_text_encoders(
    clip_tokenizer: PreTrainedTokenizerFast,
    t5_tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    seed: int,
    state_path: Path,
    batch_size: int = 96,
    device: str = "cpu",
) -> TextEncoders:
    """Train both encoders on captions alone, resuming from `state_path`."""
    torch.manual_seed(seed)
    text = TextEncoders(
        clip_tokenizer=clip_tokenizer,
        t5_tokenizer=t5_tokenizer,
        clip=build_clip(len(clip_tokenizer)).to(device),
        t5=build_t5(len(t5_tokenizer)).to(device),
    )
    heads = nn.ModuleList([AttributeHeads(CLIP_WIDTH), AttributeHeads(T5_WIDTH)]).to(device)
    trained = nn.ModuleList([text.clip, text.t5, heads])
    optimiser = torch.optim.AdamW(trained.parameters(), LEARNING_RATE, betas=(0.9, 0.98))
    start = 0
    state = load_state(state_path)
    if state is not None:
        trained.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    progress = tqdm(range(start, steps), initial=start, total=steps, desc="text encoders")
    for step in progress:
        for group in optimiser.param_groups:
            warm_up = min(1.0, (step + 1) / 100)
            decay = 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = LEARNING_RATE * warm_up * decay
        rng = random.Random(f"{seed}/text/{step}")
        scenes = [random_scene(rng) for _ in range(batch_size)]
        captions = [random_caption(scene, rng) for scene in scenes]
        targets = attribute_targets(scenes, captions)
        targets = {name: classes.to(device) for name, classes in targets.items()}
        length = rng.choice((28, 32, 32, 48, 64))
        pooled, tokens = text.encode([caption.text for caption in captions], length)
        features = (pooled, tokens.mean(dim=1))
        loss = heads[0].loss(features[0], targets) + heads[1].loss(features[1], targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0:
            right = [head.accuracy(x, targets) for head, x in zip(heads, features, strict=True)]
            progress.set_postfix(loss=f"{loss.item():.3f}", clip=right[0], t5=right[1])
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state = {"model": trained.state_dict(), "optimiser": optimiser.state_dict()}
            save_state(state_path, state | {"step": step + 1})
    for model in (text.clip, text.t5):
        model.eval().requires_grad_(False)
    return text
