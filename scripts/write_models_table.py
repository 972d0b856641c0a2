"""Writes the table of docs/models.md from the catalog: what each model can, and why not what it cannot.

Run `python -m scripts.write_models_table` after a change of config/models.toml or config/reasons.toml.
"""

from __future__ import annotations

from collections.abc import Iterable

from config.abilities import ABILITIES, abilities, load_reasons
from config.catalog import ModelRow, load_catalog
from config.settings import ROOT

DOCUMENT = ROOT / "docs" / "models.md"
BEGIN = "<!-- the table: python -m scripts.write_models_table -->"
END = "<!-- end of the table -->"
_TITLES = {"lora": "LoRA", "fp4": "FP4", "bf16": "BF16", "cpu": "CPU"}


def table(rows: Iterable[ModelRow]) -> str:
    """Markdown: a line for each model, and the reasons beneath, counted."""
    reasons = load_reasons()
    numbers: dict[str, int] = {}
    lines = [
        f"| model | {' | '.join(_TITLES.get(name, name) for name in ABILITIES)} |",
        f"|---{'|---' * len(ABILITIES)}|",
    ]
    for row in rows:
        cells = [
            _cell(row, ability, reason, numbers)
            for ability, reason in abilities(row, reasons).items()
        ]
        lines.append(f"| `{row.id}` | {' | '.join(cells)} |")
    lines.append("")
    lines += [f"{number}. {reason}" for reason, number in numbers.items()]
    return "\n".join(lines)


def _cell(row: ModelRow, ability: str, reason: str | None, numbers: dict[str, int]) -> str:
    if reason is not None:
        return f"no ({numbers.setdefault(reason, len(numbers) + 1)})"
    if ability in row.requires:
        return "yes, must"
    if ability in row.memory_gib:
        return f"yes, {row.memory_gib[ability]:g} GiB"
    if ability == "references" and row.max_references:
        return f"yes, {row.max_references}"
    return "yes"


def document() -> str:
    """The whole file, with the table as it is to be."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(load_catalog())}\n\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
