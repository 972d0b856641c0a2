"""A LoRA of the library: what people call it, and what its file is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.lora.base_model import Base, Family
from models.lora.inspect import LoraInfo

SIDECAR_VERSION = 1
UPLOADED, FOUND, BUILTIN = "upload", "folder", "builtin"
HUB = "huggingface"
MAX_UNKNOWN_KEYS = 20  # of a file's, that are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraEntry:
    """`filename` is what its file was called where it came from; `path` is where it lies.

    `source` is one of the words above. `hub_ids` are the places on the Hub where the same bytes
    were found, as `owner/repo/file.safetensors`.
    """

    name: str
    filename: str
    sha256: str
    source: str
    created_at: str  # RFC 3339 UTC
    trigger_words: tuple[str, ...]
    info: LoraInfo
    path: Path
    hub_ids: tuple[str, ...] = ()

    @property
    def is_builtin(self) -> bool:
        return self.source == BUILTIN

    def to_json(self) -> dict[str, Any]:
        """For the file beside the LoRA: all but where it lies."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("path", "info")
        }
        info = dataclasses.replace(
            self.info, unknown_keys=self.info.unknown_keys[:MAX_UNKNOWN_KEYS]
        )
        return {"version": SIDECAR_VERSION, **values, "info": dataclasses.asdict(info)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], path: Path) -> LoraEntry:
        """Raises ValueError for what this version did not write."""
        values = dict(data)
        if values.pop("version", None) != SIDECAR_VERSION:
            raise ValueError("another version")
        try:
            info = dict(values.pop("info"))
            base = dict(info.pop("base"))
            base["family"] = Family(base["family"])
            described = LoraInfo(base=Base(**base), **_tuples(info))
            return cls(info=described, path=path, **_tuples(values))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a LoRA's facts: {error}") from error


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
