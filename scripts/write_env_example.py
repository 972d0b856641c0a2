"""Writes `.env.example` from the settings tree: every setting, what it does, its default.

Run `python -m scripts.write_env_example` after a setting was added.
"""

from pathlib import Path
from typing import Any

from config.settings import ROOT, SECTIONS, leaves

HEADER = """\
# Settings of the services. Copy to .env and uncomment what you change; .env is read at start.
# Order, first wins: the environment, .env, config/<service>.toml, the defaults shown here.
# A FLUX_* name that is not in this list is refused at start.
#
# Ports by service, for start.sh and the start scripts: BF16_PORT (8001), FP4_PORT (8000), PAGE_PORT (9000).
# Another TOML file for a service: FLUX_CONFIG=/path/to/file.toml
"""


def env_example() -> str:
    """The whole file as text."""
    lines = [HEADER]
    section = None
    for name, key, variable in leaves():
        if name != section:
            section = name
            lines.append(f"# --- {section} ---\n")
        field = SECTIONS[name].model_fields[key]
        lines.append(
            f"# {field.description}\n# {variable}={_shown(field.get_default(call_default_factory=True))}\n"
        )
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Path):
        return str(value.relative_to(ROOT))
    return str(value)


if __name__ == "__main__":
    (ROOT / ".env.example").write_text(env_example(), encoding="utf-8")
