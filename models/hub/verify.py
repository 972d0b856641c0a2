"""Whether a model's files on this machine are still what they were when they came."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from models.hub.download import CHUNK_BYTES

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")


def damaged(folder: Path, on_file: Callable[[str], None] = lambda name: None) -> list[str]:
    """The files of a snapshot whose bytes no longer have the digest that their blob is named by."""
    wrong = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = str(path.relative_to(folder))
        on_file(name)
        blob = path.resolve()
        if not is_sound(blob):
            wrong.append(name)
    return wrong


def is_sound(blob: Path) -> bool:
    """Whether a blob's bytes are those of its name; one that has no digest for a name is taken as it is."""
    if _SHA256.fullmatch(blob.name):
        return _digest(blob, hashlib.sha256()) == blob.name
    if _SHA1.fullmatch(blob.name):
        header = f"blob {blob.stat().st_size}\0".encode()
        return _digest(blob, hashlib.sha1(header, usedforsecurity=False)) == blob.name
    return True


def _digest(path: Path, digest: hashlib._Hash) -> str:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
