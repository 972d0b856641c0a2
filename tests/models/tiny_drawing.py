"""What the tests of families on tiny models share: a model by its row, a request, pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from config.catalog import ModelRow
from models import bf16_flux_model
from models.types import Drawing, GenerationRequest, LoadOptions, OutputFormat
from tests.models.flux1_drawing import draw
from tests.tiny_models import tiny_model


@dataclass(frozen=True, slots=True)
class Tiny:
    """A tiny model as the BF16 service loads it, and its folder for diffusers' own pipelines."""

    row: ModelRow
    folder: Path
    model: Any

    def drawing(
        self,
        *,
        seed: int = 3,
        image: Image.Image | None = None,
        mask: Image.Image | None = None,
        references: tuple[Image.Image, ...] = (),
        **changes: Any,
    ) -> Drawing:
        """One of the row's defaults, but for `changes` of the request."""
        values = {
            "prompt": "a cat on a mat",
            "negative_prompt": None,
            "model": self.row.id,
            "backend": self.row.backend,
            "width": self.row.default_width,
            "height": self.row.default_height,
            "num_inference_steps": self.row.num_inference_steps,
            "guidance_scale": self.row.guidance_scale,
            "true_cfg_scale": self.row.true_cfg_scale,
            "seed": seed,
            "num_images": 1,
            "output_format": OutputFormat.PNG,
            "output_quality": 95,
            "tags": (),
            "image": None if image is None else "image",
            "mask": None if mask is None else "mask",
            "strength": None if image is None else 1.0,
            "reference_images": tuple(str(index) for index in range(len(references))),
        }
        request = GenerationRequest(**values | changes)
        return Drawing(
            request=request, seed=request.seed, image=image, mask=mask, references=references
        )

    def draw(self, **changes: Any) -> Image.Image:
        [picture] = draw(self.model, self.drawing(**changes))
        return picture

    def pipeline(self, kind: Any) -> Any:
        """diffusers' own over the same weights, computed as the service computes on a CPU."""
        pipeline = kind.from_pretrained(self.folder, dtype=torch.float32, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load_tiny(row_id: str, folder: Path) -> Tiny:
    row = tiny_model(row_id, folder)
    options = LoadOptions(devices=("cpu",), models_dir=folder, allow_download=False)
    return Tiny(row, folder, bf16_flux_model.load(row, options))


def gradient(width: int = 96, height: int = 64, *, turned: bool = False) -> Image.Image:
    """A colourful picture."""
    across = Image.linear_gradient("L").rotate(90).resize((width, height))
    down = Image.linear_gradient("L").resize((width, height))
    bands = (down, across, Image.radial_gradient("L").resize((width, height)))
    return Image.merge("RGB", bands[::-1] if turned else bands)


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)
