"""SQL as files: migrations in the order of their numbers, and queries by name.

What stands here is SQLite's, and most of it everybody's; `postgres/` has its own tables and what it says otherwise.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

POSTGRES = "postgres"
_FOLDER = Path(__file__).parent
_ENCODER = json.JSONEncoder(ensure_ascii=False)


@cache
def migrations(dialect: str = "") -> dict[int, str]:
    """Every migration by its number, which is the schema version (SQLite: PRAGMA user_version) it ends in.

    A file is `<number>-<date>-<what>.sql`. Forward only: a new number for every change.
    """
    files = sorted((_FOLDER / dialect / "migrations").glob("*.sql"))
    return {int(path.name.partition("-")[0]): path.read_text(encoding="utf-8") for path in files}


def schema_version(dialect: str = "") -> int:
    """The version that this code knows."""
    return max(migrations(dialect))


@cache
def queries(dialect: str = "") -> dict[str, str]:
    """Every query by the name in its `-- name:` line: those of `queries.sql`, and a dialect's own in place of them."""
    found = {} if not dialect else dict(queries())
    path = _FOLDER / dialect / "queries.sql"
    for block in path.read_text(encoding="utf-8").split("-- name: ")[1:]:
        name, _, text = block.partition("\n")
        found[name.strip()] = text.strip().rstrip(";")
    return found


def as_json(value: Any) -> str:
    return _ENCODER.encode(value)
