"""SQL as files: migrations in the order of their numbers, and queries by name."""

import json
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_ENCODER = json.JSONEncoder(ensure_ascii=False)


@cache
def migrations() -> dict[int, str]:
    """Every migration by its number, which is the schema version (PRAGMA user_version) it ends in.

    A file is `<number>-<date>-<what>.sql`. Forward only: a new number for every change.
    """
    files = sorted((_FOLDER / "migrations").glob("*.sql"))
    return {int(path.name.partition("-")[0]): path.read_text(encoding="utf-8") for path in files}


def schema_version() -> int:
    """The version that this code knows."""
    return max(migrations())


@cache
def queries() -> dict[str, str]:
    """Every query of queries.sql by the name in its `-- name:` line."""
    found = {}
    for block in (_FOLDER / "queries.sql").read_text(encoding="utf-8").split("-- name: ")[1:]:
        name, _, text = block.partition("\n")
        found[name.strip()] = text.strip().rstrip(";")
    return found


def as_json(value: Any) -> str:
    return _ENCODER.encode(value)
