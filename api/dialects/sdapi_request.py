"""Bodies of A1111's `/sdapi/v1/txt2img` and `img2img`, read into our requests.

What its clients send by default and means nothing here is passed over (samplers, eta, sigma noise).
What would change the picture and is not here (hires fix, scripts, ADetailer) is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from api.dialects import native
from api.dialects.sdapi_loras import loras_of
from api.input_sources import decoded
from api.services import Services
from config.catalog import ModelRow
from config.errors import InvalidRequest
from models.types import MAX_IMAGES, MAX_SEED
from utils.input_pictures import looked_at
from utils.requests import DRAWN_SEED, Wanted
from utils.retouch import Retouch, retouched

MAX_ITERATIONS = 16
DEFAULT_STRENGTH = 0.75  # A1111's
DEFAULT_MASK_BLUR_PX = 4
MAX_MASK_BLUR_PX = 64
NAMES = {
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "true_cfg_scale": "cfg_scale",
    "strength": "denoising_strength",
    "num_images": "batch_size",
    "image": "init_images",
    "loras": "prompt",
    "model": "sd_model_checkpoint",
}
# Switches that must be off, and what they are.
SWITCHES = {
    "enable_hr": "hires fix",
    "restore_faces": "face restoration",
    "tiling": "tiling",
    "script_name": "scripts",
    "refiner_checkpoint": "refiners",
    "subseed_strength": "variation seeds",
    "styles": "prompt styles",
}
RESIZE_MODES = ("just resize", "crop and resize", "resize and fill", "just resize (latent upscale)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a body asks for: a request for each iteration's pictures, and what is told of them."""

    wanted: Wanted
    iterations: int
    said: Mapping[str, Any]  # of info: where the answer is not what was asked for
    send_images: bool


async def read(
    services: Services, body: Mapping[str, Any], model: str | None, *, with_image: bool
) -> Asked:
    """Raises FluxError naming the body's field. `model` is the one that the client has set before."""
    _refuse(body)
    override = body.get("override_settings")
    override = {} if override is None else override
    if not isinstance(override, dict):
        raise InvalidRequest.of("override_settings", "must be an object")
    title = native.text(override, "sd_model_checkpoint")
    row = model_of(services, title) if title else native.row_of(services, model)
    said: dict[str, Any] = {}
    prompt, loras = loras_of(native.text(body, "prompt") or "")
    values = {
        "prompt": prompt,
        "negative_prompt": native.text(body, "negative_prompt"),
        "model": row.id,
        "num_inference_steps": _count(body, "steps"),
        "seed": _seed(body),
        "num_images": native.whole(body, "batch_size", 1, MAX_IMAGES, 1),
        "loras": loras or None,
        **_scales(row, body),
        **_size(row, body, said),
    }
    if with_image:
        strength = body.get("denoising_strength")
        values["strength"] = DEFAULT_STRENGTH if strength is None else strength
        values["image"] = "comes below"
    wanted = native.wanted_of(values, NAMES)
    iterations = native.whole(body, "n_iter", 1, MAX_ITERATIONS, 1)
    if (wanted.seed or 0) + wanted.num_images * iterations - 1 > MAX_SEED:
        raise InvalidRequest.of(
            "seed", f"is too large for so many pictures; {MAX_SEED} is the last"
        )
    if with_image:
        wanted = await _with_pictures(wanted, body)
    return Asked(
        wanted=wanted,
        iterations=iterations,
        said=said,
        send_images=body.get("send_images") is not False,
    )


def model_of(services: Services, title: str) -> ModelRow:
    """The model that a title or file name stands for. Raises FluxError for one that does not draw here."""
    wanted = re.sub(r"\s*\[[0-9a-f]*\]$", "", title.strip())
    row = services.plan.catalog.get(wanted.removesuffix(".safetensors"))
    resolver = services.plan.resolver
    if row is None:
        there = [each.id for each in services.plan.catalog if resolver.why_not_here(each) is None]
        raise InvalidRequest.of(
            "sd_model_checkpoint", f"there is no model {title[:64]!r}; there is: {', '.join(there)}"
        )
    with native.in_words(NAMES):
        resolver.require_runs_here(row)
    return row


