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
from models.compiling import compile_model
from models.families import family_of
from models.families.pipeline_model import PipelineModel, device_of, place
from models.hub import on_disk
from models.hub.repository import first_line
from models.hub.snapshot import snapshot
from models.parts import Keys, keys_of
from models.precision import profile_of
from models.types import ImageModel, LoadOptions

PROFILE = profile_of("bf16")


def compute_dtype(device: torch.device, family: type[PipelineModel] = PipelineModel) -> torch.dtype:
    """The numbers that a family computes in. Never FP16: sums in these networks overflow in it."""
    if device.type == "mps":
        has_bf16 = torch.backends.mps.is_macos_or_newer(14, 0)
        return torch.bfloat16 if family.SIXTEEN_BITS_ON_MPS and has_bf16 else torch.float32
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
    dtype = compute_dtype(device, family.MODEL)
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
    compute = "BF16" if dtype == torch.bfloat16 else "BF16 weights widened to FP32"
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
    elif options.compile == "on" and device.type == "cuda":
        compile_model(model, options, autoencoder=True)
    return model


def open_pipeline(
    row: ModelRow, folder: Path, pipeline_class: Any, dtype: torch.dtype, **parts: Any
) -> Any:
    """The row's pipeline from its folder, on the CPU; `parts` are components that are there already.

    Raises ModelUnavailable, saying which files are missing or damaged, or that they are another model's.
    """
    lacking = on_disk.missing_in(folder, parts)
    if lacking:
        raise ModelUnavailable(
            f"model {row.id}: {folder.name} has no whole {' and no whole '.join(lacking)}; "
            "fetch the model again"
        )
    try:
        pipeline = pipeline_class.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, **parts
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what a wrong value or file breaks inside has no common type
        damaged = on_disk.damaged_json(folder)
        reason = f"{damaged} is damaged; fetch the model again" if damaged else None
        raise ModelUnavailable(
            f"model {row.id}: {folder.name} cannot be loaded: {reason or _in_short(error, folder)}"
        ) from error
    if reason := _why_not_whole(pipeline):
        raise ModelUnavailable(
            f"model {row.id}: {folder.name}: {reason}; the files are not of one model of this kind"
        )
    return pipeline


def _why_not_whole(pipeline: Any) -> str | None:
    """What diffusers only warns of: a component of another class, or weights that no file has."""
    expected = type(pipeline)._get_signature_types()
    for name, part in pipeline.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        kinds = tuple(kind for kind in expected.get(name, ()) if isinstance(kind, type))
        if kinds and not isinstance(part, kinds):
            return f"{name} is of the class {type(part).__name__}, not {kinds[0].__name__}"
        lacking = [tensor for tensor, value in part.named_parameters() if value.is_meta]
        if lacking:
            return f"{name} has no weights for {lacking[0]}, which its config.json says it has"
    return None


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
