"""What a graph asks for, as our request: files by our names, and errors told to the node that is at fault."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from api.dialects import native
from api.dialects.comfy_graph import GraphRefused
from api.dialects.comfy_read import Found
from api.dialects.comfy_runs import Runs
from api.services import Services
from config.catalog import ModelRow
from config.errors import FluxError
from models.types import GenerationRequest
from utils.input_pictures import SHA256
from utils.retouch import Retouch, retouched

# Names of weights' files, and whose they are; the first that fits.
_FILES = (
    (re.compile(r"schnell", re.I), "flux-schnell"),
    (re.compile(r"kontext", re.I), "flux-kontext-dev"),
    (re.compile(r"krea", re.I), "flux-krea-dev"),
    (re.compile(r"flux.*fill", re.I), "flux-fill-dev"),
    (re.compile(r"klein.*base.*4b|klein.*4b.*base", re.I), "flux2-klein-base-4b"),
    (re.compile(r"klein.*9b", re.I), "flux2-klein-9b"),
    (re.compile(r"klein.*4b", re.I), "flux2-klein-4b"),
    (re.compile(r"z[-_]?image[-_]?turbo", re.I), "z-image-turbo"),
    (re.compile(r"flux.?1?.?dev", re.I), "flux-dev"),
    (re.compile(r"sd_?xl_base", re.I), "sdxl-base"),
    (re.compile(r"v1-5|sd.?1.?5", re.I), "stable-diffusion-v1-5"),
)
_SUFFIX = re.compile(r"\.(safetensors|gguf|ckpt|sft)$")
_ANNOTATION = re.compile(r" \[(input|output|temp)\]$")


async def resolved(services: Services, runs: Runs, found: Found, owner: str) -> GenerationRequest:
    """`owner` is whose uploads are meant. Raises GraphRefused naming the node, or what keeps the service from drawing at all."""
    row = _row(services, found)
    values = {name: value for name, value in found.values.items() if name != "cfg"}
    values |= _guidance(row, found)
    values["image"] = "comes below" if found.image is not None else None
    try:
        wanted = native.wanted_of({**values, "model": row.id})
        if found.image is not None:
            wanted = replace(wanted, image=_file(runs, owner, found.image))
        if found.mask is not None:
            wanted = replace(wanted, mask=await _mask(services, runs, owner, found.mask))
        pictures = tuple(_file(runs, owner, name) for name in found.references)
        return await services.resolve(replace(wanted, reference_images=pictures))
    except GraphRefused:
        raise
    except FluxError as error:
        if not error.fields or error.status >= 500 or error.status == 429:
            raise
        raise _refused(found, error) from error


def models_here(services: Services) -> list[str]:
    resolver = services.plan.resolver
    return [row.id for row in services.plan.catalog if resolver.why_not_here(row) is None]


def _row(services: Services, found: Found) -> ModelRow:
    """The model of a loader's file: one of our ids, or weights whose name is known."""
    name = found.model_name or ""
    bare = _SUFFIX.sub("", re.sub(r"^.*[\\/]", "", name))
    catalog, resolver = services.plan.catalog, services.plan.resolver
    row = catalog.get(name) or catalog.get(bare)  # an id of ours may look like a path
    if row is None:
        meant = next((model for pattern, model in _FILES if pattern.search(bare)), "")
        row = catalog.get(meant)
    reason = "" if row is None else resolver.why_not_here(row)
    if row is not None and reason is None:
        return row
    node, key = found.where.get("model", (found.sampler, "model"))
    there = models_here(services)
    details = f"{key}: {name[:80]!r} not in {there}" + (f" ({reason})" if reason else "")
    raise _node_error(found, node, "value_not_in_list", "Value not in list", details, key)


def _guidance(row: ModelRow, found: Found) -> dict[str, Any]:
    """`cfg` of the sampler is real guidance: with a negative prompt, or where the model has no other."""
    cfg = found.values.get("cfg")
    if cfg is None:
        return {}
    name = native.real_guidance(row)
    found.where.setdefault(name, found.where["cfg"])
    if name == "true_cfg_scale":
        return {name: cfg} if "negative_prompt" in found.values else {}
    return {name: cfg} if row.guidance and name not in found.values else {}


def _file(runs: Runs, owner: str, name: str) -> str:
    """An upload by its new name or by the one it came with, or a picture of this service."""
    bare = re.sub(r"^.*[\\/]", "", _ANNOTATION.sub("", name.strip()))
    stem = re.sub(r"\.[A-Za-z]{3,4}$", "", bare)
    if SHA256.fullmatch(stem):
        return stem
    known = runs.upload(owner, bare)
    return known if known is not None else stem


async def _mask(services: Services, runs: Runs, owner: str, mask: tuple[str, str]) -> bytes:
    name, channel = mask
    source = _file(runs, owner, name)
    data = await services.sources.data("mask", source, services.only_of)
    return await retouched("mask", data, Retouch(mask_from=channel))


def _refused(found: Found, error: FluxError) -> GraphRefused:
    refused: GraphRefused | None = None
    for fault in error.fields:
        place = found.where.get(fault.field.partition(".")[0], (found.sampler, fault.field))
        one = _node_error(found, place[0], error.code, fault.message, place[1], place[1])
        if refused is None:
            refused = one
        else:
            for node, entry in one.node_errors.items():
                errors = refused.node_errors.setdefault(node, {**entry, "errors": []})["errors"]
                errors.extend(entry["errors"])
    assert refused is not None
    return refused


def _node_error(
    found: Found, node: str, kind: str, message: str, details: str, key: str
) -> GraphRefused:
    entry = {
        "errors": [
            {
                "type": kind,
                "message": message,
                "details": details,
                "extra_info": {"input_name": key},
            }
        ],
        "dependent_outputs": found.outputs,
        "class_type": found.kinds.get(node, ""),
    }
    words = f"node {node[:40]} ({entry['class_type']}): {message} ({details})"
    return GraphRefused(
        "prompt_outputs_failed_validation",
        f"Prompt outputs failed validation: {words}",
        {node: entry},
    )