def _refuse(body: Mapping[str, Any]) -> None:
    for name, what in SWITCHES.items():
        value = body.get(name)
        if value not in (None, False, 0, "", "None", []):
            raise InvalidRequest.of(name, f"{what}: not here; leave it off")
    scripts = body.get("alwayson_scripts")
    scripts = {} if scripts is None else scripts
    if not isinstance(scripts, dict):
        raise InvalidRequest.of("alwayson_scripts", "must be an object")
    for name, script in scripts.items():
        arguments = script.get("args") if isinstance(script, dict) else script
        if arguments not in (None, [], [False], {}):
            raise InvalidRequest.of(
                "alwayson_scripts", f"{str(name)[:60]} is not here; leave it off"
            )


def _count(body: Mapping[str, Any], name: str) -> int | None:
    return None if body.get(name) is None else native.whole(body, name, 1, 100, 1)


def _seed(body: Mapping[str, Any]) -> int | None:
    seed = native.whole(body, "seed", DRAWN_SEED, MAX_SEED, DRAWN_SEED)
    return None if seed == DRAWN_SEED else seed


def _scales(row: ModelRow, body: Mapping[str, Any]) -> dict[str, Any]:
    """`cfg_scale` is real guidance where there is a negative prompt, as in Forge; else the model's own.

    `distilled_cfg_scale` is always the model's own.
    """
    cfg, distilled = body.get("cfg_scale"), body.get("distilled_cfg_scale")
    if native.text(body, "negative_prompt"):
        return {"guidance_scale": distilled, native.real_guidance(row): cfg}
    return {"guidance_scale": cfg if distilled is None else distilled}


def _size(row: ModelRow, body: Mapping[str, Any], said: dict[str, Any]) -> dict[str, int | None]:
    sides = {
        name: None if body.get(name) is None else native.whole(body, name, 1, 2**14, 1)
        for name in ("width", "height")
    }
    if not any(sides.values()):
        return sides
    asked = (sides["width"] or row.default_width, sides["height"] or row.default_height)
    width, height = native.fitted(row, *asked)
    if (width, height) != asked:
        said["Requested size"] = f"{asked[0]}x{asked[1]}"
    return {"width": width, "height": height}


async def _with_pictures(wanted: Wanted, body: Mapping[str, Any]) -> Wanted:
    images = body.get("init_images")
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], str):
        raise InvalidRequest.of("init_images", "must be a list of one picture in base64")
    mode = native.whole(body, "resize_mode", 0, 3, 0)
    if mode > 1:
        raise InvalidRequest.of(
            "resize_mode", f"{mode} ({RESIZE_MODES[mode]}) is not here; send 0 or 1"
        )
    image = decoded("init_images", images[0])
    there = looked_at("init_images", image)
    size = None
    if mode == 0 and wanted.width and wanted.height:
        is_of_its_shape = wanted.width * there.height == wanted.height * there.width
        size = None if is_of_its_shape else (wanted.width, wanted.height)
    if size is not None:
        image = await retouched("init_images", image, Retouch(size=size))
    source = native.text(body, "mask")
    if source is None:
        return replace(wanted, image=image)
    mask = decoded("mask", source)
    retouch = Retouch(
        mask_from="grey",
        invert=bool(native.whole(body, "inpainting_mask_invert", 0, 1, 0)),
        blur_px=_blur(body),
        size=size,
    )
    return replace(wanted, image=image, mask=await retouched("mask", mask, retouch))


def _blur(body: Mapping[str, Any]) -> int:
    blurs = [
        native.whole(body, name, 0, MAX_MASK_BLUR_PX, 0)
        for name in ("mask_blur", "mask_blur_x", "mask_blur_y")
        if body.get(name) is not None
    ]
    return max(blurs, default=DEFAULT_MASK_BLUR_PX)
