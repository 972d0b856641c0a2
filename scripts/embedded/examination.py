"""Examining a model: draw what captions ask for and judge every picture."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from diffusers import FluxPipeline
from PIL import Image

from scripts.embedded.captions import plain_caption, random_caption
from scripts.embedded.judge import ATTRIBUTES, judge
from scripts.embedded.postcards import draw_postcard
from scripts.embedded.scene import Scene, random_scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt and what it asks for."""

    text: str
    scene: Scene
    told: frozenset[str] = frozenset(ATTRIBUTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How often each attribute was right, of how many it was asked for."""

    right: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: dict[str, bool]) -> None:
        """Count one picture's verdict."""
        self.right.update(name for name, good in verdict.items() if good)
        self.asked.update(list(verdict))

    def share(self, attribute: str) -> float:
        """Return the share of right answers, 0 to 1; 0 where it was never asked for."""
        return self.right[attribute] / max(1, self.asked[attribute])

    def table(self) -> str:
        """Return the score as a Markdown table."""
        lines = ["| attribute | right | of | % |", "|---|---|---|---|"]
        for name in ATTRIBUTES:
            percent = 100 * self.share(name)
            lines.append(f"| {name} | {self.right[name]} | {self.asked[name]} | {percent:.1f} |")
        return "\n".join(lines)


def draw_prompts(count: int, seed: int, *, varied: bool = False) -> list[Prompt]:
    """Return `count` prompts on random scenes: canonical ones, or `varied` in all their forms."""
    rng = random.Random(f"prompts/{seed}")
    prompts = []
    while len(prompts) < count:
        scene = random_scene(rng)
        if not varied:
            prompts.append(Prompt(text=plain_caption(scene), scene=scene))
            continue
        caption = random_caption(scene, rng)
        if caption.text:
            prompts.append(Prompt(text=caption.text, scene=scene, told=caption.told))
    return prompts


def generate(
    pipeline: FluxPipeline,
    prompts: list[Prompt],
    *,
    seed: int,
    steps: int = 4,
    size: tuple[int, int] = (256, 256),
    batch_size: int = 8,
    **options: object,
) -> Iterator[Image.Image]:
    """Draw every prompt with the pipeline; picture i comes from the seed `seed + i`."""
    options.setdefault("max_sequence_length", pipeline.tokenizer_2.model_max_length)
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        generators = [torch.Generator().manual_seed(seed + start + row) for row in range(len(part))]
        yield from pipeline(
            [prompt.text for prompt in part],
            width=size[0],
            height=size[1],
            num_inference_steps=steps,
            generator=generators,
            **options,
        ).images


def examine(prompts: list[Prompt], pictures: Iterable[Image.Image]) -> Score:
    """Judge the picture of every prompt by what the prompt tells."""
    score = Score()
    for prompt, picture in zip(prompts, pictures, strict=True):
        verdict = judge(picture, prompt.scene)
        score.add({name: good for name, good in verdict.items() if name in prompt.told})
    return score


def examine_judge(count: int, seed: int, size: tuple[int, int] = (256, 256)) -> Score:
    """Score drawn pictures, which are right by construction: what is missing is judge's error."""
    rng = random.Random(f"judge/{seed}")
    prompts = [Prompt(text="", scene=random_scene(rng)) for _ in range(count)]
    return examine(prompts, (draw_postcard(p.scene, rng, size).picture for p in prompts))
