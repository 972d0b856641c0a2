"""What a LoRA may be called: by a client's file name, by people, and on the Hugging Face Hub.

No name becomes a path. A file lies under the SHA-256 of its bytes; names are shown and compared.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass

from config.errors import InvalidRequest
from models.lora.errors import NotSafetensors
from models.lora.json_cursor import shown

SUFFIX = ".safetensors"
MAX_FILENAME_CHARACTERS = 255
MAX_HUB_ID_CHARACTERS = 400
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
STORED = re.compile(r"([0-9a-f]{64})\.safetensors")
_MAX_NAME_CHARACTERS = 64
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_MAX_PARTS = 6


@dataclass(frozen=True, slots=True)
class HubId:
    """`owner/repo` on the Hugging Face Hub, and perhaps a file in it."""

    repo: str
    file: str | None = None

    def __str__(self) -> str:
        return self.repo if self.file is None else f"{self.repo}/{self.file}"


def hub_id(text: str) -> HubId | None:
    """`owner/repo` or `owner/repo/folder/file.safetensors`; None for anything else, URLs and paths too."""
    parts = text.split("/")
    if len(text) > MAX_HUB_ID_CHARACTERS or not 2 <= len(parts) <= _MAX_PARTS:
        return None
    if not all(_PART.fullmatch(part) and ".." not in part for part in parts):
        return None
    if len(parts) == 2:
        return None if parts[1].endswith((SUFFIX, ".git")) else HubId(text)
    return HubId("/".join(parts[:2]), "/".join(parts[2:])) if parts[-1].endswith(SUFFIX) else None


def clean_filename(text: str) -> str:
    """A client's name of a file as it is shown: no folders, one form of Unicode.

    Raises InvalidRequest for what is no name, NotSafetensors for one that does not end so.
    """
    name = unicodedata.normalize("NFC", re.split(r"[/\\]", text)[-1]).strip()
    bad = next((c for c in name if unicodedata.category(c) in ("Cc", "Cs")), None)
    if bad is not None:
        raise InvalidRequest.of("filename", f"holds the character U+{ord(bad):04X}; remove it")
    name = "".join(c for c in name if c.isprintable())
    if len(name) > MAX_FILENAME_CHARACTERS:
        raise InvalidRequest.of(
            "filename", f"is {len(name)} long; at most {MAX_FILENAME_CHARACTERS} are taken"
        )
    if not name.lower().endswith(SUFFIX):
        raise NotSafetensors(
            f"{shown(name)} is not named {SUFFIX}; LoRAs are taken as {SUFFIX} alone, never as pickle "
            "(.pt, .bin, .ckpt)"
        )
    return name


def name_of(filename: str) -> str:
    """The library's name for a file: its stem in lower-case letters, digits, - and _."""
    stem = filename[: -len(SUFFIX)] if filename.lower().endswith(SUFFIX) else filename
    plain = unicodedata.normalize("NFKD", stem.casefold()).encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9_]+", "-", plain).strip("-_")
    return name[:_MAX_NAME_CHARACTERS].rstrip("-_") or "lora"


def distinct(name: str, taken: Collection[str]) -> str:
    """The name, with a number after it where it is taken."""
    if name not in taken:
        return name
    number = 2
    while (numbered := f"{name[: _MAX_NAME_CHARACTERS - 8]}-{number}") in taken:
        number += 1
    return numbered
