"""Loads a model with four-bit weights, by one of two engines.

`nunchaku` has kernels of its own for some GPUs and needs its wheel; `nvfp4` is plain PyTorch and runs
anywhere. `auto` takes nunchaku where it can run and has the model, and says in the log what it took
and why.
"""

from __future__ import annotations

import logging

from config.catalog import ModelRow
from config.errors import ModelUnavailable
from models.families import family_of
from models.precision import profile_of
from models.types import ImageModel, LoadOptions

log = logging.getLogger("models.fp4")

ENGINES = ("nvfp4", "nunchaku")


def load(row: ModelRow, options: LoadOptions) -> ImageModel:
    """Load the row's model with the engine that `options.engine` names, or the best that runs here.

    Raises ModelUnavailable, saying why an engine that was asked for cannot run, or which file is
    missing or damaged, and what to do.
    """
    family = family_of(row)
    if hasattr(family, "load"):  # no diffusers pipeline: it has four bits of its own
        return family.load(row, options, profile_of("fp4"))
    engine, reason = choose_engine(row, options)
    log.info(
        "engine %s: %s", engine, reason, extra={"action": "engine", "engine": engine, "model": row.id}
    )  # fmt: skip
    if engine == "nunchaku":
        from models.fp4 import nunchaku_engine

        return nunchaku_engine.load(row, options)
    from models.fp4 import nvfp4_engine

    return nvfp4_engine.load(row, options)


def choose_engine(row: ModelRow, options: LoadOptions) -> tuple[str, str]:
    """The engine and, in a sentence, why it."""
    if options.engine in ENGINES:
        return options.engine, "it was asked for"
    if options.engine != "auto":
        raise ModelUnavailable(
            f"model {row.id}: there is no FP4 engine {options.engine!r}; "
            f"FLUX_ENGINE is auto or one of {', '.join(ENGINES)}"
        )
    from models.fp4 import nunchaku_engine

    why_not = nunchaku_engine.why_not(options) or nunchaku_engine.why_no_checkpoint(row)
    if why_not is None:
        return "nunchaku", "it runs on this GPU and is the faster one"
    return "nvfp4", f"nunchaku cannot: {why_not}"
