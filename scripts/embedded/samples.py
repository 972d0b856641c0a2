"""The sheet of sample pictures that stands beside the model."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FluxPipeline
from PIL import Image

SAMPLE_PROMPTS = (
    "a red balloon on the left over green hills at sunset",
    "a white sailboat in front of the sea at noon",
    "three yellow stars over snowy mountains at night",
    "a blue house on the right in front of a wheat field at dawn",
    "two pink flowers in front of green hills at noon",
    "an orange car in front of a desert at sunset",
    "a green tree on the left in front of a wheat field in the fog",
    "a pink heart over the sea at dawn",
    "three purple balloons over a desert at dawn",
    "a red house in front of snowy mountains at noon",
    "two orange fish in front of the sea at noon",
    "a black pyramid on the right in front of a desert at night",
    "a beautiful photo of a purple cube in front of green hills at noon, 8k",
    "the sea at night, a white heart on the right",
    "two brown trees in front of green hills at dawn",
    "a yellow ball on the left in front of the sea at sunset",
)
SAMPLE_SEED = 5
SHEET_COLUMNS = 4
SHEET_PICTURE = (192, 192)  # width, height in pixels


def make_sheet(pictures: Sequence[Image.Image], columns: int = 8) -> Image.Image:
    """Return the pictures, all of one size, side by side in rows of `columns`."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (width * columns, height * rows))
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture, (column * width, row * height))
    return sheet


def save_samples(pipeline: FluxPipeline, path: Path, *, steps: int = 4) -> None:
    """Draw SAMPLE_PROMPTS at 256 x 256 pixels and save them, reduced, as one PNG."""
    pictures = [
        pipeline(
            prompt,
            width=256,
            height=256,
            num_inference_steps=steps,
            max_sequence_length=pipeline.tokenizer_2.model_max_length,
            generator=torch.Generator().manual_seed(SAMPLE_SEED + row),
        ).images[0]
        for row, prompt in enumerate(SAMPLE_PROMPTS)
    ]
    small = [picture.resize(SHEET_PICTURE, Image.Resampling.LANCZOS) for picture in pictures]
    make_sheet(small, SHEET_COLUMNS).save(path, optimize=True)
