"""Ours beside another in rounds, as a row of a Markdown table; and rows read back: which fall short of what is wanted."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

HEADER = "| | ours | {other} | ratio (least to greatest) | wanted |\n|---|---|---|---|---|"
_WANTED = re.compile(r"^(≥|≤|>|<) (\d+(?:\.\d+)?)")
# The same in a sentence: "ratio 0.54 (0.49 to 0.61), wanted ≥ 0.5".
_SAID = re.compile(r"\bratio (\d+(?:\.\d+)?)\b[^|;]*\bwanted (≥|≤|>|<) (\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Figures of the same rounds; a ratio is ours by the other's of one round."""

    what: str
    ours: Sequence[float]
    others: Sequence[float]
    unit: str = ""
    wanted: str = ""  # of the ratio, such as "≥ 1.3"
    also: tuple[str, str] = ("", "")  # more words beside ours and the other's figure
    inverse: bool = False  # the ratio is the other's by ours: how many times as fast, of times

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.ours, self.others, strict=True)
        return [other / one if self.inverse else one / other for one, other in pairs]

    def row(self) -> str:
        ratios = self.ratios
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        ours, other = (
            f"{self._figure(values)} {more}".rstrip()
            for values, more in zip((self.ours, self.others), self.also, strict=True)
        )
        cells = (self.what, ours, other, spread, self.wanted)
        return f"| {' | '.join(cells)} |"

    def _figure(self, values: Sequence[float]) -> str:
        value = statistics.median(values)
        digits = 0 if value >= 100 else 1 if value >= 10 else 2
        return f"{value:,.{digits}f} {self.unit}".rstrip()


def in_turns(rounds: int, *sides: Callable[[], float]) -> tuple[list[float], ...]:
    """Every side once a round, the order turned round each time."""
    found: tuple[list[float], ...] = tuple([] for _ in sides)
    for index in range(rounds):
        order = list(enumerate(sides))
        for place, side in order if index % 2 == 0 else reversed(order):
            found[place].append(side())
    return found


def verdicts(text: str) -> Iterator[tuple[str, bool]]:
    """Of every row or sentence with something wanted: its words, and whether its median ratio holds it."""
    for line in text.splitlines():
        if said := _SAID.search(line):
            yield line, _holds(float(said[1]), said[2], float(said[3]))
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        wanted = _WANTED.match(cells[-1]) if line.startswith("|") and len(cells) >= 3 else None
        ratio = re.match(r"(\d+(?:\.\d+)?)\b", cells[-2]) if wanted else None
        if wanted and ratio:
            yield line, _holds(float(ratio[1]), wanted[1], float(wanted[2]))


def _holds(ratio: float, sign: str, bound: float) -> bool:
    match sign:
        case "≥":
            return ratio >= bound
        case "≤":
            return ratio <= bound
        case ">":
            return ratio > bound
        case _:
            return ratio < bound
