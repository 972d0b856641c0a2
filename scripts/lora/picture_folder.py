"""Pictures to learn from: a folder with `name.png` and, beside it, its caption in `name.txt`.

A picture that the model itself has drawn, and somebody redrawn, may have its seed in `name.seed`. It is
then trained with the very noise it came from, as straight lines from that noise to the new picture: the
LoRA learns the redrawing alone, and the same seed gives the same scene with it and without it.

Every picture is scaled and cut around its middle to sides that the model takes, multiples of 16, so
that its area is that of a square of the wanted resolution and its shape stays nearly what it was.
"""

import hashlib
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SIDE_STEP_PX = 16
MIN_SIDE_PX = 64
MAX_ENLARGEMENT = 2.0  # more than that, and a LoRA learns blur
MAX_PICTURE_PIXELS = 100_000_000
NAMED_IN_ERRORS = 5  # files


class TrainingDataError(ValueError):
    """A folder that nothing can be learned from; the message names the file and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One picture on disk, its caption, and the size it is trained at."""

    path: Path
    caption: str
    size: tuple[int, int]  # width, height in pixels
    seed: int | None = None  # of the noise that the model drew it from

    def open(self) -> Image.Image:
        """Return the picture as RGB of `size`."""
        with Image.open(self.path) as file:
            picture = _plain(file)
        if picture.size == self.size:
            return picture
        return ImageOps.fit(picture, self.size, Image.Resampling.LANCZOS)


def read_folder(
    folder: Path, *, resolution_px: int | None, caption: str | None = None
) -> list[Example]:
    """Return the examples of `folder` in the order of their names.

    With `resolution_px` None pictures keep their size but for what exceeds a multiple of 16.
    `caption` stands for a caption file that is not there. Raises TrainingDataError.
    """
    if not folder.is_dir():
        raise TrainingDataError(f"{folder} is no folder; give one with pictures and captions")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise TrainingDataError(
            f"{folder} holds no pictures; put name{SUFFIXES[0]} and its caption name.txt there "
            f"({', '.join(SUFFIXES)})"
        )
    _check_names(paths)
    captions = [_caption(path, caption) for path in paths]
    missing = [path.name for path, text in zip(paths, captions, strict=True) if not text]
    if missing:
        raise TrainingDataError(
            f"{len(missing)} of {len(paths)} pictures in {folder} have no caption: "
            f"{_some(missing)}; write one into a text file of the picture's name, as in "
            f"{Path(missing[0]).stem}.txt, or give --caption for all that have none"
        )
    return [
        Example(
            path=path,
            caption=text,
            size=_size(path, resolution_px),
            seed=_seed(path, resolution_px),
        )
        for path, text in zip(paths, captions, strict=True)
    ]


def fingerprint(examples: list[Example]) -> str:
    """Return a digest of what the examples show and say, and of their order."""
    digest = hashlib.sha256()
    for example in examples:
        facts = (example.path.name, example.caption, example.size, example.seed)
        digest.update(repr(facts).encode())
        digest.update(hashlib.sha256(example.path.read_bytes()).digest())
    return digest.hexdigest()


def training_size(size: tuple[int, int], resolution_px: int | None) -> tuple[int, int]:
    """Return the width and height at which a picture of `size` is trained."""
    width, height = size
    scale = 1.0 if resolution_px is None else resolution_px / math.sqrt(width * height)
    # what fits without scaling is cut; what is scaled may as well be rounded
    whole = math.floor if resolution_px is None else round
    return (
        max(1, whole(width * scale / SIDE_STEP_PX)) * SIDE_STEP_PX,
        max(1, whole(height * scale / SIDE_STEP_PX)) * SIDE_STEP_PX,
    )


def _size(path: Path, resolution_px: int | None) -> tuple[int, int]:
    try:
        with Image.open(path) as file:
            if file.width * file.height > MAX_PICTURE_PIXELS:
                raise TrainingDataError(
                    f"{path} has {file.width} x {file.height} pixels, more than "
                    f"{MAX_PICTURE_PIXELS:,}; make it smaller"
                )
            picture = _plain(file)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        if isinstance(error, TrainingDataError):
            raise
        raise TrainingDataError(
            f"{path} is no picture that can be read ({error}); replace or remove it"
        ) from error
    except Image.DecompressionBombError as error:
        raise TrainingDataError(f"{path} is too large ({error}); make it smaller") from error
    width, height = training_size(picture.size, resolution_px)
    enlargement = max(width / picture.width, height / picture.height)
    if min(picture.size) < MIN_SIDE_PX or enlargement > MAX_ENLARGEMENT:
        raise TrainingDataError(
            f"{path} is too small with {picture.width} x {picture.height} pixels to be trained at "
            f"{width} x {height}; use a larger picture or a lower --resolution "
            f"(sides of {MIN_SIDE_PX} pixels or more, enlarged {MAX_ENLARGEMENT:g} times at most)"
        )
    return width, height


def _plain(file: Image.Image) -> Image.Image:
    """The whole picture upright in RGB, on white where it is transparent."""
    file.load()
    upright = ImageOps.exif_transpose(file)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return upright.convert("RGB")


def _caption(path: Path, otherwise: str | None) -> str:
    text_path = path.with_suffix(".txt")
    if not text_path.exists():
        return (otherwise or "").strip()
    try:
        return " ".join(text_path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise TrainingDataError(f"{text_path} is not UTF-8 text; save it as UTF-8") from error


def _seed(path: Path, resolution_px: int | None) -> int | None:
    seed_path = path.with_suffix(".seed")
    if not seed_path.exists():
        return None
    text = seed_path.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"\d{1,18}", text):
        raise TrainingDataError(
            f"{seed_path} holds {text[:40]!r}; write the number the picture was drawn from, or "
            "remove the file"
        )
    if resolution_px is not None:
        raise TrainingDataError(
            f"{path.name} has a seed, whose noise is of the size it was drawn at; train with "
            "--resolution native, or remove the .seed files"
        )
    return int(text)


def _check_names(paths: list[Path]) -> None:
    """Two pictures of one stem would share a caption."""
    counts = Counter(path.stem for path in paths)
    twice = sorted(stem for stem, count in counts.items() if count > 1)
    if twice:
        raise TrainingDataError(
            f"several pictures are named {_some(twice)} but for their ending; rename them, as one "
            "caption file cannot tell them apart"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:NAMED_IN_ERRORS])
    return shown if len(names) <= NAMED_IN_ERRORS else f"{shown} and others"
