"""A ComfyUI prompt, read into one request of ours: from its output nodes back to the sampler and on.

What the page reads of a workflow (`frontend/js/graph/comfy.js`) is read the same way here. Names of
samplers and schedulers are taken and say nothing: the model's own are used.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from api.dialects.comfy_check import checked
from api.dialects.comfy_graph import Graph

SAMPLERS = ("KSampler", "SamplerCustomAdvanced")
_EMPTY_LATENTS = ("EmptyLatentImage", "EmptySD3LatentImage", "EmptyFlux2LatentImage")


@dataclass(slots=True, kw_only=True)
class Found:
    """What a graph asks for, in fields of `POST /generate`; `where` says which node's input each comes from."""

    values: dict[str, Any] = field(default_factory=dict)
    where: dict[str, tuple[str, str]] = field(default_factory=dict)
    model_name: str | None = None  # of the loader
    image: str | None = None  # the names of LoadImage
    mask: tuple[str, str] | None = None  # and the channel
    references: list[str] = field(default_factory=list)
    sampler: str = ""
    decoder: str = ""
    outputs: list[str] = field(default_factory=list)  # ids of output nodes
    kinds: dict[str, str] = field(default_factory=dict)  # of all nodes

    def put(self, name: str, value: Any, node: str, key: str) -> None:
        self.values[name] = value
        self.where[name] = (node, key)


def read(prompt: Any, targets: Collection[str] | None = None) -> Found:
    """The request of a prompt. Raises GraphRefused. `targets`: of its output nodes only these."""
    graph, outputs = checked(prompt, targets)
    found = Found(outputs=outputs, kinds={node: graph.kind(node) for node in graph.nodes})
    _read_outputs(graph, found)
    graph.raise_errors(outputs)
    return found


def _read_outputs(graph: Graph, found: Found) -> None:
    for output in found.outputs:
        decoder = graph.source(output, "images")
        if decoder is None or not graph.kind(decoder).startswith("VAEDecode"):
            graph.refuse(
                output, "nothing_drawn", "Nothing is drawn: the picture comes from no VAEDecode"
            )
            continue
        sampler = graph.source(decoder, "samples")
        if sampler is None or graph.kind(sampler) not in SAMPLERS:
            words = f"The picture comes from no sampler; there is: {', '.join(SAMPLERS)}"
            graph.refuse(decoder, "nothing_drawn", words)
        elif found.sampler not in ("", sampler):
            graph.refuse(
                sampler, "several_samplers", "One prompt has one sampler; send one prompt for each"
            )
        else:
            found.sampler, found.decoder = sampler, decoder
    if found.sampler:
        reader = _custom if graph.kind(found.sampler) == "SamplerCustomAdvanced" else _ksampler
        reader(graph, found, found.sampler)


def _ksampler(graph: Graph, found: Found, node: str) -> None:
    found.put("seed", int(graph.value(node, "seed")), node, "seed")
    found.put("num_inference_steps", int(graph.value(node, "steps")), node, "steps")
    _guided(graph, found, node, node)
    _latent(graph, found, node, (node, "denoise"))
    _model(graph, found, node)


def _custom(graph: Graph, found: Found, node: str) -> None:
    noise, guider, sigmas = (graph.source(node, key) for key in ("noise", "guider", "sigmas"))
    assert noise and guider and sigmas  # checked before
    found.put("seed", int(graph.value(noise, "noise_seed")), noise, "noise_seed")
    found.put("num_inference_steps", int(graph.value(sigmas, "steps")), sigmas, "steps")
    if graph.kind(guider) == "CFGGuider":
        _guided(graph, found, guider, guider)
    else:
        _conditioning(graph, found, graph.link(guider, "conditioning"))
    denoise = (sigmas, "denoise") if graph.kind(sigmas) == "BasicScheduler" else None
    _latent(graph, found, node, denoise)
    _model(graph, found, guider)


def _guided(graph: Graph, found: Found, node: str, guider: str) -> None:
    """Positive and negative; the negative acts through a cfg over 1."""
    _conditioning(graph, found, graph.link(node, "positive"))
    cfg = float(graph.value(guider, "cfg"))
    found.put("cfg", cfg, guider, "cfg")
    if cfg > 1:
        negative = Found()
        _conditioning(graph, negative, graph.link(node, "negative"))
        if negative.values.get("prompt", "").strip():
            text = negative.values["prompt"]
            found.put("negative_prompt", text, *negative.where["prompt"])


