"""`docs/lora.md` on formats: what its table says is what files of these formats are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from config.settings import ROOT
from models.lora import keys, lowrank
from models.lora.inspect import inspect
from tests.models.lora import formats

TEXT = (ROOT / "docs" / "lora.md").read_text(encoding="utf-8")
SECTION = TEXT.split("## Formats\n", 1)[1]
# What a file is refused as, and how the document calls it.
REFUSED = {
    "dora": "DoRA", "oft": "OFT", "boft": "BOFT", "ia3": "IA³", "glora": "GLoRA", "vera": "VeRA",
    "controlnet": "Control-LoRAs", "norm": "Control-LoRAs", "bias": "LoRAs with biases",
    "tucker": "of convolutions", "diff": "full weight differences", "checkpoint": "whole models",
}  # fmt: skip


def rows() -> dict[str, str]:
    """An example name by format; a row of several formats has one for each."""
    table = SECTION.split("| format |", 1)[1].split("\n\n", 1)[0]
    found = {}
    for line in table.splitlines()[2:]:
        names, _, examples = line.strip("| ").split(" | ")
        quoted = [re.findall(r"`([^`]+)`", cell) for cell in (names, examples)]
        found |= dict(zip(*quoted, strict=True))
    return found


def files() -> dict[str, tuple[formats.State, dict[str, str]]]:
    """One file of every kind that the tests can make."""
    made = {}
    for form, (make, _) in formats.FORMATS.items():
        only = formats.is_for_xlabs if form == "xlabs" else lambda bfl: True
        made[form] = make(formats.make_known(only=only))
    made |= {"lokr": (formats.lokr()[0], {}), "loha": (formats.loha()[0], {})}
    for naming in ("kohya", "onetrainer", "diffusers"):
        made[f"text {naming}"] = (formats.text_encoders(naming)[0], {})
    return made


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Tensor names of all files by the format that they are found to have."""
    folder: Path = tmp_path_factory.mktemp("files")
    names: dict[str, set[str]] = {}
    for state, metadata in files().values():
        path = formats.write(folder / "a.safetensors", state, metadata)
        names.setdefault(inspect(path).format, set()).update(state)
    return names


def test_table_has_every_format_and_no_other(seen: dict[str, set[str]]) -> None:
    assert set(rows()) == set(seen)


def test_table_shows_names_that_files_of_the_format_have(seen: dict[str, set[str]]) -> None:
    for form, example in rows().items():
        ending = example.removeprefix("…")
        is_whole = ending == example
        assert any(n == example if is_whole else n.endswith(ending) for n in seen[form]), example


def test_document_names_whatever_is_refused_by_name() -> None:
    assert set(REFUSED) == set(keys.REFUSED_PARTS)
    paragraph = SECTION.split("Refused by name:", 1)[1].split("\n\n", 1)[0].replace("\n", " ")
    assert [word for word in REFUSED.values() if word not in paragraph] == []


def test_document_says_how_far_lokr_may_be_approximated() -> None:
    assert lowrank.TOLERANCE == 1e-6 and "less than a millionth" in SECTION
    assert f"at most {lowrank.MAX_RANK}" in SECTION
