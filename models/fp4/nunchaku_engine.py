"""The engine `nunchaku`: SVDQuant's 4-bit kernels, where its wheel is installed and the GPU has them.

Weights and activations are 4-bit (INT4 on Turing, Ampere and Ada, NVFP4 on consumer Blackwell) with a
16-bit low-rank branch of rank 32 beside them; the checkpoints are nunchaku's own. The rest of the
pipeline (CLIP, VAE, tokenizers, scheduler) comes from the model's repository, in 16 bit.

Written from nunchaku's source and documentation; not run on hardware by this project yet. Source:
Li et al. 2024, "SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models";
nunchaku 1.2.1: `transformer_flux.py`, `t5_encoder.py`, `docs/source/usage`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from config.catalog import ModelRow
from config.errors import ModelUnavailable
from models.fp4 import nunchaku_support as support
from models.hub.snapshot import single_file, snapshot
from models.precision import profile_of
from models.types import ImageModel, LoadOptions

RANK = 32  # of the low-rank branch in every checkpoint named here

# By the repository of the 16-bit model: the one of the 4-bit transformer, and the file's last part.
CHECKPOINTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "black-forest-labs/FLUX.1-schnell": ("nunchaku-tech/nunchaku-flux.1-schnell", "flux.1-schnell"),
        "black-forest-labs/FLUX.1-dev": ("nunchaku-tech/nunchaku-flux.1-dev", "flux.1-dev"),
        "black-forest-labs/FLUX.1-Krea-dev": ("nunchaku-tech/nunchaku-flux.1-krea-dev", "flux.1-krea-dev"),
    }
)  # fmt: skip
T5_CHECKPOINT = ("nunchaku-tech/nunchaku-t5", "awq-int4-flux.1-t5xxl.safetensors")

# What a checkpoint's own description calls its weights, by the word in its file name.
_WEIGHT_TYPES = {"int4": "int4", "fp4": "fp4_e2m1_all"}
_TITLES = {"int4": "INT4", "fp4": "NVFP4"}


def why_not(options: LoadOptions) -> str | None:
    """Why this engine cannot run with these options, with what to do; None when it can."""
    wrong = support.why_wrong_package()
    if wrong:
        return wrong
    for device in options.devices:
        if not device.startswith("cuda"):
            return support.why_not_cpu()
        capability = _capability(device)
        if isinstance(capability, str):
            return capability
        reason = support.why_not_gpu(capability, device)
        if reason:
            return reason
    return _why_no_package()


def why_no_checkpoint(row: ModelRow) -> str | None:
    """Why nunchaku cannot draw with the row's model; None when there is a checkpoint of it."""
    if row.source in CHECKPOINTS:
        return None
    return (
        f"nunchaku has no checkpoint of {row.id} ({row.source}); it has those of {', '.join(CHECKPOINTS)}. "
        "Use the engine nvfp4 (or auto) for this model"
    )


def checkpoint_of(row: ModelRow, word: str) -> tuple[str, str]:
    """Repository and file of the row's transformer; `word` is "int4" or "fp4"."""
    repository, name = CHECKPOINTS[row.source]
    return repository, f"svdq-{word}_r{RANK}-{name}.safetensors"


def stand_ins() -> dict[str, dict[str, tuple[str, ...]]]:
    """What need not be there of a model, by its repository and by the checkpoints that are there in its place."""
    return {
        source: {"transformer": (repository,), "text_encoder_2": (repository, T5_CHECKPOINT[0])}
        for source, (repository, _) in CHECKPOINTS.items()
    }


def load(row: ModelRow, options: LoadOptions) -> ImageModel:
    """Load the row's model: text encoders on the first of `options.devices`, the rest on the last.

    Raises ModelUnavailable: the engine cannot run here, or a file is missing, damaged or another
    model's. The files are checked before anything is put on a GPU.
    """
    reason = why_not(options) or why_no_checkpoint(row)
    if reason:
        raise ModelUnavailable(f"model {row.id}: {reason}")
    from models.families.flux1 import Flux1Model
    from models.fp4.nunchaku_loras import carrier

    hardware = support.ARCHITECTURES[_capability(options.devices[-1])]
    options.on_progress("4-bit checkpoints", 0.0)
    transformer = single_file(*checkpoint_of(row, hardware.checkpoint), row, options)
    check_checkpoint(transformer, hardware.checkpoint, row)
    t5 = None
    if hardware.has_quantised_t5:
        t5 = single_file(*T5_CHECKPOINT, row, options)
        check_checkpoint(t5, None, row)
    options.on_progress("4-bit checkpoints", 1.0)
    pipeline = _pipeline(row, options, hardware.dtype, transformer, t5)
    compute = f"SVDQuant {_TITLES[hardware.checkpoint]} weights and activations, rank {RANK}"
    return Flux1Model(
        pipeline,
        row,
        engine="nunchaku",
        compute=compute,
        lora_mode=profile_of("fp4").lora_mode,
        loras_dir=options.loras_dir,
        carrier=carrier(pipeline),
    )


