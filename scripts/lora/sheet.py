"""The sheet of pictures beside the example LoRAs: each alone, together, and at several weights."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch
from diffusers import FluxPipeline
from PIL import Image, ImageDraw, ImageFont

from scripts.embedded.examination import Prompt, generate
from scripts.embedded.scene import Scene
from scripts.lora.application import applied

PROMPTS = (
    "a red balloon on the left over green hills at noon",
    "a white sailboat in front of the sea at sunset",
    "a blue house on the right in front of a wheat field at dawn",
    "two pink flowers in front of green hills at noon",
    "a green tree in front of snowy mountains at night",
    "an orange car in front of a desert at noon",
)
SEED = 21
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
TOGETHER = {1: 1.0, 2: 0.7, 3: 0.6}  # weight of each, by how many act at once
PLAIN = "no LoRA"
PICTURE_PX = 144
LABEL_PX = 92
HEADING_PX = 26
GAP_PX = 2
INK, PAPER = (40, 40, 44), (255, 255, 255)
_ANY_SCENE = Scene(
    subject="ball", colour="red", number=1, place="middle", ground="hills", time="noon"
)


def save_sheet(
    pipeline: FluxPipeline, loras: Sequence[Path], path: Path, *, steps: int = 4
) -> None:
    """Draw everything with the embedded model and write one PNG."""
    rows = [(PLAIN, _draw(pipeline, {}, PROMPTS, SEED, steps))]
    for count in range(1, len(loras) + 1):
        weight = TOGETHER[count]
        for chosen in combinations(loras, count):
            label = " +\n".join(lora.stem for lora in chosen)
            label += f"\n{weight:g} each" if count > 1 else ""
            rows.append(
                (label, _draw(pipeline, dict.fromkeys(chosen, weight), PROMPTS, SEED, steps))
            )
    weighed = [
        (lora.stem, _at_weights(pipeline, lora, index, steps)) for index, lora in enumerate(loras)
    ]
    headings = [f"weight {weight:g}" for weight in WEIGHTS]
    top, bottom = _grid(rows, None), _grid(weighed, headings)
    sheet = Image.new("RGB", (top.width, top.height + bottom.height), PAPER)
    sheet.paste(top, (0, 0))
    sheet.paste(bottom, (0, top.height))
    _few_colours(sheet).save(path, optimize=True)


def _few_colours(sheet: Image.Image) -> Image.Image:
    """The sheet in 256 colours, dithered: half of the bytes."""
    palette = sheet.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=3)
    return sheet.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def _at_weights(pipeline: FluxPipeline, lora: Path, index: int, steps: int) -> list[Image.Image]:
    prompt = PROMPTS[index % len(PROMPTS)]
    return [_draw(pipeline, {lora: weight}, [prompt], SEED + index, steps)[0] for weight in WEIGHTS]


def _draw(
    pipeline: FluxPipeline, loras: dict[Path, float], prompts: Sequence[str], seed: int, steps: int
) -> list[Image.Image]:
    asked = [Prompt(text=text, scene=_ANY_SCENE) for text in prompts]
    with applied(pipeline, loras) if loras else torch.no_grad():
        return list(generate(pipeline, asked, seed=seed, steps=steps))


def _grid(
    rows: Sequence[tuple[str, list[Image.Image]]], headings: Sequence[str] | None
) -> Image.Image:
    step = PICTURE_PX + GAP_PX
    top = HEADING_PX if headings else 0
    width = LABEL_PX + step * max(len(pictures) for _, pictures in rows)
    grid = Image.new("RGB", (width, top + step * len(rows)), PAPER)
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(15)
    for column, heading in enumerate(headings or ()):
        middle = LABEL_PX + column * step + PICTURE_PX // 2
        draw.text((middle, top // 2), heading, INK, font, anchor="mm")
    for row, (label, pictures) in enumerate(rows):
        y = top + row * step
        draw.multiline_text(
            (LABEL_PX - 10, y + PICTURE_PX // 2), label, INK, font, anchor="rm", align="right", spacing=4,
        )  # fmt: skip
        for column, picture in enumerate(pictures):
            small = picture.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
            grid.paste(small, (LABEL_PX + column * step, y))
    return grid
