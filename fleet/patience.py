"""When a job had better wait for a busy card than take memory from another model on an idle one.

An idle card that has the model, or room for it, takes a job at once. One that would have to let another
model go costs more than its own load: sooner or later the other one is asked for, and loaded again. So
the job waits as long as cards that are busy are expected to begin it before that price is paid, and
never longer than `longest_seconds`. Expected is what was measured; a card that is later than expected,
or of which nothing was measured, is not waited for.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping

from fleet.card import Card
from fleet.demand import Demand

LONGEST_SECONDS = 30.0
# What the loss of a model weighs by the seconds of its load. A load delays all who come meanwhile.
LOSS = 5.0
# A card may be later than expected by this share of a job, and by so much at least.
LATE_SHARE = 0.2
LATE_SECONDS = 0.5
# More cards than this are not looked at for one decision.
MOST_CARDS = 32


class Patience:
    """`copies` counts cards by the models they have loaded."""

    def __init__(self, longest_seconds: float, demand: Demand, copies: Counter[str]) -> None:
        self.longest_seconds = longest_seconds
        self._demand = demand
        self._copies = copies

    def until(
        self,
        card: Card,
        model: str,
        waiting: Mapping[str, int],
        busy: Iterable[Card],
        came_at: float,
        now: float,
    ) -> float | None:
        """Until when the oldest job of a model waits beside an idle card; None: it begins there now.

        `waiting` is how many wait by model; `busy` are cards that can run the job, those with the
        model first.
        """
        end = came_at + self.longest_seconds
        price = self._price_seconds(card, model, now)
        if now >= end or not card.profile.leaving(model, card.models) or price == math.inf:
            return None
        begun = 0  # of those that wait for the model, by busy cards before the price is paid
        for other in itertools.islice(busy, MOST_CARDS):
            each = other.stats.job_seconds.get(model, math.inf)
            late_at = other.free_at + max(LATE_SECONDS, LATE_SHARE * each)
            if now >= late_at or not 0 < each < math.inf:
                continue
            left = price - max(0.0, other.free_at - now)
            if model in other.models:
                others = sum(waiting[name] for name in other.models if name != model)
                count = 1 + int(left / each) - others if left >= 0 else 0
            else:
                count = int(self._price_seconds(other, model, now) < left)
            if count > 0:
                begun += count
                end = min(end, late_at)
            if begun >= waiting[model]:
                return end
        return None

    def _price_seconds(self, card: Card, model: str, now: float) -> float:
        """The load, and those that it makes necessary: sooner or later, and shared with other copies."""
        seconds = card.stats.load_seconds
        price = seconds.get(model, math.inf)
        wanted = self._demand.of(model, now)
        for gone in card.profile.leaving(model, card.models):
            missed = self._demand.of(gone, now)
            if missed:
                share = missed / (missed + wanted) / self._copies[gone]
                price += LOSS * share * seconds.get(gone, math.inf)
        return price
