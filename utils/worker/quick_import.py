"""Imports without looking for garbage.

An import of torch and diffusers makes millions of objects that all stay. Python's collector looks
through them again and again while they come, a fifth of the whole time, and once more at every
collection later on: what was imported is set aside for good.
"""

from __future__ import annotations

import gc
import importlib
from types import ModuleType


def quick_import(name: str) -> ModuleType:
    """`importlib.import_module`, with the collector off meanwhile."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