def _conditioning(graph: Graph, found: Found, link: tuple[str, int] | None) -> None:
    """Back to the text, through guidance and references. One that is zeroed out has none."""
    while link is not None:
        node, output = link
        match graph.kind(node):
            case "FluxGuidance":
                if "guidance_scale" not in found.values:  # the one next to the sampler acts
                    found.put(
                        "guidance_scale", float(graph.value(node, "guidance")), node, "guidance"
                    )
                link = graph.link(node, "conditioning")
            case "ReferenceLatent":
                latent = graph.source(node, "latent")
                if latent is not None:
                    _reference(graph, found, node, latent)
                link = graph.link(node, "conditioning")
            case "InpaintModelConditioning":
                link = graph.link(node, ("positive", "negative")[output])
            case "CLIPTextEncodeFlux":
                if "guidance_scale" not in found.values:
                    found.put(
                        "guidance_scale", float(graph.value(node, "guidance")), node, "guidance"
                    )
                texts = [str(graph.value(node, key)).strip() for key in ("t5xxl", "clip_l")]
                return found.put("prompt", texts[0] or texts[1], node, "t5xxl")
            case "CLIPTextEncode":
                return found.put("prompt", str(graph.value(node, "text")), node, "text")
            case _:
                return None


def _reference(graph: Graph, found: Found, node: str, latent: str) -> None:
    image = (
        _image(graph, graph.source(latent, "pixels")) if graph.kind(latent) == "VAEEncode" else None
    )
    if image is None:
        words = "The reference comes from no LoadImage through a VAEEncode"
        return graph.refuse(node, "bad_linked_input", words, "latent", input_name="latent")
    found.references.insert(0, str(graph.value(image, "image")))
    found.where["reference_images"] = (image, "image")


def _latent(graph: Graph, found: Found, sampler: str, denoise: tuple[str, str] | None) -> None:
    node = graph.source(sampler, "latent_image")
    while node is not None and graph.kind(node) in ("SetLatentNoiseMask", "RepeatLatentBatch"):
        if graph.kind(node) == "RepeatLatentBatch":
            found.put("num_images", int(graph.value(node, "amount")), node, "amount")
        else:
            _mask(graph, found, node)
        node = graph.source(node, "samples")
    share = 1.0 if denoise is None else float(graph.value(*denoise))
    if node is not None and graph.kind(node) in _EMPTY_LATENTS:
        for key in ("width", "height"):
            found.put(key, int(graph.value(node, key)), node, key)
        batch = int(graph.value(node, "batch_size")) * found.values.get("num_images", 1)
        found.put("num_images", batch, node, "batch_size")
        if share < 1:
            assert denoise is not None
            words = f"denoise {share:g} needs a picture to begin with (LoadImage, VAEEncode)"
            graph.refuse(
                denoise[0], "value_smaller_than_min", words, "denoise", input_name="denoise"
            )
        return
    if node is not None and graph.kind(node) == "InpaintModelConditioning":
        _mask(graph, found, node)
    elif node is None or graph.kind(node) != "VAEEncode":
        words = "The latent comes from no Empty…LatentImage and no VAEEncode"
        return graph.refuse(
            sampler, "bad_linked_input", words, "latent_image", input_name="latent_image"
        )
    image = _image(graph, graph.source(node, "pixels"))
    if image is None:
        words = "The picture comes from no LoadImage"
        return graph.refuse(node, "bad_linked_input", words, "pixels", input_name="pixels")
    found.image = str(graph.value(image, "image"))
    found.where["image"] = (image, "image")
    found.put("strength", share, *(denoise or (node, "pixels")))


def _image(graph: Graph, node: str | None) -> str | None:
    """The LoadImage of a picture; the model scales it itself."""
    while node is not None and graph.kind(node) == "FluxKontextImageScale":
        node = graph.source(node, "image")
    return node if node is not None and graph.kind(node) == "LoadImage" else None


def _mask(graph: Graph, found: Found, node: str) -> None:
    source = graph.source(node, "mask")
    assert source is not None  # checked before
    if graph.kind(source) == "LoadImage":
        channel = "alpha"  # its second output: what is transparent
    else:
        channel = str(graph.value(source, "channel"))
    found.mask = (str(graph.value(source, "image")), channel)
    found.where["mask"] = (source, "image")


def _model(graph: Graph, found: Found, node: str) -> None:
    """Through LoRAs and shifts back to the loader. The first LoRA of the list is the one next to it."""
    loras: list[dict[str, Any]] = []
    current = graph.source(node, "model")
    while current is not None:
        kind = graph.kind(current)
        if kind in ("UNETLoader", "CheckpointLoaderSimple"):
            key = "unet_name" if kind == "UNETLoader" else "ckpt_name"
            found.model_name = str(graph.value(current, key))
            found.where["model"] = (current, key)
            break
        if kind.startswith("LoraLoader"):
            name = re.sub(r"^.*[\\/]", "", str(graph.value(current, "lora_name")))
            weight = float(graph.value(current, "strength_model"))
            loras.insert(0, {"name": name.removesuffix(".safetensors"), "weight": weight})
            found.where["loras"] = (current, "lora_name")
        current = graph.source(current, "model")
    if loras:
        found.values["loras"] = loras
