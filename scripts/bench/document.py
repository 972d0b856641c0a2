"""Figures in `docs/benchmarks.md`: what stands between a part's two comments is replaced by its newest run.

    <!-- figures: png -->
    ...
    <!-- end: png -->

What a part prints becomes its figures: its tables as they are; of a part that prints none, every line
`what: found` a row. `not run: what: why` stays a sentence. The rest is for whoever watches the run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from config.settings import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
_NOT_RUN = re.compile(r"^not run: ", re.IGNORECASE)
_ROW = re.compile(r"^(?P<what>[^|:\[]{3,120}): (?=.*\d)(?P<found>\S.*)$")


class NoPlace(Exception):
    """The page has no place for a part's figures, or a broken one."""


def figures(output: str) -> str:
    """The Markdown of a part's output; empty when it says nothing that can be shown."""
    lines = output.splitlines()
    if any(line.startswith("|") for line in lines):
        return _tables(lines)
    rows = [_ROW.match(line) for line in lines]
    cells = [f"| {row['what']} | {row['found']} |" for row in rows if row]
    return "\n".join(["| | |", "|---|---|", *cells]) if cells else ""


def _tables(lines: Iterable[str]) -> str:
    """Tables with an empty line between two, and what was not run below them."""
    blocks: list[list[str]] = []
    remarks: list[str] = []
    is_within = False
    for line in lines:
        if _NOT_RUN.match(line):
            remarks.append(f"Not run: {line.partition(': ')[2]}.")
            continue  # within a table it is a row that is missing, and does not end it
        if line.startswith("|"):
            if not is_within:
                blocks.append([])
            blocks[-1].append(line)
        is_within = line.startswith("|")
    shown = ["\n".join(block) for block in blocks]
    return "\n\n".join([*shown, *([" ".join(remarks)] if remarks else [])])


def write(name: str, text: str, page: Path = PAGE) -> bool:
    """Puts the figures where they belong; False when they are there already. Raises NoPlace."""
    before = page.read_text(encoding="utf-8")
    start, end = f"<!-- figures: {name} -->", f"<!-- end: {name} -->"
    if (
        before.count(start) != 1
        or before.count(end) != 1
        or before.index(start) > before.index(end)
    ):
        raise NoPlace(
            f"{page.name} must have {start} and {end} once each, in this order, around the figures of {name}"
        )
    head, _, rest = before.partition(start)
    _, _, tail = rest.partition(end)
    after = f"{head}{start}\n\n{text.strip()}\n\n{end}{tail}"
    if after == before:
        return False
    draft = page.with_name(page.name + ".part")
    draft.write_text(after, encoding="utf-8")
    os.replace(draft, page)
    return True
