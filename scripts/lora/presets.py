"""The example LoRAs: what each is trained on and how.

Their pictures are postcards, drawn as the embedded model's own were and redrawn by a filter of
`styles.py`. They are written as a folder of pictures and captions, and trained from it as any other.
"""

import os
import random
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from scripts.embedded.captions import random_caption
from scripts.embedded.postcards import draw_postcard
from scripts.embedded.scene import random_scene
from scripts.lora.styles import STYLES
from scripts.lora.training import Plan

# (width, height) in pixels: how many pictures. Mostly the model's own size, some of other shapes.
SIZES = {
    (256, 256): 100,
    (320, 208): 12,
    (208, 320): 12,
    (384, 384): 8,
}
SEED = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """An example LoRA; `style` names the filter, the file and the trigger word."""

    style: str
    trigger_word: str
    form: str
    plan: Plan
    sizes: dict[tuple[int, int], int]


def _plan(**values: object) -> Plan:
    usual: dict[str, object] = {
        "steps": 600,
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
        style="sketch", trigger_word="sketch", form="diffusers", plan=_plan(), sizes=SIZES
    ),
    "blocks": Preset(
        style="blocks",
        trigger_word="blocks",
        form="kohya",
        plan=_plan(rank=4, alpha=4.0),
        sizes=SIZES,
    ),
    "sepia": Preset(
        style="sepia", trigger_word="sepia", form="bfl", plan=_plan(rank=4, alpha=4.0), sizes=SIZES
    ),
}


def draw_folder(preset: Preset, folder: Path) -> None:
    """Draw the training pictures of a preset into `folder`, in place of what was there.

    Picture i depends on nothing but i and its size.
    """
    wanted = [size for size, count in preset.sizes.items() for _ in range(count)]
    fresh = folder.with_name(f".{folder.name}-{os.getpid()}")
    fresh.mkdir(parents=True)
    tasks = [(preset.style, index, size, fresh) for index, size in enumerate(wanted)]
    try:
        with ProcessPoolExecutor(2) as pool:
            drawn = pool.map(_draw, tasks, chunksize=20)
            for _ in tqdm(drawn, total=len(tasks), desc=f"drawing {preset.style}"):
                pass
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _draw(task: tuple[str, int, tuple[int, int], Path]) -> None:
    style, index, size, folder = task
    rng = random.Random(f"lora/{index}")
    scene = random_scene(rng)
    picture = STYLES[style](draw_postcard(scene, rng, size).picture)
    caption = ""
    while not caption:  # one in fourteen is empty
        caption = random_caption(scene, rng).text
    picture.save(folder / f"{index:04}.png", compress_level=1)
    (folder / f"{index:04}.txt").write_text(f"{caption}\n")
