"""Merged sets that are kept: what they take of memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from models.lora.convert import Factors, Lora, convert
from models.lora.in_use import Chosen
from models.lora.merged import LEAST_WIDTH, MergedLoras, places_in
from models.types import LoraRef
from tests.models.lora import formats

OUT, IN = 40, 24
PAIR_BYTES = (OUT + IN) * LEAST_WIDTH * 4


def chosen(template: Lora, name: str) -> Chosen:
    """Of rank 3, for the first layer alone."""
    factors = Factors(torch.randn(3, IN), torch.randn(OUT, 3), 1.0, ("up", "down"))
    return Chosen(
        LoraRef(name=name, weight=1.0, sha256=name),
        replace(template, layers={"transformer.0": factors}),
    )


def test_layers_that_a_set_of_a_compiled_model_does_not_change_count_once(
    tmp_path: Path,
) -> None:
    template = convert(formats.write_known(tmp_path / "a", "kohya")[0])
    model = nn.Sequential(*(nn.Linear(IN, OUT) for _ in range(9)))
    loras = MergedLoras(
        places_in({"transformer": model}),
        {"transformer": torch.device("cpu")},
        {"transformer": torch.float32},
        compiled="transformer",
        max_bytes=2
        * 2
        * PAIR_BYTES,  # of two sets: the layer that is changed, and zeros for the eight others
    )
    first, second = chosen(template, "a"), chosen(template, "b")
    carried = []
    for one in (first, second, first, second):
        loras.carry([one])
        carried.append(model[0]._extra[0])
    assert carried[2] is carried[0] and carried[3] is carried[1]
