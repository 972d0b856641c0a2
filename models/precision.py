"""Every difference between the services, as data: one frozen profile per precision.

Code elsewhere asks a profile for a property and never for its name. `loader` is a dotted path
because importing it imports torch, which only a worker may do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from config.errors import ConfigurationError


class LoraMode(StrEnum):
    """How a request's LoRAs come into the model."""

    NATIVE = "native"  # as PEFT's adapters, each by itself: `models/lora/adapters.py`
    MERGED = "merged"  # as one sum in a branch beside each layer: `models/lora/merged.py`


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionProfile:
    name: str  # id in answers, file names and FLUX_* port variables
    title: str  # for people
    weights: str  # how weights are kept
    engines: tuple[str, ...]  # what can compute with them, best first where several run
    lora_mode: LoraMode
    loader: str | None  # "module:function" that loads a catalog row; None: not built
    not_built: str = ""  # why there is no loader
    why_not_mps: str = ""  # why its large models do not run on Apple's GPU
    # "module:function" that tells, by a model's repository, the repositories that stand for parts of it.
    stand_ins: str = ""

    @property
    def service(self) -> str:
        return f"flux-api-{self.name}"


_PROFILES = {
    "bf16": PrecisionProfile(
        name="bf16",
        title="BF16",
        weights="bfloat16",
        engines=("diffusers",),
        lora_mode=LoraMode.NATIVE,
        loader="models.bf16_flux_model:load",
    ),
    "fp4": PrecisionProfile(
        name="fp4",
        title="FP4",
        weights="4-bit floating point",
        engines=("nunchaku", "nvfp4"),
        lora_mode=LoraMode.MERGED,
        loader="models.fp4_flux_model:load",
        stand_ins="models.fp4.nunchaku_engine:stand_ins",
        why_not_mps="four-bit weights have 8-bit scales that Apple's GPU cannot read; use the BF16 service",
    ),
}


def known_precisions() -> tuple[str, ...]:
    """The names of all profiles."""
    return tuple(_PROFILES)


def profile_of(name: str) -> PrecisionProfile:
    """The profile by name. Raises ConfigurationError for one there is none of."""
    if name not in _PROFILES:
        raise ConfigurationError(f"unknown precision {name!r}; known are {', '.join(_PROFILES)}")
    return _PROFILES[name]


# What a fleet's front door is: its replicas have precisions of their own, and say so in every answer.
FLEET = PrecisionProfile(
    name="fleet",
    title="fleet",
    weights="of each replica",
    engines=tuple(
        dict.fromkeys(each for profile in _PROFILES.values() for each in profile.engines)
    ),
    lora_mode=LoraMode.NATIVE,
    loader=None,
    not_built="its replicas load models",
)
