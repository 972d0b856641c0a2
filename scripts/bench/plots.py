"""Curves as small SVG files: the same bytes from the same figures, readable on a light page and on a dark one."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from xml.sax.saxutils import escape

# Matplotlib writes this colour; in the file it is one that follows the reader's page.
_INK = "#123457"
_STYLE = "<style>:root { --ink: #24292f } @media (prefers-color-scheme: dark) { :root { --ink: #d7dde3 } }</style>"
WIDTH = 8.4  # inches
COLOURS = ("#3b82c4", "#d97706", "#2f9e6e", "#a855c7")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line through medians, with the least and the greatest of each place around it."""

    name: str
    places: Sequence[float]
    values: Sequence[Sequence[float]]  # of the rounds, by place


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    along: str  # what the axes are, with units
    up: str
    curves: Sequence[Curve]
    words: Sequence[str] | None = None  # of the places, where numbers say too little


def draw(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Writes the file, or leaves what is there when that cannot be done."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "flux-api",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        **{key: _INK for key in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")},
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure, axes = pyplot.subplots(
            1, len(panels), figsize=(WIDTH, 2.8), squeeze=False, layout="constrained"
        )
        figure.suptitle(title)
        for axis, panel in zip(axes[0], panels, strict=True):
            _fill(axis, panel)
        draft = path.with_name(path.name + ".part")
        figure.savefig(
            draft, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
        pyplot.close(figure)
    draft.write_text(_smaller(draft.read_text(encoding="utf-8"), title), encoding="utf-8")
    os.replace(draft, path)


def _smaller(svg: str, title: str) -> str:
    """Without what nobody looks at, in colours that follow the page."""
    svg = re.sub(
        r" <metadata>.*?</metadata>\n",
        f"<title>{escape(title)}</title>{_STYLE}\n",
        svg,
        count=1,
        flags=re.DOTALL,
    )
    svg = re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.1f}", svg)
    return svg.replace(_INK, "var(--ink)")


def _fill(axis: Any, panel: Panel) -> None:
    for curve, colour in zip(panel.curves, COLOURS, strict=False):
        middle = [median(values) for values in curve.values]
        axis.plot(curve.places, middle, color=colour, marker="o", markersize=3, label=curve.name)
        axis.fill_between(
            curve.places,
            [min(values) for values in curve.values],
            [max(values) for values in curve.values],
            color=colour, alpha=0.2, linewidth=0,
        )  # fmt: skip
    axis.set_xlabel(panel.along)
    axis.set_ylabel(panel.up)
    most = max(max(values) for curve in panel.curves for values in curve.values)
    axis.set_ylim(0, 1.08 * most)
    axis.set_xlim(left=0)
    axis.grid(color=_INK, alpha=0.15, linewidth=0.5)
    if panel.words is not None:
        axis.set_xticks(panel.curves[0].places, panel.words)
    if len(panel.curves) > 1:
        axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
