"""What a picture says about itself: the full request, twice.

`parameters` is the text A1111 writes, which most viewers read. `flux_api` is JSON: the request
as this service understood it, with model, precision and engine. Neither holds a time or an id,
so that equal requests give equal bytes. In JPEG and WebP both stand in the EXIF user comment.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from config.catalog import CLOUD_BACKEND
from models.types import GenerationRequest
from utils.picture_header import read_user_comment

PARAMETERS_KEY = "parameters"
REQUEST_KEY = "flux_api"
SCHEMA_VERSION = 1
SHORT_HASH_DIGITS = 10  # of a SHA-256, by which sites that share LoRAs know a file (AutoV2)

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_TEXT_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What made the picture, beside the request; `model_reason` says why this model.

    `nsfw_flagged` is None where no checker looked at it.
    """

    precision: str
    engine: str
    model_reason: str
    nsfw_flagged: bool | None = None


def describe(request: GenerationRequest, *, seed: int, origin: Origin) -> dict[str, Any]:
    """The `flux_api` chunk: everything that decides the picture."""
    return {
        "version": SCHEMA_VERSION,
        "request": {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "model": request.model,
            "backend": request.backend,
            "width": request.width,
            "height": request.height,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "true_cfg_scale": request.true_cfg_scale,
            "seed": seed,
            "num_images": 1,
            "loras": [
                {
                    "name": lora.name,
                    "sha256": lora.sha256,
                    "weight": lora.weight,
                    "trigger_words": list(lora.trigger_words),
                }
                for lora in request.loras
            ],
            "output_format": request.output_format.value,
            "output_quality": request.output_quality,
            **_described_inputs(request),
        },
        "model": request.model,
        "model_reason": origin.model_reason,
        "precision": origin.precision,
        "engine": origin.engine,
        **({} if origin.nsfw_flagged is None else {"nsfw_flagged": origin.nsfw_flagged}),
    }


def infotext(request: GenerationRequest, *, seed: int) -> str:
    """The same in A1111's words, one paragraph: prompt, negative prompt, parameters."""
    called = [f"<lora:{lora.name}:{lora.weight:g}>" for lora in request.loras]
    lines = [" ".join([request.prompt_to_encode, *called])]
    cfg = request.guidance_scale
    if request.negative_prompt is not None:
        lines.append(f"Negative prompt: {request.negative_prompt}")
        cfg = request.true_cfg_scale
    # Nobody knows how a cloud samples.
    is_ours = request.backend != CLOUD_BACKEND
    sampler = f"Sampler: Euler, Schedule type: Simple, CFG scale: {cfg:g}, " if is_ours else ""
    lines.append(
        f"Steps: {request.num_inference_steps}, {sampler}"
        f"Seed: {seed}, Size: {request.width}x{request.height}, Model: {request.model}"
        f"{_lora_hashes(request)}{_inputs(request)}"
    )
    return "\n".join(lines)


def _described_inputs(request: GenerationRequest) -> dict[str, Any]:
    """What a picture says only when it began with another, or others were looked at."""
    looked_at = {"reference_images": list(request.reference_images)}
    references = looked_at if request.reference_images else {}
    if request.image is None:
        return references
    masked = {} if request.mask is None else {"mask": request.mask}
    return {"image": request.image, **masked, "strength": request.strength, **references}


def _inputs(request: GenerationRequest) -> str:
    hashes = ", ".join(request.reference_images)
    references = f', Reference hashes: "{hashes}"' if hashes else ""
    if request.image is None:
        return references
    masked = "" if request.mask is None else f", Mask hash: {request.mask}"
    begun = f", Denoising strength: {request.strength:g}, Init image hash: {request.image}{masked}"
    return begun + references


def _lora_hashes(request: GenerationRequest) -> str:
    hashes = (f"{lora.name}: {lora.sha256[:SHORT_HASH_DIGITS]}" for lora in request.loras)
    return f', Lora hashes: "{", ".join(hashes)}"' if request.loras else ""


def read_texts(data: bytes) -> dict[str, str]:
    """What a PNG, JPEG or WebP says of itself, by keyword; in the latter two it stands in the EXIF comment.

    Raises ValueError for what is none of them or is damaged.
    """
    if data.startswith(_PNG_SIGNATURE):
        return read_png_texts(data)
    comment = _decoded(read_user_comment(data))
    parameters, mark, described = comment.rpartition(f"\n{REQUEST_KEY}: ")
    if mark:
        return {PARAMETERS_KEY: parameters, REQUEST_KEY: described}
    return {PARAMETERS_KEY: comment} if comment else {}


def _decoded(comment: bytes) -> str:
    """An EXIF comment as text. Big-endian is usual whatever the rest of the file is."""
    code, words = comment[:8], comment[8:]
    if not code.startswith(b"UNICODE"):
        return words.decode("latin-1")
    is_little = words[:1] != b"\0" and words[1:2] == b"\0"
    return words.decode("utf-16-le" if is_little else "utf-16-be", errors="replace")


def read_png_texts(data: bytes) -> dict[str, str]:
    """The text chunks of a PNG (tEXt, zTXt, iTXt) by keyword, without decoding a pixel.

    Raises ValueError for what is not a PNG or is cut off.
    """
    texts: dict[str, str] = {}
    for kind, body in _chunks(data):
        if kind == b"tEXt":
            key, _, value = body.partition(b"\0")
            texts[key.decode("latin-1")] = value.decode("latin-1")
        elif kind == b"zTXt":
            key, _, value = body.partition(b"\0")
            texts[key.decode("latin-1")] = _inflate(value[1:]).decode("latin-1")
        elif kind == b"iTXt":
            key, _, rest = body.partition(b"\0")
            compressed = rest[:1] == b"\1"
            value = rest[2:].split(b"\0", 2)[-1]
            texts[key.decode("latin-1")] = (_inflate(value) if compressed else value).decode(
                "utf-8"
            )
    return texts


def read_request(data: bytes) -> dict[str, Any]:
    """The `flux_api` chunk of a PNG of ours. Raises ValueError when there is none."""
    texts = read_png_texts(data)
    if REQUEST_KEY not in texts:
        raise ValueError("the PNG has no flux_api chunk: it was not made by this service")
    return json.loads(texts[REQUEST_KEY])


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if not data.startswith(_PNG_SIGNATURE):
        raise ValueError("not a PNG")
    position = len(_PNG_SIGNATURE)
    while True:
        if position + 12 > len(data):
            raise ValueError("the PNG is cut off")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            raise ValueError("the PNG is cut off")
        if kind == b"IEND":
            return
        yield kind, data[position + 8 : end]
        position = end + 4


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, _MAX_TEXT_BYTES)
    except zlib.error as error:
        raise ValueError("a compressed text chunk is damaged") from error
    if inflater.unconsumed_tail:
        raise ValueError(f"a text chunk is larger than {_MAX_TEXT_BYTES} bytes")
    return text
