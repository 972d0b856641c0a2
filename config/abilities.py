"""What each model can, and why not what it cannot: facts of its row, with words from `reasons.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from config.catalog import ModelRow
from config.errors import ConfigurationError
from config.settings import ROOT

# In the order of docs/models.md.
ABILITIES = ("text", "image", "mask", "references", "lora", "fp4", "bf16", "cpu")

Reasons = Mapping[str, Any]


def can(row: ModelRow, ability: str) -> bool:
    """Whether the model can, on a machine that has what it needs."""
    if ability in ("text", "image", "mask", "references"):
        return ability in row.ways
    if ability == "lora":
        return row.loras
    if ability == "cpu":
        return row.cloud is None and row.device == "any"
    return row.cloud is None and ability in row.memory_gib


def abilities(row: ModelRow, reasons: Reasons) -> dict[str, str | None]:
    """By ability: None where the model can, else why it cannot."""
    return {
        ability: None if can(row, ability) else why_not(row, ability, reasons)
        for ability in ABILITIES
    }


def why_not(row: ModelRow, ability: str, reasons: Reasons) -> str:
    """Raises ConfigurationError where nobody has said it."""
    for table in (reasons.get("model", {}).get(row.id, {}), reasons.get(row.family, {})):
        if ability in table:
            return table[ability]
    raise ConfigurationError(
        f"config/reasons.toml does not say why {row.id} (family {row.family}) has no {ability}"
    )


def load_reasons(path: Path = ROOT / "config" / "reasons.toml") -> Reasons:
    """Raises ConfigurationError for a file that is no TOML."""
    try:
        return MappingProxyType(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