def check_checkpoint(path: Path, word: str | None, row: ModelRow) -> None:
    """Read a checkpoint's header and compare it with what is wanted; no tensor is read.

    `word` is "int4" or "fp4" for a transformer and None for the text encoder. Raises
    ModelUnavailable naming the file and what to do.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
        config = json.loads(about["config"])
        wanted = json.loads(about["quantization_config"]) if word else {}
    except (OSError, SafetensorError) as error:
        raise _unusable(row, path, f"it is damaged or incomplete ({error})") from error
    except (KeyError, json.JSONDecodeError) as error:
        raise _unusable(
            row, path, f"its description lacks {error}: it is no checkpoint of nunchaku's"
        ) from error
    if word is None:
        return
    found = wanted.get("weight", {}).get("dtype")
    if found != _WEIGHT_TYPES[word]:
        raise _unusable(
            row, path, f"its weights are {found}, and this GPU needs {_WEIGHT_TYPES[word]}"
        )
    if wanted.get("rank", RANK) != RANK:
        raise _unusable(row, path, f"its low-rank branch has rank {wanted['rank']}, not {RANK}")
    if bool(config.get("guidance_embeds")) != row.guidance:
        has = "has" if config.get("guidance_embeds") else "has no"
        raise _unusable(row, path, f"it is another model's: it {has} guidance embeddings")


def _capability(device: str) -> tuple[int, int] | str:
    """The GPU's compute capability, or why torch does not see it."""
    import torch

    try:
        major, minor = torch.cuda.get_device_capability(torch.device(device))
    except (AssertionError, RuntimeError) as error:
        return support.why_not_cpu(f"torch {torch.__version__} sees no {device}: {error}")
    return int(major), int(minor)


def _why_no_package() -> str | None:
    import torch

    version = support.nunchaku_version()
    reason = support.why_not_installed() or support.why_not_torch(
        torch.__version__, torch.version.cuda, version
    )
    if reason:
        return reason
    try:
        nunchaku = importlib.import_module("nunchaku")
    except (ImportError, OSError) as error:
        return (
            f"nunchaku is installed and cannot be imported ({error}): its wheel must be the one for this "
            f"Python, torch and CUDA; `{support.SETUP}` makes an environment in which they fit"
        )
    missing = [
        name for name in (support.MARK, "NunchakuT5EncoderModel") if not hasattr(nunchaku, name)
    ]
    if missing:
        return f"the installed nunchaku has no {' and no '.join(missing)}; `{support.SETUP}` installs release {support.RELEASE}"
    return None


def _read(row: ModelRow, path: Path, kind: Any, **options: Any) -> Any:
    """One of nunchaku's models from its file; its complaints become ours, with the file's name."""
    try:
        return kind.from_pretrained(str(path), **options)
    except (AssertionError, KeyError, OSError, ValueError) as error:
        raise _unusable(row, path, f"nunchaku cannot read it: {_first_line(error)}") from error
    except RuntimeError as error:
        if "loading state_dict" not in str(error):  # the device's complaint, not the file's fault
            raise
        raise _unusable(
            row, path, f"its tensors do not fit its own description: {error}"
        ) from error


def _pipeline(
    row: ModelRow, options: LoadOptions, dtype_name: str, transformer: Path, t5: Path | None
) -> Any:
    """The row's pipeline with nunchaku's parts in it, each part on its device.

    Without a 4-bit T5 the text encoders stay in main memory: in 16 bit they are 10 GB.
    """
    import torch
    from diffusers import FluxPipeline
    from diffusers.utils.logging import disable_progress_bar

    from models.families.pipeline_model import place

    disable_progress_bar()
    nunchaku = importlib.import_module("nunchaku")
    dtype = getattr(torch, dtype_name)
    devices = options.devices if t5 is not None else ("cpu", options.devices[-1])
    parts: dict[str, Any] = {}
    if t5 is not None:
        parts["text_encoder_2"] = _read(
            row, t5, nunchaku.NunchakuT5EncoderModel, device=devices[0], torch_dtype=dtype
        )
    parts["transformer"] = _read(
        row, transformer, nunchaku.NunchakuFluxTransformer2dModel, device=devices[-1], torch_dtype=dtype
    )  # fmt: skip
    if dtype == torch.float16:  # the other attention computes in BF16
        parts["transformer"].set_attention_impl("nunchaku-fp16")
    folder = snapshot(row, options, without=tuple(parts))
    try:
        pipeline = FluxPipeline.from_pretrained(
            folder,
            torch_dtype=dtype,  # the diffusers that nunchaku needs does not know `dtype`
            use_safetensors=True,
            local_files_only=True,
            **parts,
        )
    except (OSError, ValueError) as error:
        raise ModelUnavailable(
            f"model {row.id}: the text encoder, the VAE or the tokenizers of {row.source} cannot be "
            f"loaded: {_first_line(error)}"
        ) from error
    return place(pipeline, devices)


def _unusable(row: ModelRow, path: Path, why: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"model {row.id}: {path} cannot be used: {why}. Delete the file, and it is fetched anew"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
