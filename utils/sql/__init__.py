"""SQL as files: the schema, and queries by name."""

from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent

# PRAGMA user_version of a database with this schema.
SCHEMA_VERSION = 1


def schema() -> str:
    return (_FOLDER / "schema.sql").read_text(encoding="utf-8")


@cache
def queries() -> dict[str, str]:
    """Every query of queries.sql by the name in its `-- name:` line."""
    found = {}
    for block in (_FOLDER / "queries.sql").read_text(encoding="utf-8").split("-- name: ")[1:]:
        name, _, text = block.partition("\n")
        found[name.strip()] = text.strip().rstrip(";")
    return found
