"""A model that is compiled when it is loaded, and one that cannot be."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from models.compiling import compile_model
from models.families.pipeline_model import uncompiled
from models.types import LoadOptions
from tests.models.tiny_drawing import load_tiny


class StandIn:
    """Compiles, or fails as it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.compute, self.calls, self._error = "BF16", [], error

    def compile(self, *, autoencoder: bool) -> None:
        self.calls.append(f"compile {autoencoder}")

    def warm_up(self) -> None:
        self.calls.append("warm up")
        if self._error is not None:
            raise self._error

    def uncompile(self) -> None:
        self.calls.append("uncompile")


def options(told: list[Any]) -> LoadOptions:
    return LoadOptions(
        devices=("cpu",), models_dir=Path("models"), allow_download=False,
        on_progress=lambda what, fraction: told.append((what, fraction)),
    )  # fmt: skip


def test_compiled_model_has_drawn_once_and_says_so() -> None:
    model, told = StandIn(), []
    compile_model(model, options(told), autoencoder=True)
    assert model.calls == ["compile True", "warm up"] and model.compute == "BF16, compiled"
    assert told == [("compiling", 0.0), ("compiling", 1.0)]


def test_model_that_cannot_be_compiled_stays_as_it_was_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = StandIn(RuntimeError("Failed to find C compiler\nand more"))
    with caplog.at_level(logging.WARNING, logger="models"):
        compile_model(model, options([]), autoencoder=False)
    assert model.calls == ["compile False", "warm up", "uncompile"]
    assert model.compute == "BF16, not compiled (Failed to find C compiler)"
    assert [getattr(record, "action", "") for record in caplog.records] == ["not_compiled"]


def test_memory_that_runs_out_is_no_reason_to_go_on() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        compile_model(StandIn(torch.OutOfMemoryError("full")), options([]), autoencoder=True)


@pytest.mark.parametrize("row_id", ["flux-schnell", "flux-fill-dev", "flux2-klein-4b"])
def test_warm_up_brings_what_a_model_cannot_do_without(row_id: str, tmp_path: Path) -> None:
    model = load_tiny(row_id, tmp_path).model
    drawn: list[Any] = []
    generate = model.generate
    model.generate = lambda drawings, **how: drawn.append(generate(drawings, **how)[0][0])
    model.warm_up()
    assert drawn[0].size == (96, 64)


def test_uncompiled_parts_are_compiled_again_afterwards() -> None:
    layer = torch.nn.Linear(4, 4)
    module = torch.nn.Sequential(layer)
    layer.compile(backend="eager")
    compiled = layer._compiled_call_impl
    with uncompiled(module):
        assert layer._compiled_call_impl is None
    assert layer._compiled_call_impl is compiled is not None
