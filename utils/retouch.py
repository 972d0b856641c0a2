"""Other APIs' masks and pictures in our form, made in a process of their own.

Our masks are white where the picture is drawn anew. Others mark that by transparency, the other way
round, or with a blur to be applied. Pixels of strangers are not decoded in the service's process, so
each such picture goes to a short-lived child (`python -m utils.retouch`) that has no environment, little
memory and little time, and what comes back is a PNG.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from config.errors import BadPicture, FluxError
from utils.input_pictures import FORMATS, in_words, looked_at
from utils.png_pixels import require_pixels

ROOT = Path(__file__).resolve().parent.parent

MEMORY_BYTES = 2 * 2**30
CPU_SECONDS = 20
PATIENCE_SECONDS = 60
EXIT_REFUSED = 3  # what it says on its standard error is for the client


@dataclass(frozen=True, slots=True, kw_only=True)
class Retouch:
    """What to do, in this order: take the mask, exchange black and white, blur, stretch to `size`."""

    # "alpha": transparent is white; "grey": as it is; "red", "green", "blue": that channel; None: no mask
    mask_from: str | None = None
    invert: bool = False
    blur_px: float = 0.0  # standard deviation
    size: tuple[int, int] | None = None  # width and height, px


async def retouched(field: str, data: bytes, retouch: Retouch) -> bytes:
    """A PNG. Raises NotAPicture, BadPicture, TooLarge, naming the field."""
    looked_at(field, data)  # a header that nobody could take is not decoded
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", _START, str(ROOT), json.dumps(asdict(retouch)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={},
    )  # fmt: skip
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            made, said = await child.communicate(data)
    except TimeoutError as error:
        raise FluxError(
            f"{field}: the picture took too long to read; send a smaller one"
        ) from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode == 0:
        return made
    if child.returncode == EXIT_REFUSED:
        raise BadPicture.of(field, said.decode("utf-8", "replace").strip()[:300])
    raise BadPicture.of(field, "the picture cannot be decoded; send it whole, as a plain PNG")


# Isolated from the caller's environment and folder; only the project's own modules are found.
_START = "import sys; sys.path.insert(0, sys.argv[1]); from utils.retouch import main; main()"


def main() -> None:
    import resource

    for kind, limit in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CPU, CPU_SECONDS)):
        with contextlib.suppress(ValueError, OSError):  # some systems have no such limit
            resource.setrlimit(kind, (limit, limit))
    values = json.loads(sys.argv[2])
    size = values.pop("size")
    retouch = Retouch(**values, size=tuple(size) if size else None)
    try:
        made = apply(sys.stdin.buffer.read(), retouch)
    except Exception as error:  # what decoders raise for damaged files is of many kinds
        print(f"the picture cannot be used: {in_words(error)}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)
    sys.stdout.buffer.write(made)


def apply(data: bytes, retouch: Retouch) -> bytes:
    """The work itself. Raises ValueError for a mask without transparency, OSError for a damaged file."""
    from PIL import Image, ImageFilter, ImageOps

    with Image.open(io.BytesIO(data), formats=FORMATS) as file:
        picture: Any = ImageOps.exif_transpose(file)
        picture.load()
    require_pixels(data)
    if retouch.mask_from == "alpha":
        if not picture.has_transparency_data:
            raise ValueError(
                "it has no transparency; transparent pixels say what is drawn anew, so send a PNG with alpha"
            )
        picture = ImageOps.invert(picture.convert("RGBA").getchannel("A"))
    elif retouch.mask_from in ("red", "green", "blue"):
        picture = picture.convert("RGB").getchannel(retouch.mask_from[0].upper())
    elif retouch.mask_from == "grey":
        if picture.has_transparency_data:  # transparent is black, as in our own masks
            picture = picture.convert("RGBA")
            ground = Image.new("RGBA", picture.size, (0, 0, 0, 255))
            picture = Image.alpha_composite(ground, picture)
        picture = picture.convert("L")
    if retouch.invert:
        picture = ImageOps.invert(picture)
    if retouch.blur_px:
        picture = picture.filter(ImageFilter.GaussianBlur(retouch.blur_px))
    if retouch.size is not None and picture.size != retouch.size:
        picture = picture.resize(retouch.size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
