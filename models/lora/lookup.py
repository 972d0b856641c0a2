"""Which LoRAs of the library a text can mean, and which names are near one that means none."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from config.errors import InvalidRequest, NotFound
from models.lora import names
from models.lora.entry import LoraEntry
from models.lora.json_cursor import shown


def find(text: str, entries: Collection[LoraEntry], field: str = "name") -> LoraEntry:
    """By library name, stored file name, original file name or Hugging Face id.

    Raises NotFound with names that are near, InvalidRequest where several LoRAs are meant; both
    for `field`.
    """
    found = meant_by(text, entries)
    if not found:
        near = difflib.get_close_matches(names.name_of(text), [e.name for e in entries], n=3)
        also = f"did you mean {' or '.join(near)}?" if near else "GET /loras lists what is"
        raise NotFound.of(field, f"there is no LoRA {shown(text)} in the library; {also}")
    if len(found) > 1:
        which = ", ".join(sorted(e.name for e in found))
        raise InvalidRequest.of(field, f"{shown(text)} can mean {which}; send one of these")
    return found[0]


def meant_by(text: str, entries: Collection[LoraEntry]) -> list[LoraEntry]:
    """Every LoRA that a text can mean; the first rule that finds one decides."""
    if exact := [e for e in entries if e.name == text]:
        return exact
    if stored := names.STORED.fullmatch(text):
        return [e for e in entries if e.sha256 == stored[1]]
    if hub := names.hub_id(text):
        return [e for e in entries if any(_is_at(hub, place) for place in e.hub_ids)]
    wanted = text.casefold()
    if original := [e for e in entries if e.filename.casefold() == wanted]:
        return original
    if wanted.endswith(names.SUFFIX) or "/" in wanted or "\\" in wanted:
        return []  # a path means nothing, also where its letters are a name's
    return [e for e in entries if e.name == names.name_of(text)]


def _is_at(wanted: names.HubId, place: str) -> bool:
    return place == str(wanted) or (wanted.file is None and place.startswith(f"{wanted.repo}/"))
