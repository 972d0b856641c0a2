"""Families of models: one module each, which a catalog row's `family` names.

A module of a diffusers pipeline has `MODEL`, a subclass of `pipeline_model.PipelineModel`; the loader of a
precision makes one (`models/bf16_flux_model.py`, and the engines of FP4). Any other module has
`load(row, options, profile)`, which gives a `models.types.ImageModel`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from config.catalog import ModelRow
from config.errors import ModelUnavailable

FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "flux1": "models.families.flux1",
        "flux1-fill": "models.families.flux1_fill",
        "flux1-kontext": "models.families.flux1_kontext",
        "flux2": "models.families.flux2_klein",
        "mflux": "models.families.mflux",
        "sdxl": "models.families.stable_diffusion_xl",
        "stable-diffusion": "models.families.stable_diffusion",
        "z-image": "models.families.z_image",
    }
)


def family_of(row: ModelRow) -> Any:
    """The module of the row's family. Raises ModelUnavailable for a family there is none of."""
    if row.family not in FAMILIES:
        raise ModelUnavailable(
            f"model {row.id} is of the family {row.family!r}, which nothing here draws with; "
            f"known are {', '.join(FAMILIES)} (config/models.toml)"
        )
    return importlib.import_module(FAMILIES[row.family])
