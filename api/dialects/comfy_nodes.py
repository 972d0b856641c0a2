"""ComfyUI's nodes that workflows of FLUX are made of: their inputs and outputs, as `/object_info` tells them.

An input is a link of some type, or a value with its limits. `models`, `loras` and `images` stand for what
this service has of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.types import MAX_IMAGES, MAX_SEED
from utils.lora_choice import MAX_WEIGHT

LINKS = frozenset(
    {"MODEL", "CLIP", "VAE", "CONDITIONING", "LATENT", "IMAGE", "MASK", "NOISE", "GUIDER", "SAMPLER",
     "SIGMAS"}
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A value: its type (INT, FLOAT, STRING, BOOLEAN, or COMBO of `among`), limits and default."""

    kind: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    among: str | None = None  # what the choices of a COMBO are


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """`inputs` by name: the type of a link, or a Value. What is in `optional` may be left out."""

    inputs: Mapping[str, str | Value]
    outputs: tuple[str, ...] = ()
    category: str = ""
    is_output: bool = False
    optional: frozenset[str] = frozenset()


def _int(default: int, low: int, high: int) -> Value:
    return Value(kind="INT", default=default, low=low, high=high)


def _float(default: float, low: float, high: float) -> Value:
    return Value(kind="FLOAT", default=default, low=low, high=high)


_TEXT = Value(kind="STRING", default="")
_MODELS = Value(kind="COMBO", among="models")
_LORAS = Value(kind="COMBO", among="loras")
_IMAGES = Value(kind="COMBO", among="images")
_ANY = Value(kind="COMBO", among="default")
_SAMPLER = Value(kind="COMBO", default="euler", among="samplers")
_SCHEDULER = Value(kind="COMBO", default="simple", among="schedulers")
_SEED = _int(0, 0, MAX_SEED)
_STEPS = _int(20, 1, 100)
_CFG = _float(1.0, 0.0, 20.0)
_DENOISE = _float(1.0, 0.0, 1.0)
_GUIDANCE = _float(3.5, 0.0, 100.0)
_STRENGTH = _float(1.0, -MAX_WEIGHT, MAX_WEIGHT)
_SIDE = _int(1024, 16, 16384)
_BATCH = _int(1, 1, MAX_IMAGES)
_LATENT = {"width": _SIDE, "height": _SIDE, "batch_size": _BATCH}
_CHANNEL = Value(kind="COMBO", default="alpha", among="channels")


def _node(outputs: str, category: str, /, *, optional: str = "", **inputs: str | Value) -> Node:
    return Node(
        inputs=inputs,
        outputs=tuple(outputs.split()),
        category=category,
        is_output=not outputs,
        optional=frozenset(optional.split()),
    )


