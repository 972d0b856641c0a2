"""Cards that may be given a job, sorted so that the best is found without looking at all of them."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fleet.card import Card, State
from fleet.preference import cold_key, key_of, warm_key
from fleet.wanted import Wanted

# A card's place in one of the sorted lists: whose list, and its key there.
Place = tuple[Any, tuple[Any, ...]]


class IdleCards:
    """The idle ones by what they have loaded, and those that are finishing."""

    def __init__(self) -> None:
        self._lists: dict[Any, list[tuple[Any, ...]]] = {}
        self._groups: set[Any] = set()  # cards that are alike for a model they have not loaded
        self._places: dict[str, list[Place]] = {}
        self._cards: dict[str, Card] = {}
        self._finishing: dict[str, Card] = {}

    def __iter__(self) -> Iterator[Card]:
        yield from self._cards.values()
        yield from self._finishing.values()

    def __len__(self) -> int:
        return len(self._cards) + len(self._finishing)

    def add(self, card: Card) -> None:
        """A card, where it is idle or finishing; its state must not change while it is here."""
        if card.state is State.FINISHING:
            self._finishing[card.replica] = card
        elif card.state is State.IDLE:
            self._cards[card.replica] = card
            group = (card.profile, card.models, *card.paces.items())
            self._groups.add(group)
            places: list[Place] = [(group, (card.rest, card.replica))]
            places += [(model, warm_key(card, model)) for model in card.models]
            places += [(pair, warm_key(card, pair[0])) for pair in card.lora_sets]
            for name, key in places:
                bisect.insort(self._lists.setdefault(name, []), key)
            self._places[card.replica] = places

    def discard(self, card: Card) -> None:
        """A card as it was added, or one that was not."""
        self._finishing.pop(card.replica, None)
        if self._cards.pop(card.replica, None) is None:
            return
        for name, key in self._places.pop(card.replica):
            keys = self._lists[name]
            del keys[bisect.bisect_left(keys, key)]
            if not keys:
                del self._lists[name]
                self._groups.discard(name)

    def best(
        self,
        wanted: Wanted,
        may_run: Callable[[Card, Wanted], bool],
        harm: Callable[[Iterable[str]], float],
    ) -> Card | None:
        """The card a job had best begin on now; None where it has to wait."""
        for name in ((wanted.model, wanted.lora_set), wanted.model):
            for key in self._lists.get(name, ()):
                card = self._cards[key[-1]]
                if may_run(card, wanted):
                    return card
        best, best_key = None, None
        for group in self._groups:
            card = self._first_able(group, wanted, may_run)
            if card is not None and wanted.model not in card.models:
                key = cold_key(card, wanted.model, harm)
                if best_key is None or key < best_key:
                    best, best_key = card, key
        if best is not None:
            return best
        able = (card for card in self._finishing.values() if may_run(card, wanted))
        able = (card for card in able if wanted.model in card.models)
        return min(able, key=lambda card: key_of(card, wanted, harm), default=None)

    def _first_able(
        self, group: Any, wanted: Wanted, may_run: Callable[[Card, Wanted], bool]
    ) -> Card | None:
        for key in self._lists[group]:
            card = self._cards[key[-1]]
            if may_run(card, wanted):
                return card
            if not card.profile.can_run(wanted):
                return None  # no other of this group can, either
        return None
