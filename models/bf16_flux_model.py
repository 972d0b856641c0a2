"""Loads a model with BF16 weights, by the pipeline of its family.

On a GPU weights and arithmetic are BF16. On a CPU the same BF16 weights are widened to FP32
(exactly) and computed in FP32: few CPUs multiply BF16 faster, and the results then do not depend
on which instructions one has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from config.catalog import ModelRow
from config.errors import ModelUnavailable
from models.families import family_of
from models.families.pipeline_model import place
from models.hub.repository import first_line
from models.hub.snapshot import snapshot
from models.precision import profile_of
from models.types import ImageModel, LoadOptions

PROFILE = profile_of("bf16")


def compute_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load(row: ModelRow, options: LoadOptions) -> ImageModel:
    """Load the row's pipeline onto `options.devices`: see `place` for who goes where.

    A family that is no diffusers pipeline loads itself. Raises ModelUnavailable, saying which files
    are missing and how to get them.
    """
    from diffusers.utils.logging import disable_progress_bar

    disable_progress_bar()
    family = family_of(row)
    if hasattr(family, "load"):
        return family.load(row, options, PROFILE)
    device = torch.device(options.devices[-1])
    pipeline = open_pipeline(
        row,
        options,
        family.MODEL.pipeline_class(row),
        compute_dtype(device),
        **family.MODEL.READ_WITH,
    )
    compute = "BF16 weights widened to FP32" if device.type == "cpu" else "BF16"
    family.MODEL.prepare(pipeline)
    offloads = must_offload(row, options.devices) if options.offload is None else options.offload
    if offloads:
        compute = "BF16, weights waiting in main memory"
    model = family.MODEL(
        pipeline if offloads else place(pipeline, options.devices),
        row,
        engine="diffusers",
        compute=compute,
        lora_mode=PROFILE.lora_mode,
        loras_dir=options.loras_dir,
    )
    if offloads:
        model.enable_offloading(device)
    return model


def open_pipeline(
    row: ModelRow, options: LoadOptions, pipeline_class: Any, dtype: torch.dtype, **parts: Any
) -> Any:
    """The row's pipeline on the CPU; `parts` are components that are there already.

    Raises ModelUnavailable, saying which files are missing and how to get them.
    """
    folder = row.folder if row.folder is not None else snapshot(row, options)
    try:
        return pipeline_class.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, **parts
        )
    except (OSError, ValueError) as error:
        raise ModelUnavailable(
            f"model {row.id}: {row.source} cannot be loaded: {_in_short(error, folder)}"
        ) from error


def must_offload(row: ModelRow, devices: Sequence[str]) -> bool:
    """Whether the model does not fit on the one GPU there is and its weights wait in main memory."""
    device = torch.device(devices[0])
    if device.type != "cuda" or len(devices) > 1:
        return False
    needed = row.memory_gib["bf16"] * 2**30
    return torch.cuda.get_device_properties(device).total_memory < needed


def _in_short(error: Exception, folder: Path) -> str:
    """What an error says, without the folders of this machine: clients read it."""
    words = first_line(error)
    return words.replace(str(folder), folder.name)
