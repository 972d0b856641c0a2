"""The collector rests during an import and works again after it, also after one that failed."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils.worker.quick_import import quick_import


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module's file; its name is `to_import`."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "to_import.py"
    sys.modules.pop("to_import", None)


def test_quick_import_is_not_interrupted_by_collections_and_sets_aside_what_came(
    module: Path,
) -> None:
    module.write_text("import gc\nCOLLECTS = gc.isenabled()\nTHINGS = [[] for _ in range(1000)]")
    before = gc.get_freeze_count()
    assert quick_import("to_import").COLLECTS is False
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + 1000


def test_quick_import_that_fails_leaves_the_collector_on(module: Path) -> None:
    module.write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        quick_import("to_import")
    assert gc.isenabled()


def test_quick_import_leaves_a_collector_off_that_was_off(module: Path) -> None:
    module.write_text("")
    gc.disable()
    quick_import("to_import")
    assert not gc.isenabled()
