"""What a LoRA file says of itself: trigger word, base model, rank, alpha, and what trained it.

Programs look for them under different keys, so the same facts are written under several: modelspec
(Stability AI's specification), Kohya's ss_, AI-Toolkit's, and diffusers' adapter settings. Nothing in
them depends on the time or the machine.
"""

import json
from dataclasses import dataclass

from scripts.lora.adapter import Adapter

SOFTWARE = "FLUX API scripts/train_lora.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What the metadata of a file says beside rank and alpha."""

    title: str
    base_model: str
    guidance_embeds: bool  # FLUX.1-dev has such, FLUX.1-schnell and the embedded model have not
    resolution_px: int
    trigger_word: str | None
    steps: int
    pictures: int
    licence: str | None = None


def describe(lora: Adapter, description: Description, form: str) -> dict[str, str]:
    """Return the metadata of a file in a format of `files.FORMATS`."""
    kind = "flux-1-dev" if description.guidance_embeds else "flux-1-schnell"
    size = f"{description.resolution_px}x{description.resolution_px}"
    told = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{kind}/lora",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        "modelspec.title": description.title,
        "modelspec.resolution": size,
        "modelspec.description": f"trained from {description.pictures} pictures on "
        f"{description.base_model} in {description.steps} steps",
        "ss_base_model_version": "flux1",
        "ss_sd_model_name": description.base_model,
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": f"{lora.alpha:g}",
        "ss_steps": str(description.steps),
        "ss_num_train_images": str(description.pictures),
        "software": json.dumps({"name": SOFTWARE}),
    }
    if description.licence:
        told["modelspec.license"] = description.licence
    if description.trigger_word:
        told["modelspec.trigger_phrase"] = description.trigger_word
        told["trigger_word"] = description.trigger_word  # where AI-Toolkit has it
    if form == "kohya":
        told["ss_network_module"] = "networks.lora_flux"
    if form == "diffusers":
        told["lora_adapter_metadata"] = json.dumps(
            {
                "transformer.r": lora.rank,
                "transformer.lora_alpha": lora.alpha,
                "transformer.target_modules": sorted(lora.factors),
                "transformer.use_rslora": False,
            }
        )
    return told


def in_order(data: bytes) -> bytes:
    """Return the same file with its metadata in order; the library writes them in a random one."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]
