"""Compiling a model that was loaded, so that it draws faster; a machine that cannot is told of and draws as before."""

from __future__ import annotations

import logging

import torch

from models.families.pipeline_model import PipelineModel
from models.hub.repository import first_line
from models.types import LoadOptions

log = logging.getLogger("models")


def compile_model(model: PipelineModel, options: LoadOptions, *, autoencoder: bool) -> None:
    """Compile a loaded model and draw with it once; where that fails it stays as it was, and says so."""
    options.on_progress("compiling", 0.0)
    before = model.compute
    try:
        model.compile(autoencoder=autoencoder)
        model.warm_up()
        model.compute = f"{before}, compiled"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no gcc, no Triton, no ptxas: what it lacks has no common type
        if isinstance(error, torch.AcceleratorError):
            raise
        log.warning(
            "%s is not compiled", model.compute, extra={"action": "not_compiled"}, exc_info=True
        )
        model.uncompile()
        model.compute = f"{before}, not compiled ({first_line(error)})"
    options.on_progress("compiling", 1.0)
