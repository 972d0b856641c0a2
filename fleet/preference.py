"""Which of several cards a job had best go to.

In this order: a card that is idle and has the model loaded (and among those the LoRAs too), an idle one
with room for the model, an idle one where others leave for it, a busy one with the model, the rest. An
idle card comes before any busy one, because it costs nobody anything while it loads; so a model that
many want spreads. Where several are equal the faster one is taken, then the one with more rest, then
the first by name: the same state gives the same answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from fleet.card import Card, State
from fleet.replica import ReplicaStats
from fleet.wanted import Wanted


class Tier(IntEnum):
    LORAS = 0  # idle, the model and its LoRAs are loaded
    MODEL = 1  # idle, the model is loaded
    FITS = 2  # idle, there is room for the model
    MAKES_ROOM = 3  # idle, other models leave
    BUSY = 4  # busy, the model is loaded
    REST = 5  # busy, the model is not loaded


def warm_key(card: Card, model: str) -> tuple[int, int, int, str]:
    """Order of cards that have the model: the fastest, and of those the one with least beside it."""
    return (card.pace(model), len(card.models), card.rest, card.replica)


def cold_key(
    card: Card, model: str, harm: Callable[[Iterable[str]], float]
) -> tuple[Tier, float, int, int, str]:
    """Order of idle cards that would have to load it: room before eviction, and least harm by that."""
    gone = card.profile.leaving(model, card.models)
    if gone:
        return (Tier.MAKES_ROOM, harm(gone), card.pace(model), card.rest, card.replica)
    return (Tier.FITS, len(card.models), card.pace(model), card.rest, card.replica)


def tier_of(card: Card, wanted: Wanted) -> Tier:
    """Where the card stands for a job that it can run."""
    if card.state is not State.IDLE:
        return Tier.BUSY if wanted.model in card.models else Tier.REST
    if wanted.model in card.models:
        is_ready = (wanted.model, wanted.lora_set) in card.lora_sets
        return Tier.LORAS if is_ready else Tier.MODEL
    return Tier.MAKES_ROOM if card.profile.leaving(wanted.model, card.models) else Tier.FITS


def harm_of(
    copies: Counter[str], demand: Callable[[str], float]
) -> Callable[[Iterable[str]], float]:
    """What is lost when models leave a card: what is asked for often and is on few cards weighs most."""

    def harm(gone: Iterable[str]) -> float:
        return sum(demand(model) / max(1, copies[model]) ** 2 for model in gone)

    return harm


def key_of(
    card: Card, wanted: Wanted, harm: Callable[[Iterable[str]], float]
) -> tuple[float | str, ...]:
    """The order of all cards for a job: the least is the best."""
    tier = tier_of(card, wanted)
    if tier in (Tier.FITS, Tier.MAKES_ROOM):
        return cold_key(card, wanted.model, harm)
    ahead = len(card.jobs) if tier >= Tier.BUSY else 0
    return (tier, ahead, *warm_key(card, wanted.model))


@dataclass(frozen=True, slots=True)
class Ranked:
    """A card for a job, and why it stands where it stands."""

    replica: str
    tier: Tier
    reason: str


def rank(
    wanted: Wanted, reports: Iterable[ReplicaStats], demand: Callable[[str], float] = lambda _: 1.0
) -> list[Ranked]:
    """All replicas that can run a job, best first, by nothing but their reports."""
    cards = [Card(stats) for stats in reports]
    copies = Counter(model for card in cards for model in card.models)
    able = [card for card in cards if not card.is_away and card.profile.can_run(wanted)]
    able = [card for card in able if card.replica not in wanted.avoid] or able
    harm = harm_of(copies, demand)
    able.sort(key=lambda card: key_of(card, wanted, harm))
    return [Ranked(card.replica, tier_of(card, wanted), reason_of(card, wanted)) for card in able]


def reason_of(card: Card, wanted: Wanted) -> str:
    """Why a card stands where it stands for a job, in words for logs and the dashboard."""
    match tier_of(card, wanted):
        case Tier.LORAS:
            return f"idle, has {wanted.model} and the LoRAs loaded"
        case Tier.MODEL:
            return f"idle, has {wanted.model} loaded"
        case Tier.FITS:
            return f"idle, has room for {wanted.model}"
        case Tier.MAKES_ROOM:
            gone = card.profile.leaving(wanted.model, card.models)
            return f"idle, {', '.join(gone)} {'leave' if len(gone) > 1 else 'leaves'} for {wanted.model}"
        case Tier.BUSY:
            return f"busy with {len(card.jobs)}, has {wanted.model} loaded"
        case _:
            return f"busy with {len(card.jobs)}, would have to load {wanted.model}"
