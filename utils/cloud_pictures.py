"""Pictures on their way to and from the cloud: files of requests as they came, answers as files of ours."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from config.catalog import ModelRow
from config.errors import NotFound, StorageUnavailable
from models.bfl_errors import MAY_COST, CloudError, CloudRefused
from models.bfl_request import MAX_PICTURE_BYTES, body_of
from models.types import GenerationRequest, ImageFile
from utils import images, metadata
from utils.input_pictures import FORMATS, MAX_PIXELS, in_words, reference_field
from utils.picture_header import read_header
from utils.png_pixels import require_pixels
from utils.worker.inspection import Inspection

ENGINE = "bfl"
PRECISION = "cloud"


def pixels_of(folder: Path, request: GenerationRequest) -> list[int]:
    """How many pixels each picture has that goes along. Raises FluxError. Blocks; for a thread."""
    return [_pixels(_read(folder, field, sha256)) for field, sha256 in _sent(request)]


def body_with(folder: Path, row: ModelRow, request: GenerationRequest, seed: int) -> dict[str, Any]:
    """The body for one picture with the files that go along, as they came.

    Raises FluxError naming the field. Blocks; for a thread.
    """
    pictures = [_read(folder, field, sha256) for field, sha256 in _sent(request)]
    mask = None if request.mask is None else _read(folder, "mask", request.mask)
    return body_of(row, request, seed, pictures, mask)


def _sent(request: GenerationRequest) -> list[tuple[str, str]]:
    """(field, content) of each picture that goes along, but for a mask."""
    looked_at = [(reference_field(i), each) for i, each in enumerate(request.reference_images)]
    return looked_at if request.image is None else [("image", request.image), *looked_at]


def _read(folder: Path, field: str, sha256: str) -> bytes:
    try:
        data = (folder / sha256).read_bytes()
    except FileNotFoundError as error:
        raise NotFound.of(
            field, f"the input picture with SHA-256 {sha256} is not here any more; send it again"
        ) from error
    except OSError as error:
        raise StorageUnavailable(f"{folder} cannot be read: {error.strerror}") from error
    if len(data) * 4 / 3 > MAX_PICTURE_BYTES:
        raise CloudRefused.of(
            field,
            f"has {len(data) / 2**20:.1f} MiB, and BFL takes {MAX_PICTURE_BYTES * 3 // 4 >> 20}; make it smaller",
        )
    return data


def _pixels(data: bytes) -> int:
    header = read_header(data)
    return 0 if header is None else header.width * header.height


def keep(
    data: bytes,
    row: ModelRow,
    request: GenerationRequest,
    *,
    job_id: str,
    index: int,
    output_dir: Path,
    inspection: Inspection,
) -> ImageFile:
    """Make the picture of an answer a file of ours, in staging, as it may be seen. Blocks; for a thread.

    Raises CloudError for what is no picture, NotSafe for one that is not given out, ModelUnavailable
    where nobody could look at it, OSError where it cannot be written.
    """
    verdict = inspection.judge(_decoded(data))
    picture = verdict.picture
    seed = request.seed + index
    origin = metadata.Origin(
        precision=PRECISION,
        engine=ENGINE,
        model_reason=f"drawn by BFL's {row.source}",
        nsfw_flagged=verdict.is_flagged,
    )
    encoded = images.encode(picture, request, seed=seed, origin=origin)
    filename = images.filename_of(job_id, index, request.output_format)
    images.stage(encoded, output_dir, filename)
    return ImageFile(
        filename=filename,
        seed=seed,
        width=picture.width,
        height=picture.height,
        size_bytes=len(encoded),
        nsfw_flagged=verdict.is_flagged,
    )


def _decoded(data: bytes) -> Any:
    from PIL import Image

    try:
        header = read_header(data)
        if header is None:
            raise ValueError("it is no PNG, JPEG or WebP")
        if header.width * header.height > MAX_PIXELS:
            raise ValueError(f"it has {header.width}x{header.height} px")
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            if sorted(file.size) != sorted((header.width, header.height)):
                raise ValueError("it tells two sizes")
            picture = file.convert("RGB")
        require_pixels(data)
        return picture
    except MemoryError:
        raise
    except Exception as error:  # what decoders raise for damaged files is of many kinds
        raise CloudError(
            f"what BFL delivers cannot be read as a picture ({in_words(error)[:200]}); {MAY_COST}"
        ) from error
