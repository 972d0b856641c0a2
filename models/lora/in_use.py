"""The LoRAs a model draws with: those of the present request and no other.

A request's LoRAs are read (`opened.py`) and matched with the model's layers before a device is touched.
Then a carrier puts them beside the layers, one of two ways:

    native    PEFT's adapters in the modules, each LoRA by itself             `adapters.py`
    merged    ranks side by side in a branch that every layer has room for    `merged.py`

Neither touches a weight, so without LoRAs the model computes the bits it always did.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from models.lora.convert import Lora
from models.lora.errors import LoraError
from models.lora.lowrank import TOLERANCE
from models.lora.merge import Match, Shape, match
from models.lora.opened import OpenedLoras
from models.types import LoraApplied, LoraRef

log = logging.getLogger("models.lora")

Key = tuple[tuple[str, float], ...]  # content and weight of each LoRA, in the request's order


@dataclass(frozen=True, slots=True)
class Chosen:
    """One LoRA of a set; its weight is not 0."""

    ref: LoraRef
    lora: Lora

    @property
    def key(self) -> tuple[str, float]:
        return self.ref.sha256, self.ref.weight


class Carrier(Protocol):
    """Who puts LoRAs beside a model's layers."""

    shapes: Mapping[str, Shape]  # of the layers that can have a LoRA, component first

    def carry(self, chosen: Sequence[Chosen]) -> None:
        """Exactly these from now on, in place of those before; what fails leaves those before."""

    def release(self) -> None:
        """Take everything out of the model, for good."""


class LorasInUse:
    """What a model's `use_loras` does. `text_key` tells apart what the text encoders compute with."""

    def __init__(self, opened: OpenedLoras, carrier: Carrier) -> None:
        self.text_key: Key = ()
        self._opened, self._carrier = opened, carrier
        self._key: Key | None = ()  # None: a change failed, nothing is taken for granted

    def use(self, refs: Sequence[LoraRef]) -> tuple[LoraApplied, ...]:
        """As `models.types.ImageModel.use_loras`."""
        chosen = [Chosen(ref, self._opened.take(ref)) for ref in refs]
        matches = [self._match(one) for one in chosen]
        acting = _acting(chosen)
        key = tuple(one.key for one in acting)
        if key != self._key:
            self._key = None
            self._carrier.carry(acting)
            self._key = key
            self.text_key = tuple(one.key for one in acting if _changes_text(one.lora))
        return tuple(
            LoraApplied(
                name=one.ref.name,
                sha256=one.ref.sha256,
                weight=one.ref.weight,
                matched_keys=found.matched_keys,
                unmatched_keys=len(found.unmatched_keys),
            )
            for one, found in zip(chosen, matches, strict=True)
        )

    def release(self) -> None:
        """Draw without LoRAs from now on, and give the model back as it was."""
        self._carrier.release()
        self._key, self.text_key = (), ()

    def _match(self, one: Chosen) -> Match:
        try:
            return match(one.lora, self._carrier.shapes)
        except LoraError as error:
            raise type(error)(f"LoRA {one.ref.name}: {error.message}") from error


def log_loss(chosen: Sequence[Chosen]) -> None:
    """Say what low rank does not hold of LoKr and LoHa, where it is more than rounding."""
    for one in chosen:
        if one.lora.error > TOLERANCE:
            log.warning(
                "LoRA %s (%s) is applied as low rank, %.2g of it is lost",
                one.ref.name,
                one.lora.info.format,
                one.lora.error,
                extra={"action": "lora_approximated", "lora": one.ref.sha256},
            )


def _acting(chosen: Sequence[Chosen]) -> list[Chosen]:
    """Those that change anything; one that is named twice acts once, with both weights."""
    weights: dict[str, float] = {}
    for one in chosen:
        weights[one.ref.sha256] = weights.get(one.ref.sha256, 0.0) + one.ref.weight
    firsts = {one.ref.sha256: one for one in reversed(chosen)}
    return [
        Chosen(replace(firsts[sha256].ref, weight=weight), firsts[sha256].lora)
        for sha256, weight in weights.items()
        if weight
    ]


def _changes_text(lora: Lora) -> bool:
    return any(name.startswith("text_encoder") for name in lora.layers)
