"""The table in docs/models.md is the catalog's."""

from __future__ import annotations

import re

from config.catalog import load_catalog
from scripts.write_models_table import DOCUMENT, document, table


def test_document_is_up_to_date() -> None:
    assert (
        DOCUMENT.read_text(encoding="utf-8") == document()
    ), "run `python -m scripts.write_models_table`"


def test_table_has_every_model_and_every_reason_it_counts() -> None:
    text = table(load_catalog())
    rows = re.findall(r"^\| `([^`]+)` \|", text, re.M)
    assert rows == list(load_catalog().ids)
    used = {int(number) for number in re.findall(r"no \((\d+)\)", text)}
    explained = [int(number) for number in re.findall(r"^(\d+)\. ", text, re.M)]
    assert explained == sorted(used) == list(range(1, len(used) + 1))
