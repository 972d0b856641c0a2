"""What models can: facts of rows, and a reason for each that cannot."""

from __future__ import annotations

import pytest

from config.abilities import ABILITIES, abilities, can, load_reasons, why_not
from config.catalog import load_catalog
from config.errors import ConfigurationError

CATALOG = load_catalog()
REASONS = load_reasons()


@pytest.mark.parametrize("row", list(CATALOG), ids=lambda row: row.id)
def test_every_no_has_its_reason(row) -> None:
    told = abilities(row, REASONS)
    assert list(told) == list(ABILITIES)
    assert all(reason is None or len(reason) > 10 for reason in told.values())


@pytest.mark.parametrize("row", list(CATALOG), ids=lambda row: row.id)
def test_ways_loras_and_weights_are_those_of_the_row(row) -> None:
    told = abilities(row, REASONS)
    assert {name for name in ("text", "image", "mask", "references") if told[name] is None} == set(
        row.ways
    )
    assert (told["lora"] is None) == row.loras
    assert {name for name in ("fp4", "bf16") if told[name] is None} == set(row.memory_gib)


def test_no_reason_is_said_that_nobody_needs() -> None:
    """A row that learnt something leaves no "no" behind."""
    needed = {
        (row.family, ability) for row in CATALOG for ability in ABILITIES if not can(row, ability)
    }
    of_models = REASONS.get("model", {})
    said = {
        (family, ability)
        for family, reasons in REASONS.items()
        if family != "model"
        for ability in reasons
    }
    assert said <= needed
    assert set(of_models) <= set(CATALOG.ids)


def test_reason_that_nobody_has_said_is_an_error_that_names_the_model() -> None:
    row = CATALOG["embedded"].model_copy(update={"family": "new", "loras": False})
    with pytest.raises(ConfigurationError, match="embedded .family new. has no lora"):
        why_not(row, "lora", REASONS)
