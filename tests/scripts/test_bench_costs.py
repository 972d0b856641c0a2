"""How cost grows, as plots: the same file from the same figures, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts.bench import costs, document
from scripts.bench.plots import Curve, Panel, draw

ROUNDS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


def growth(name: str = "steps") -> costs.Growth:
    return costs.Growth(
        name=name,
        title="Steps & time",
        along="steps",
        places=(1, 2),
        words=("1", "2"),
        panels=[("ms", {"": ROUNDS}), ("MiB", {"": [[512.0], [600.0]]})],
        seen="It grows.",
    )


def test_plot_has_the_same_bytes_twice_and_no_date(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        draw(tmp_path / name, "t", [Panel(along="x", up="y", curves=[Curve(name="", places=(1, 2), values=ROUNDS)])])  # fmt: skip
    one, two = ((tmp_path / name).read_bytes() for name in ("one.svg", "two.svg"))
    assert one == two and len(one) < 40_000
    assert b"dc:date" not in one and sorted(p.name for p in tmp_path.iterdir()) == ["one.svg", "two.svg"]  # fmt: skip


def test_plot_is_read_on_a_light_and_on_a_dark_page(tmp_path: Path) -> None:
    growth().draw(tmp_path)
    text = (tmp_path / "steps.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert "prefers-color-scheme: dark" in text and "#123457" not in text
    assert root.findtext("{http://www.w3.org/2000/svg}title") == "Steps & time"
    words = {each.text for each in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"steps", "ms", "MiB", "Steps & time"} <= words


def test_table_has_medians_and_their_spread() -> None:
    assert growth().table().splitlines() == [
        "| steps | ms | MiB |",
        "|---|---|---|",
        "| 1 | 2.00 (1.00 to 3.00) | 512 |",
        "| 2 | 5.00 (4.00 to 6.00) | 600 |",
    ]


def test_page_shows_the_plot_with_what_is_seen_and_is_the_same_when_written_again(
    tmp_path: Path,
) -> None:
    page, folder = tmp_path / "costs.md", tmp_path / "costs"
    page.write_text("## Steps\n\n<!-- figures: steps -->\n<!-- end: steps -->\n")
    costs.write([growth()], "today, here", folder, page)
    first = page.read_text()
    assert "![Steps & time](costs/steps.svg)" in first and "It grows." in first
    costs.write([growth()], "today, here", folder, page)
    assert page.read_text() == first and [p.name for p in folder.iterdir()] == ["steps.svg"]


def test_page_has_a_place_for_every_plot() -> None:
    text = costs.PAGE.read_text(encoding="utf-8")
    for name in costs.GROWTHS:
        start, end = f"<!-- figures: {name} -->", f"<!-- end: {name} -->"
        assert text.count(start) == text.count(end) == 1 and text.index(start) < text.index(end)


def test_page_without_a_place_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "costs.md"
    page.write_text("nothing")
    with pytest.raises(document.NoPlace, match="figures of steps"):
        costs.write([growth()], "today", tmp_path / "costs", page)
    assert page.read_text() == "nothing"


@pytest.mark.parametrize(
    ("rates", "words"), [([[1.0], [1.0]], "1 client"), ([[1.0], [2.0]], "2 clients")]
)
def test_machine_is_busy_where_more_clients_gain_nothing(
    rates: list[list[float]], words: str
) -> None:
    assert costs._busy((1, 2), rates) == words
