"""When a job had better wait for a busy card than take memory from another model on an idle one.

An idle card that has the model, or room for it, takes a job at once. For one that would have to let another model go
it is to rent or to buy: waiting beside an idle card is paid for by the second, a load once. So a model is loaded
there when the waiting of its jobs beside idle cards has come to the price of the load: what they have waited
since it was last loaded (`regret.py`) and what those that wait now would be spared by it. Who begins on
a busy card meanwhile pays nothing, and waiting that is paid never comes to much more than loads at their price.

The price is in job seconds, `PRICE` for each second of the load. Another model that has to leave is loaded again
if it is asked for, the surer the fewer other copies it has, and then something leaves for that one in its turn:
its load counts `RELOADS` times. A model that would be on more cards than its share of the work fills pays the square
of that excess, because that card will be missed by those that have fewer than theirs.

Nobody waits longer than `longest_seconds` beside an idle card, nor for one that is later than expected or of which
nothing was measured.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from fleet.card import Card
from fleet.demand import Demand
from fleet.regret import Regret

LONGEST_SECONDS = 30.0
# Job seconds for a second of loading: a load holds up its card, and whoever comes meanwhile.
PRICE = 20.0
RELOADS = 4.0
# A card may be later than expected by this share of a job, and by so much at least.
LATE_SHARE = 0.2
LATE_SECONDS = 0.5
# More cards and jobs than this are not looked at one by one for one decision.
MOST_CARDS = 32
MOST_JOBS = 32
# It is not thought over again sooner, unless something happens.
PAUSE_SECONDS = 0.25


class Patience:
    """`copies` counts cards by the models they have loaded, `able` those that could load a model."""

    def __init__(
        self,
        longest_seconds: float,
        demand: Demand,
        copies: Counter[str],
        able: Callable[[str], int],
    ) -> None:
        self.longest_seconds = longest_seconds
        self.regret = Regret()
        self._demand = demand
        self._copies = copies
        self._able = able

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
        if now >= end or not card.profile.leaving(model, card.models):
            return None
        price = self._price(card, model, now)
        if price == math.inf:
            return None
        count = waiting[model]
        servers: list[tuple[float, float]] = (
            []
        )  # when each would begin the next one, seconds of one
        for other in itertools.islice(busy, MOST_CARDS):
            each = other.stats.job_seconds.get(model, math.inf)
            late_at = other.free_at + max(LATE_SECONDS, LATE_SHARE * each)
            if now >= late_at or not 0 < each < math.inf:
                continue
            free_in = max(0.0, other.free_at - now)
            if model in other.models:
                servers.append((free_in + self._ahead_seconds(other, model, waiting), each))
                end = min(end, late_at)
            elif servers:
                break
            elif count * free_in < price - self._price(other, model, now):
                return min(end, late_at)  # it would cost less there
        if not servers:
            return None
        regret = self.regret.of(model, now)
        here = (card.stats.load_seconds[model], card.stats.job_seconds.get(model, math.inf))
        if regret + _seconds(servers, count) - _seconds([*servers, here], count) >= price:
            return None
        return min(end, now + max(PAUSE_SECONDS, (price - regret) / max(1, count)))

    def _ahead_seconds(self, card: Card, model: str, waiting: Mapping[str, int]) -> float:
        """What a card has to do for those of its other models that wait."""
        return sum(
            waiting[name] * card.stats.job_seconds.get(name, 0.0) / max(1, self._copies[name])
            for name in card.models
            if name != model
        )

    def _price(self, card: Card, model: str, now: float) -> float:
        """What waiting has to come to before the model is loaded on a card."""
        load_seconds = card.stats.load_seconds
        seconds = load_seconds.get(model, math.inf)
        for gone in card.profile.leaving(model, card.models):
            # How likely it is asked for within the time that is remembered.
            missed = 1 - math.exp(-self._demand.of(gone, now) * self._demand.memory_seconds)
            if missed:
                again = load_seconds.get(gone, math.inf)
                seconds += RELOADS * missed * again / max(1, self._copies[gone])
        return PRICE * seconds * self._excess(card, model, now) ** 2

    def _excess(self, card: Card, model: str, now: float) -> float:
        """How many cards would have it, by how many its share of the work fills; 1 up to that."""
        job_seconds = card.stats.job_seconds
        rates = self._demand.all(now)
        work = {
            each: rate * job_seconds[each] for each, rate in rates.items() if each in job_seconds
        }
        total = sum(work.values())
        filled = self._able(model) * work.get(model, 0.0) / total if total else 0.0
        return max(1.0, (self._copies[model] + 1) / (filled + 1))


def _seconds(servers: Sequence[tuple[float, float]], count: int) -> float:
    """How long so many jobs wait together; many are taken in batches."""
    free = list(servers)
    heapq.heapify(free)
    batch = -(-count // MOST_JOBS)
    total = 0.0
    for _ in range(-(-count // max(1, batch))):
        at, each = free[0]
        total += at
        heapq.heapreplace(free, (at + each * batch, each))
    return total * batch
