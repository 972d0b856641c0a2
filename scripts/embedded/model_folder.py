"""The trained parts as a folder that `FluxPipeline.from_pretrained` loads, replaced whole."""

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)

from scripts.embedded.text_encoders import TextEncoders
from scripts.embedded.transformer import build_transformer

PART_TYPES = {
    "vae": torch.bfloat16,
    "transformer": torch.bfloat16,
    "text_encoder": torch.float32,
    "text_encoder_2": torch.float32,
}
MAX_BYTES = 16_000_000
KEPT_FILES = ("README.md", "samples.png")  # written by hand or by other scripts


def save_model_folder(
    folder: Path,
    *,
    autoencoder: AutoencoderKL,
    text: TextEncoders,
    transformer: dict[str, torch.Tensor],
    shift: float,
) -> None:
    """Write all parts to `folder` in PART_TYPES, in place of what was there; keeps KEPT_FILES.

    `transformer` is a state dict and `shift` the scheduler's. The new folder is complete before the
    old one goes, so that a reader meets one or the other. Raises ValueError above MAX_BYTES.
    """
    network = build_transformer()
    network.load_state_dict(transformer)
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=False),
        vae=autoencoder,
        text_encoder=text.clip,
        tokenizer=text.clip_tokenizer,
        text_encoder_2=text.t5,
        tokenizer_2=text.t5_tokenizer,
        transformer=network,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        fresh, former = Path(work) / "fresh", Path(work) / "former"
        _for_shipping(pipeline).save_pretrained(fresh)
        for config in fresh.rglob("config.json"):
            values = json.loads(config.read_text())
            values.pop("_name_or_path", None)  # a folder of the machine that trained
            config.write_text(json.dumps(values, indent=2) + "\n")
        for name in KEPT_FILES:
            if (folder / name).exists():
                shutil.copy2(folder / name, fresh / name)
        size = folder_bytes(fresh)
        if size > MAX_BYTES:
            raise ValueError(f"the model takes {size} bytes, more than {MAX_BYTES}")
        if folder.exists():
            os.replace(folder, former)
        os.replace(fresh, folder)


def load_transformer_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the transformer's state dict of a model folder in float32, to train on from there."""
    network = FluxTransformer2DModel.from_pretrained(folder / "transformer", dtype=torch.float32)
    return network.state_dict()


def folder_bytes(folder: Path) -> int:
    """Return the summed size of all files under `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _for_shipping(pipeline: FluxPipeline) -> FluxPipeline:
    # copies, as the caller goes on with its own; the text encoders stay in float32 because
    # transformers loads a model in the type it was saved in and diffusers in float32, and
    # `from_pretrained(folder)` must give parts that fit together
    for name, dtype in PART_TYPES.items():
        setattr(pipeline, name, copy.deepcopy(getattr(pipeline, name)).to(dtype))
    return pipeline