NODES: Mapping[str, Node] = {
    "UNETLoader": _node(
        "MODEL", "advanced/loaders", unet_name=_MODELS, weight_dtype=_ANY, optional="weight_dtype"
    ),
    "CheckpointLoaderSimple": _node("MODEL CLIP VAE", "loaders", ckpt_name=_MODELS),
    "DualCLIPLoader": _node(
        "CLIP", "advanced/loaders", clip_name1=_ANY, clip_name2=_ANY, type=_ANY, device=_ANY,
        optional="device",
    ),
    "CLIPLoader": _node(
        "CLIP", "advanced/loaders", clip_name=_ANY, type=_ANY, device=_ANY, optional="device"
    ),
    "VAELoader": _node("VAE", "loaders", vae_name=_ANY),
    "LoraLoader": _node(
        "MODEL CLIP", "loaders", model="MODEL", clip="CLIP", lora_name=_LORAS,
        strength_model=_STRENGTH, strength_clip=_float(1.0, -100.0, 100.0),
        optional="clip strength_clip",
    ),
    "LoraLoaderModelOnly": _node(
        "MODEL", "loaders", model="MODEL", lora_name=_LORAS, strength_model=_STRENGTH
    ),
    "ModelSamplingFlux": _node(
        "MODEL", "advanced/model", model="MODEL", max_shift=_float(1.15, 0.0, 100.0),
        base_shift=_float(0.5, 0.0, 100.0), width=_SIDE, height=_SIDE,
    ),
    "CLIPTextEncode": _node("CONDITIONING", "conditioning", text=_TEXT, clip="CLIP"),
    "CLIPTextEncodeFlux": _node(
        "CONDITIONING", "advanced/conditioning/flux", clip="CLIP", clip_l=_TEXT, t5xxl=_TEXT,
        guidance=_GUIDANCE,
    ),
    "FluxGuidance": _node(
        "CONDITIONING", "advanced/conditioning/flux", conditioning="CONDITIONING", guidance=_GUIDANCE
    ),
    "ConditioningZeroOut": _node(
        "CONDITIONING", "advanced/conditioning", conditioning="CONDITIONING"
    ),
    "ReferenceLatent": _node(
        "CONDITIONING", "advanced/conditioning/edit_models", conditioning="CONDITIONING",
        latent="LATENT", optional="latent",
    ),
    "InpaintModelConditioning": _node(
        "CONDITIONING CONDITIONING LATENT", "conditioning/inpaint", positive="CONDITIONING",
        negative="CONDITIONING", vae="VAE", pixels="IMAGE", mask="MASK",
        noise_mask=Value(kind="BOOLEAN", default=True), optional="noise_mask",
    ),
    "EmptyLatentImage": _node("LATENT", "latent", **_LATENT),
    "EmptySD3LatentImage": _node("LATENT", "latent/sd3", **_LATENT),
    "EmptyFlux2LatentImage": _node("LATENT", "latent", **_LATENT),
    "VAEEncode": _node("LATENT", "latent", pixels="IMAGE", vae="VAE"),
    "SetLatentNoiseMask": _node("LATENT", "latent/inpaint", samples="LATENT", mask="MASK"),
    "RepeatLatentBatch": _node("LATENT", "latent/batch", samples="LATENT", amount=_BATCH),
    "LoadImage": _node("IMAGE MASK", "image", image=_IMAGES),
    "LoadImageMask": _node("MASK", "mask", image=_IMAGES, channel=_CHANNEL),
    "FluxKontextImageScale": _node("IMAGE", "advanced/conditioning/flux", image="IMAGE"),
    "RandomNoise": _node("NOISE", "sampling/custom_sampling/noise", noise_seed=_SEED),
    "KSamplerSelect": _node(
        "SAMPLER", "sampling/custom_sampling/samplers", sampler_name=_SAMPLER
    ),
    "BasicScheduler": _node(
        "SIGMAS", "sampling/custom_sampling/schedulers", model="MODEL", scheduler=_SCHEDULER,
        steps=_STEPS, denoise=_DENOISE,
    ),
    "Flux2Scheduler": _node(
        "SIGMAS", "sampling/custom_sampling/schedulers", steps=_STEPS, width=_SIDE, height=_SIDE
    ),
    "BasicGuider": _node(
        "GUIDER", "sampling/custom_sampling/guiders", model="MODEL", conditioning="CONDITIONING"
    ),
    "CFGGuider": _node(
        "GUIDER", "sampling/custom_sampling/guiders", model="MODEL", positive="CONDITIONING",
        negative="CONDITIONING", cfg=_CFG,
    ),
    "SamplerCustomAdvanced": _node(
        "LATENT LATENT", "sampling/custom_sampling", noise="NOISE", guider="GUIDER",
        sampler="SAMPLER", sigmas="SIGMAS", latent_image="LATENT",
    ),
    "KSampler": _node(
        "LATENT", "sampling", model="MODEL", seed=_SEED, steps=_STEPS, cfg=_CFG,
        sampler_name=_SAMPLER, scheduler=_SCHEDULER, positive="CONDITIONING",
        negative="CONDITIONING", latent_image="LATENT", denoise=_DENOISE,
    ),
    "VAEDecode": _node("IMAGE", "latent", samples="LATENT", vae="VAE"),
    "VAEDecodeTiled": _node(
        "IMAGE", "_for_testing", samples="LATENT", vae="VAE", tile_size=_int(512, 64, 4096),
        overlap=_int(64, 0, 4096), temporal_size=_int(64, 8, 4096),
        temporal_overlap=_int(8, 4, 4096), optional="tile_size overlap temporal_size temporal_overlap",
    ),
    "SaveImage": _node("", "image", images="IMAGE", filename_prefix=_TEXT),
    "PreviewImage": _node("", "image", images="IMAGE"),
    "SaveImageWebsocket": _node("", "api/image", images="IMAGE"),
    "PrimitiveInt": _node("INT", "utils/primitive", value=_int(0, -(2**53), 2**53)),
    "PrimitiveFloat": _node("FLOAT", "utils/primitive", value=_float(0.0, -(2.0**53), 2.0**53)),
    "PrimitiveString": _node("STRING", "utils/primitive", value=_TEXT),
    "PrimitiveStringMultiline": _node("STRING", "utils/primitive", value=_TEXT),
}  # fmt: skip

CHOICES: Mapping[str, Sequence[str]] = {
    "samplers": ("euler",),
    "schedulers": ("simple",),
    "channels": ("alpha", "red", "green", "blue"),
    "default": ("default",),
}


def object_info(name: str, there: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A node as ComfyUI describes it. `there` has the choices of `models`, `loras` and `images`."""
    node = NODES[name]
    choices = {**CHOICES, **there}
    sides: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
    for key, kind in node.inputs.items():
        sides["optional" if key in node.optional else "required"][key] = _described(kind, choices)
    return {
        "input": {side: inputs for side, inputs in sides.items() if inputs or side == "required"},
        "input_order": {side: list(inputs) for side, inputs in sides.items() if inputs},
        "output": list(node.outputs),
        "output_is_list": [False] * len(node.outputs),
        "output_name": list(node.outputs),
        "name": name,
        "display_name": name,
        "description": "",
        "python_module": "nodes",
        "category": node.category,
        "output_node": node.is_output,
    }


def _described(kind: str | Value, choices: Mapping[str, Sequence[str]]) -> list[Any]:
    if isinstance(kind, str):
        return [kind]
    options: dict[str, Any] = {} if kind.default is None else {"default": kind.default}
    if kind.low is not None:
        options |= {"min": kind.low, "max": kind.high}
    if kind.kind == "STRING":
        options["multiline"] = True
    if kind.kind == "COMBO":
        return [list(choices[kind.among or "default"]), options]
    return [kind.kind, options]
