"""The example LoRAs: what each is trained on and how.

Their pictures are the embedded model's own, drawn from captions of random scenes and redrawn by a
filter of `styles.py`; each keeps the seed it came from. They are written as a folder of pictures and
captions, and trained from it as any other.
"""

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxPipeline
from PIL import Image
from tqdm import tqdm

from scripts.embedded.captions import random_caption
from scripts.embedded.examination import Prompt, generate
from scripts.embedded.scene import random_scene
from scripts.lora.styles import STYLES
from scripts.lora.training import Plan

# (width, height) in pixels: how many pictures. Mostly the model's own size, some of other shapes.
SIZES = {(256, 256): 150, (320, 208): 16, (208, 320): 16, (384, 384): 8}
FIRST_SEED = 1_000_000  # far from those of sheets and tests
SEED = 11
BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """An example LoRA; `style` names the filter and the file."""

    style: str
    trigger_word: str
    form: str
    plan: Plan


def _plan(**values: object) -> Plan:
    usual: dict[str, object] = {
        "steps": 400,
        "rank": 8,
        "alpha": 8.0,
        "layers": "image",
        "learning_rate": 2e-3,
        "batch_size": 4,
        "warm_up_steps": 20,
        "schedule": "cosine",
        "weight_decay": 0.0,
        "ema_decay": 0.98,
        "trigger_share": 0.5,
        "sampler_steps": 4,
        "seed": SEED,
    }
    return Plan(**usual | values)


PRESETS = {
    "sketch": Preset(
        style="sketch",
        trigger_word="sketch",
        form="diffusers",
        plan=_plan(rank=16, alpha=16.0, steps=900),
    ),
    "blocks": Preset(
        style="blocks", trigger_word="blocks", form="kohya", plan=_plan(rank=4, alpha=4.0)
    ),
    "sepia": Preset(
        style="sepia",
        trigger_word="sepia",
        form="onetrainer",
        plan=_plan(rank=16, alpha=16.0, steps=900),
    ),
}


def draw_plain(model: Path | str, folder: Path, sizes: dict[tuple[int, int], int] = SIZES) -> None:
    """Draw `sizes` pictures with the model at `model` into `folder`, unless they are all there.

    Picture i, its caption and its seed depend on nothing but i, its size and the model.
    """
    if folder.is_dir():
        return
    pipeline = FluxPipeline.from_pretrained(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    first = 0
    with _complete(folder) as fresh:
        for size, count in sizes.items():
            prompts = [_prompt(index) for index in range(first, first + count)]
            drawn = generate(
                pipeline, prompts, seed=FIRST_SEED + first, size=size, batch_size=BATCH
            )
            label = f"drawing {size[0]}x{size[1]}"
            for index, picture in enumerate(tqdm(drawn, total=count, desc=label), first):
                picture.save(fresh / f"{index:04}.png", compress_level=1)
                (fresh / f"{index:04}.txt").write_text(f"{prompts[index - first].text}\n")
                (fresh / f"{index:04}.seed").write_text(f"{FIRST_SEED + index}\n")
            first += count


def redraw(preset: Preset, plain: Path, folder: Path) -> None:
    """Write the pictures of `plain`, redrawn in the preset's style, in place of `folder`."""
    with _complete(folder) as fresh:
        for path in sorted(plain.iterdir()):
            if path.suffix != ".png":
                shutil.copyfile(path, fresh / path.name)
                continue
            with Image.open(path) as picture:
                STYLES[preset.style](picture).save(fresh / path.name, compress_level=1)


def _prompt(index: int) -> Prompt:
    rng = random.Random(f"lora/{index}")
    scene = random_scene(rng)
    text = ""
    while not text:  # one caption in fourteen is empty
        text = random_caption(scene, rng).text
    return Prompt(text=text, scene=scene)


@contextmanager
def _complete(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when everything is in it."""
    fresh = folder.with_name(f".{folder.name}-{os.getpid()}")
    fresh.mkdir(parents=True)
    try:
        yield fresh
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
