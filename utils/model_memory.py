"""Which models fit beside each other, and what would fit instead: the rule, without a device.

A worker may keep several models, within its limit: the lower of the budget (FLUX_MODEL_MEMORY_GIB) and
what other programs leave of the device. Who was used longest ago leaves first. A model that does not
fit alone is refused before anything is loaded, in numbers, with the settings that would fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from config.catalog import ModelRow

# Of a GPU, what models that are kept together leave: the allocator's and the driver's share.
RESERVE_GIB = 1.0
# Of main memory, what the models of one worker on the CPU may take.
CPU_SHARE = 0.5
# Of an Apple machine's memory, what its GPU may use.
APPLE_SHARE = 0.7
# On a CPU 16-bit weights are widened to 32.
WIDENING = 2.0
MOST_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A model that is loaded: what it takes, and when it was used last (monotonic seconds)."""

    model: str
    gib: float
    used_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the models of one worker may take, in GiB; `device` says whose memory it is, in words."""

    device: str  # "the GPU", "main memory"
    total_gib: float
    available_gib: float  # what other programs leave, with what our own models hold
    budget_gib: float | None  # as configured; None: by the device
    is_gpu: bool
    is_cpu: bool = False  # 16-bit weights take twice as much
    can_offload: bool = False  # one GPU, whose weights may wait in main memory

    @property
    def alone_gib(self) -> float:
        """What one model by itself may take."""
        own = self.available_gib if self.budget_gib is None else self.budget_gib
        return min(self.available_gib, own)

    @property
    def together_gib(self) -> float:
        """What several may take together."""
        if self.budget_gib is not None:
            return self.alone_gib
        share = self.total_gib - RESERVE_GIB if self.is_gpu else self.total_gib * CPU_SHARE
        return min(self.alone_gib, share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How a model is to be loaded: who leaves for it, and whether its weights wait in main memory."""

    leaving: tuple[str, ...]
    offload: bool


def leaving(needed_gib: float, held: Iterable[Held], limits: Limits) -> tuple[str, ...] | None:
    """Who leaves so that a model of `needed_gib` fits, least recently used first; None: it never fits."""
    if needed_gib > limits.alone_gib:
        return None
    kept = sorted(held, key=lambda each: each.used_at)
    gone = []
    while kept and needed_gib + sum(each.gib for each in kept) > limits.together_gib:
        gone.append(kept.pop(0).model)
    return tuple(gone)


def plan(
    row: ModelRow, precision: str, held: Sequence[Held], limits: Limits, offload: str
) -> Loading | None:
    """How the row is loaded beside what is held; None where there is no way.

    `offload` is FLUX_OFFLOAD: `on` and `off` leave no choice, `auto` keeps the weights on the GPU
    where they fit.
    """
    full, offloaded = needs(row, precision, limits)
    if offload != "on" or offloaded is None or not limits.can_offload:
        gone = leaving(full, held, limits)
        if gone is not None:
            return Loading(leaving=gone, offload=False)
    if offload != "off" and offloaded is not None and limits.can_offload:
        gone = leaving(offloaded, held, limits)
        if gone is not None:
            return Loading(leaving=gone, offload=True)
    return None


def needs(row: ModelRow, precision: str, limits: Limits) -> tuple[float, float | None]:
    """GiB with all weights on the device, and with weights that wait in main memory (None: no such way)."""
    full = row.memory_gib.get(precision, 0.0)
    if limits.is_cpu and row.device != "apple":
        full *= WIDENING
    return full, row.offloaded_gib.get(precision)


def refusal(
    row: ModelRow, precision: str, limits: Limits, offload: str, catalog: Iterable[ModelRow]
) -> str:
    """Why a row does not fit, in numbers, and what would."""
    full, offloaded = needs(row, precision, limits)
    needed = full
    if offloaded is not None and offload != "off" and limits.can_offload:
        needed = offloaded
    what = f"{row.id} needs {needed:.1f} GiB of {limits.device}"
    if limits.budget_gib is not None and limits.budget_gib <= limits.available_gib:
        there = f"FLUX_MODEL_MEMORY_GIB allows {limits.budget_gib:.1f}"
    else:
        used = limits.total_gib - limits.available_gib
        there = f"{limits.available_gib:.1f} of {limits.total_gib:.1f} GiB are free"
        if used > 0.1 * limits.total_gib:
            there += f" (other programs hold {used:.1f})"
    return f"{what}; {there}. {_in_one(what_fits(row, precision, limits, offload, catalog))}"


def what_fits(
    row: ModelRow, precision: str, limits: Limits, offload: str, catalog: Iterable[ModelRow]
) -> list[str]:
    """What to set or to ask for instead, most like what was asked for first."""
    full, offloaded = needs(row, precision, limits)
    room, ways = limits.alone_gib, []
    if limits.budget_gib is not None and full <= limits.available_gib and full > limits.budget_gib:
        ways.append(f"FLUX_MODEL_MEMORY_GIB={full:g} or more")
    if limits.can_offload and offloaded is not None and offload == "off" and offloaded <= room:
        ways.append(
            f"FLUX_OFFLOAD=auto ({offloaded:g} GiB on the GPU, {full:g} GiB of main memory)"
        )
    if row.device == "apple":
        ways.append("fewer bits a weight, by FLUX_MFLUX_QUANTIZE")
    for other, gib in row.memory_gib.items():
        least = min(gib, row.offloaded_gib.get(other, gib))
        if other != precision and least <= room:
            ways.append(f"the {other.upper()} service ({least:g} GiB)")
    smaller = sorted(
        (
            (needs(each, precision, limits)[0], each.id)
            for each in catalog
            if 0 < needs(each, precision, limits)[0] <= room
            and (limits.is_gpu or each.device == "any")
            and each.device in ("any", "gpu")
        ),
        reverse=True,
    )
    if smaller:
        named = ", ".join(f"{model} ({gib:g} GiB)" for gib, model in smaller[:MOST_NAMED])
        ways.append(f"a smaller model: {named}")
    if min(full, offloaded or full) <= limits.total_gib:
        ways.append("ending what else uses the memory")
    return ways


def _in_one(ways: Sequence[str]) -> str:
    if not ways:
        return "Nothing in the catalog fits; a larger device is needed"
    return f"What would fit: {'; '.join(ways)}"
