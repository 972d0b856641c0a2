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
from models.families.pipeline_model import device_of, place
from models.hub.repository import first_line
from models.hub.snapshot import snapshot
from models.parts import Keys, keys_of
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
    dtype = compute_dtype(device)
    offloads = must_offload(row, options.devices) if options.offload is None else options.offload
    folder = row.folder if row.folder is not None else snapshot(row, options)
    keys: Keys = {}
    if options.parts is not None and not offloads:
        names = family.MODEL.SHARED_PARTS
        keys = keys_of(folder, names, dtype, lambda name: device_of(name, options.devices))
    lent = options.parts.lend(keys) if keys else {}
    pipeline = open_pipeline(
        row,
        folder,
        family.MODEL.pipeline_class(row),
        dtype,
        **family.MODEL.READ_WITH | lent,
    )
    family.MODEL.prepare(pipeline)
    compute = "BF16 weights widened to FP32" if device.type == "cpu" else "BF16"
    if offloads:
        compute = "BF16, weights waiting in main memory"
    else:
        place(pipeline, options.devices)
    if keys:
        options.parts.remember(keys, pipeline.components.__getitem__)
    model = family.MODEL(
        pipeline,
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
    row: ModelRow, folder: Path, pipeline_class: Any, dtype: torch.dtype, **parts: Any
) -> Any:
    """The row's pipeline from its folder, on the CPU; `parts` are components that are there already.

    Raises ModelUnavailable, saying which files are missing and how to get them.
    """
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
