"""Pictures as files: encoded with their metadata, written so that nobody sees half of one.

A worker writes into the staging folder and syncs; the parent renames into the output folder and
commits the row. A crash between the two leaves a file in staging, which the next start empties.
"""

import io
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.types import MAX_IMAGES, GenerationRequest, ImageFile, OutputFormat
from utils import metadata, png

log = logging.getLogger(__name__)

STAGING = ".staging"
THUMBNAILS = ".thumbnails"
THUMBNAIL_PX = 256
_EXIF_USER_COMMENT = 0x9286
_EXIF_IFD = 0x8769


def encode(image: Any, request: GenerationRequest, *, seed: int, origin: metadata.Origin) -> bytes:
    """A Pillow RGB image as bytes of the request's format, with both metadata texts."""
    parameters = metadata.infotext(request, seed=seed)
    described = json.dumps(
        metadata.describe(request, seed=seed, origin=origin),
        ensure_ascii=False,
    )
    if request.output_format is OutputFormat.PNG:
        texts = ((metadata.PARAMETERS_KEY, parameters), (metadata.REQUEST_KEY, described))
        return png.encode_rgb(image, texts)
    buffer = io.BytesIO()
    image.save(
        buffer,
        request.output_format.value.upper(),
        quality=request.output_quality,
        exif=_exif(f"{parameters}\n{metadata.REQUEST_KEY}: {described}"),
    )
    return buffer.getvalue()


def filename_of(job_id: str, index: int, output_format: OutputFormat) -> str:
    """The name follows from the job, so that a job run twice leaves one file."""
    return f"{job_id}-{index}{output_format.suffix}"


def job_of(filename: str) -> str:
    """The job that a name follows from."""
    return filename.rpartition("-")[0]


def stage(data: bytes, output_dir: Path, filename: str) -> None:
    """Write into the staging folder and sync to disk."""
    folder = output_dir / STAGING
    folder.mkdir(exist_ok=True)  # the folder above it is the operator's to put back
    path = folder / filename
    try:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def publish(output_dir: Path, images: tuple[ImageFile, ...]) -> None:
    """Rename staged files into the output folder and sync the folder. May be done again after a failure."""
    for image in images:
        staged, published = output_dir / STAGING / image.filename, output_dir / image.filename
        if staged.exists() or not published.exists():
            os.replace(staged, published)
    sync_folder(output_dir)


def rename_staged(output_dir: Path, before: str, after: str) -> None:
    if before != after:
        os.replace(output_dir / STAGING / before, output_dir / STAGING / after)


def staged_jobs(output_dir: Path) -> set[str]:
    """The ids of jobs that have files in staging."""
    folder = output_dir / STAGING
    return {path.name.partition("-")[0] for path in folder.iterdir()} if folder.is_dir() else set()


def discard_staged(output_dir: Path, job_id: str) -> None:
    """Remove what a job left in staging."""
    _discard((output_dir / STAGING).glob(f"{job_id}-*"))


def discard_published(output_dir: Path, job_id: str, first: int = 0) -> None:
    """Remove a job's files from `first` on from the output folder: its result could not be committed."""
    # By the names it can have: the folder may hold very many pictures.
    _discard(
        output_dir / filename_of(job_id, index, output_format)
        for index in range(first, MAX_IMAGES)
        for output_format in OutputFormat
    )


def _discard(paths: Iterable[Path]) -> None:
    """A folder that became read-only keeps its files; the job that left them goes on all the same."""
    try:
        for path in paths:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("files stay behind: %s", error, extra={"action": "discard_failed"})


def thumbnail(output_dir: Path, filename: str) -> Path | None:
    """The path of the picture's thumbnail (JPEG, at most 256 px a side), made when first asked for.

    None when the picture cannot be decoded.
    """
    folder = output_dir / THUMBNAILS
    path = folder / f"{filename}.jpg"
    if not path.exists():
        from PIL import Image

        folder.mkdir(parents=True, exist_ok=True)
        try:
            with Image.open(output_dir / filename, formats=("PNG", "JPEG", "WEBP")) as image:
                small = image.convert("RGB")
        except (OSError, SyntaxError):  # what Pillow raises for damaged files
            return None
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        temporary = path.with_suffix(f".{os.getpid()}.{id(small)}.tmp")
        small.save(temporary, "JPEG", quality=85)
        os.replace(temporary, path)
    return path


def remove(output_dir: Path, filename: str) -> None:
    (output_dir / filename).unlink(missing_ok=True)
    (output_dir / THUMBNAILS / f"{filename}.jpg").unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exif(comment: str) -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_EXIF_USER_COMMENT] = b"UNICODE\0" + comment.encode("utf-16-be")
    return exif
