"""ComfyUI prompts for tests, in the form in which it sends them."""

from __future__ import annotations

from typing import Any

Prompt = dict[str, dict[str, Any]]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def ksampler(text: str = "x", **changed: Any) -> Prompt:
    """The basic workflow: a checkpoint, two texts, an empty latent, KSampler."""
    sampler = {
        "seed": 5,
        "steps": 4,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
        "model": ["4", 0],
        "positive": ["6", 0],
        "negative": ["7", 0],
        "latent_image": ["5", 0],
    }
    return {
        "3": node("KSampler", **sampler | changed),
        "4": node("CheckpointLoaderSimple", ckpt_name="embedded"),
        "5": node("EmptyLatentImage", width=128, height=144, batch_size=1),
        "6": node("CLIPTextEncode", text=text, clip=["4", 1]),
        "7": node("CLIPTextEncode", text="", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
    }


def custom(text: str = "x") -> Prompt:
    """ComfyUI's own example of FLUX.1: SamplerCustomAdvanced and what belongs to it."""
    return {
        "5": node("EmptySD3LatentImage", width=128, height=128, batch_size=1),
        "6": node("CLIPTextEncode", text=text, clip=["11", 0]),
        "8": node("VAEDecode", samples=["13", 0], vae=["10", 0]),
        "9": node("SaveImage", filename_prefix="flux", images=["8", 0]),
        "10": node("VAELoader", vae_name="ae.safetensors"),
        "11": node(
            "DualCLIPLoader",
            clip_name1="t5xxl_fp16.safetensors",
            clip_name2="clip_l.safetensors",
            type="flux",
        ),
        "12": node("UNETLoader", unet_name="embedded.safetensors", weight_dtype="default"),
        "13": node(
            "SamplerCustomAdvanced",
            noise=["25", 0],
            guider=["22", 0],
            sampler=["16", 0],
            sigmas=["17", 0],
            latent_image=["5", 0],
        ),
        "16": node("KSamplerSelect", sampler_name="euler"),
        "17": node("BasicScheduler", scheduler="simple", steps=3, denoise=1.0, model=["30", 0]),
        "22": node("BasicGuider", model=["30", 0], conditioning=["26", 0]),
        "25": node("RandomNoise", noise_seed=219670278747233),
        "26": node("FluxGuidance", guidance=3.5, conditioning=["6", 0]),
        "30": node(
            "ModelSamplingFlux",
            max_shift=1.15,
            base_shift=0.5,
            width=1024,
            height=1024,
            model=["12", 0],
        ),
    }


def with_lora(prompt: Prompt, name: str, weight: float) -> Prompt:
    """The basic workflow with a LoraLoader behind its checkpoint."""
    lora = node(
        "LoraLoader",
        model=["4", 0],
        clip=["4", 1],
        lora_name=name,
        strength_model=weight,
        strength_clip=weight,
    )
    changed = {**prompt, "40": lora}
    changed["3"]["inputs"]["model"] = ["40", 0]
    changed["6"]["inputs"]["clip"] = ["40", 1]
    return changed


def with_image(prompt: Prompt, name: str, denoise: float) -> Prompt:
    """The basic workflow, begun with a picture."""
    changed = {
        **prompt,
        "50": node("LoadImage", image=name),
        "51": node("VAEEncode", pixels=["50", 0], vae=["4", 2]),
    }
    del changed["5"]
    changed["3"]["inputs"] |= {"latent_image": ["51", 0], "denoise": denoise}
    return changed
