"""A walk through a header's JSON from left to right, building no tree.

What a JSON text costs in memory is up to whoever wrote it: four megabytes of empty objects or of nested
lists are fifty as values of Python, or the end of the stack. Here the caller takes one key at a time and
may stop; strings are read by the standard library's scanner, and only a tensor's entry, which is short
and has no objects in it, is parsed as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from json.decoder import scanstring
from typing import Any

from models.lora.errors import BadLoraFile

_ENTRY = re.compile(r"\{[^{}]{0,512}\}")
_SPACE = re.compile(r"[ \t\n\r]*")


def shown(text: str) -> str:
    """A name from a file, for a message: quoted, escaped, cut short."""
    escaped = ascii(text[:80])
    return escaped if len(text) <= 80 and len(escaped) <= 90 else f"{escaped[:80]}…'"


class Cursor:
    """Walks the header's JSON from left to right, one key at a time, building no tree."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def keys(self) -> Iterator[str]:
        """The keys of the object that starts here; the caller reads each value before the next."""
        self._take("{")
        seen: set[str] = set()
        if self._peek() == "}":
            self.at += 1
            return
        while True:
            key = self.string()
            if key in seen:
                raise BadLoraFile(f"the header has {shown(key)} twice")
            seen.add(key)
            self._take(":")
            yield key
            if self._take(",}") == "}":
                return

    def string(self) -> str:
        self._take('"')
        try:
            value, self.at = scanstring(self.text, self.at, True)
        except ValueError as error:
            raise BadLoraFile(
                "the header is no JSON: a string does not end or is broken"
            ) from error
        return value

    def at_text(self) -> bool:
        return self._peek() == '"'

    def entry(self, name: str) -> list[tuple[str, Any]]:
        """A tensor's entry as pairs."""
        self._peek()
        match = _ENTRY.match(self.text, self.at)
        if match is None:
            raise BadLoraFile(f"tensor {shown(name)} is not described as safetensors do")
        self.at = match.end()
        try:
            return _PAIRS.decode(match[0])
        except (ValueError, RecursionError) as error:
            raise BadLoraFile(f"the entry of tensor {shown(name)} is no JSON") from error

    def end(self) -> None:
        if self._peek():
            raise BadLoraFile("the header goes on after its last brace")

    def _peek(self) -> str:
        self.at = _SPACE.match(self.text, self.at).end()
        return self.text[self.at : self.at + 1]

    def _take(self, allowed: str) -> str:
        found = self._peek()
        if not found or found not in allowed:
            wanted = " or ".join(allowed)
            raise BadLoraFile(
                f"the header is no JSON: {wanted} expected at character {self.at}, "
                + (f"found {ascii(found)}" if found else "where it ends")
            )
        self.at += 1
        return found


def _no_constant(name: str) -> None:
    raise ValueError(name)


# One for all entries: `json.loads` would make one for each.
_PAIRS = json.JSONDecoder(object_pairs_hook=list, parse_constant=_no_constant)
