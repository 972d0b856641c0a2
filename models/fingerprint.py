"""Which weights a component of a diffusers folder has: its files, and what tells them from others."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from config.errors import ModelUnavailable

_HASH_WHOLE_BYTES = 256 * 2**20
_SAMPLES, _SAMPLE_BYTES = 64, 64 * 2**10
_SHA256 = re.compile(r"[0-9a-f]{64}")


def weight_files(folder: Path, component: str) -> list[Path]:
    """The safetensors files of a component, in order. Raises ModelUnavailable for none, or one missing."""
    part = folder / component
    for index in sorted(part.glob("*.safetensors.index.json")):
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelUnavailable(
                f"{folder.name}/{component}/{index.name} is no index of safetensors files; fetch it again"
            ) from error
        files = [part / Path(name).name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelUnavailable(
                f"{folder.name}/{component}: {index.name} names {', '.join(missing)}, "
                "which are not there; fetch the model again"
            )
        return files
    files = sorted(part.glob("*.safetensors"))
    if len(files) != 1:
        raise ModelUnavailable(
            f"{folder.name}/{component} has {len(files)} safetensors files and no index; "
            "a diffusers folder has one file, or several with an index"
        )
    return files


def fingerprint(folder: Path, components: Iterable[str]) -> dict[str, dict[str, object]]:
    """Size and digest of every weight file, by its path in `folder`.

    `sha256` is of the whole file: the Hub's own (its cache names files so), or computed for files of
    up to 256 MiB. For larger ones `sampled_sha256` is of 64 KiB at 64 places and the end.
    """
    files = {}
    for component in components:
        for file in weight_files(folder, component):
            size = file.stat().st_size
            known = file.resolve().name if file.is_symlink() else ""
            if _SHA256.fullmatch(known):
                digest = {"sha256": known}
            elif size <= _HASH_WHOLE_BYTES:
                digest = {"sha256": file_sha256(file)}
            else:
                digest = {"sampled_sha256": _sampled_sha256(file, size)}
            files[f"{component}/{file.name}"] = {"size": size, **digest}
    return files


def file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sampled_sha256(file: Path, size: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for place in range(_SAMPLES + 1):
            stream.seek(min(place * (size // _SAMPLES), size - _SAMPLE_BYTES))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()
