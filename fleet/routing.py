"""Which replica draws which job, and when: a mirror of the line and of the fleet, in memory.

The line is kept at the front door, and a job leaves it only for a card that begins with it: what is
bound early waits behind the wrong job. Two questions are asked, then. A job comes: which idle card is
best for it (`preference.py`)? A card becomes idle: which of those that wait does it take? The oldest whose
model it has loaded, if there is one; else it loads one, that for which most wait by the cards that have
it. Jobs that are passed by that are counted (`waiting.py`), and one that was passed as often as is allowed
is next. So nobody waits for ever. Nobody waits at all while an idle card has the model or room for it;
beside one that would have to let another model go, only for a busy card, until that has cost as much as
the load would, and not for long (`patience.py`).
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fleet.card import Card, State
from fleet.demand import Demand
from fleet.idle import IdleCards
from fleet.patience import LONGEST_SECONDS, Patience
from fleet.preference import Tier, harm_of, reason_of, tier_of
from fleet.replica import Profile, ReplicaStats
from fleet.waiting import Kind, Waiting
from fleet.wanted import Wanted

# A job may be passed by so many later ones for each card that could run it, and by as many more as
# waited before it when it came.
PASSES = 8
# Of that, what may be used to spare a change of LoRAs, which costs less than a model.
LORA_SHARE = 0.25
# From this share on, a model that no card has is loaded where it costs least, before the last moment.
SOON_SHARE = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A job begins on a replica; from here on it counts as sent."""

    job: str
    replica: str
    node: str
    model: str
    tier: Tier
    evicts: tuple[str, ...]  # the models that are thought to leave for it
    reason: str

    @property
    def loads(self) -> bool:
        """Whether the model is thought to be loaded for it."""
        return self.tier in (Tier.FITS, Tier.MAKES_ROOM, Tier.REST)


class Router:
    """Not for several threads. Everything but `next` tells it what happened; `next` says what begins.

    `wakes_at` is the time of the clock at which `next` is to be asked again though nothing happened.
    """

    def __init__(
        self,
        passes: int = PASSES,
        patience_seconds: float = LONGEST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.waiting = Waiting()
        self.wakes_at = math.inf
        self._passes = passes
        self._clock = clock
        self._cards: dict[str, Card] = {}
        self._on: dict[str, str] = {}  # job: the replica it was sent to
        self._idle = IdleCards()
        self._busy: dict[str, Card] = {}
        self._warm: dict[str, dict[str, Card]] = {}  # by model, those that have it and are busy
        self._copies: collections.Counter[str] = collections.Counter()
        self._demand = Demand()
        self._patience = Patience(patience_seconds, self._demand, self._copies, self._able)
        self._harm = harm_of(self._copies, lambda model: self._demand.of(model, self._clock()))
        self._present: dict[Profile, int] = {}  # how many cards are there, by what they can run
        self._fresh: collections.deque[str] = collections.deque()  # jobs no card was looked up for
        self._free: dict[str, None] = {}  # cards no job was looked up for, in order
        self._patient: dict[str, float] = (
            {}
        )  # models whose jobs wait beside an idle card, until when
        self._changed: set[str] = set()  # of those, where a busy card with the model has changed

    # What happens

    def report(self, stats: ReplicaStats) -> None:
        """A replica said how it is, for the first time or again."""
        card = self._cards.get(stats.replica)
        if card is None:
            card = self._cards[stats.replica] = Card(stats)
            self._enter_indexes(card)
            return
        before = (card.models, card.jobs)
        self._leave_indexes(card)
        card.take_report(stats, self._clock())
        self._enter_indexes(card, is_news=before != (card.models, card.jobs))

    def forget(self, replica: str) -> tuple[str, ...]:
        """A replica is gone. Its jobs, in the order of their sending: they are nobody's now."""
        card = self._cards.pop(replica, None)
        if card is None:
            return ()
        self._leave_indexes(card)
        for job in card.sent:
            del self._on[job]
        self._look_again()
        return tuple(card.sent)

    def set_aside(self, replica: str, is_aside: bool = True) -> None:
        """A replica gets nothing new, whatever it says, until it is taken back."""
        self._change(replica, is_set_aside=is_aside)

    def silent(self, replica: str) -> None:
        """A replica was not heard of for too long: it gets nothing new until it reports."""
        self._change(replica, is_silent=True)

    def wait(self, wanted: Wanted) -> None:
        """A job came, or comes back to its old place."""
        if wanted.job in self._on:
            raise ValueError(f"job {wanted.job}: it is on {self._on[wanted.job]} and has not ended")
        self.waiting.add(wanted, self._clock())
        self._demand.add(wanted.model, self._clock())
        self._fresh.append(wanted.job)

    def withdraw(self, job: str) -> None:
        """A job waits no more."""
        wanted = self.waiting.get(job)
        if wanted is not None:
            self.waiting.remove(wanted)

    def ended(self, job: str) -> None:
        """A job that was sent has ended, however, or was never begun there."""
        card = self._cards.get(self._on.pop(job, ""))
        if card is not None:
            self._leave_indexes(card)
            card.end(job, self._clock())
            self._enter_indexes(card)

    # What begins

    def next(self) -> Decision | None:
        """The next job that begins; None until something happens, or the clock is at `wakes_at`."""
        decision = self._next_patient() or self._next_free() or self._next_fresh()
        self.wakes_at = min(self._patient.values(), default=math.inf)
        if decision is None:
            beside = self._patient if len(self._idle) else ()
            waiting = {model: self.waiting.by_model[model] for model in beside}
            self._patience.regret.watch(waiting, self._clock())
        elif decision.loads:
            self._patience.regret.forget(decision.model, self._clock())
        return decision

    def _next_patient(self) -> Decision | None:
        """One that waited beside an idle card, and had better not any more."""
        now = self._clock()
        for model, until in list(self._patient.items()):
            if until > now and model not in self._changed:
                continue
            del self._patient[model]
            self._changed.discard(model)
            wanted = self.waiting.oldest_of(model)
            card = wanted and self._best(wanted)
            if wanted is not None and card is not None and not self._waits(wanted, card):
                self._patient[model] = now  # there may be more of them
                return self._begin(wanted, card)
        return None

    def _next_free(self) -> Decision | None:
        """One that a card takes which became free."""
        while self._free:
            card = self._cards[next(iter(self._free))]
            wanted = self._pick(card)
            if wanted is not None:
                best = self._best(wanted)
                # One that was not asked for a job yet may owe another one its turn.
                if best is not None and best.replica not in self._free:
                    if wanted.model in best.models or wanted.model not in card.models:
                        card = best
                return self._begin(wanted, card)
            del self._free[card.replica]
        return None

    def _next_fresh(self) -> Decision | None:
        """One that came and finds a card."""
        while self._fresh:
            wanted = self.waiting.get(self._fresh.popleft())
            card = wanted and self._best(wanted)
            if wanted is not None and card is not None and not self._waits(wanted, card):
                return self._begin(self._oldest(self.waiting.kind_of(wanted)), card)
        return None

    def _begin(self, wanted: Wanted, card: Card) -> Decision:
        decision = Decision(
            job=wanted.job,
            replica=card.replica,
            node=card.stats.node,
            model=wanted.model,
            tier=tier_of(card, wanted),
            evicts=card.profile.leaving(wanted.model, card.models),
            reason=reason_of(card, wanted),
        )
        self._send(wanted, card)
        return decision

    def _send(self, wanted: Wanted, card: Card) -> None:
        self.waiting.start(wanted, lambda kind: self._may_run(card, kind.example))
        self._leave_indexes(card)
        card.send(wanted, self._clock())
        self._on[wanted.job] = card.replica
        self._enter_indexes(card)

    def _best(self, wanted: Wanted) -> Card | None:
        return self._idle.best(wanted, self._may_run, self._harm)

    def _pick(self, card: Card) -> Wanted | None:
        """Which of the waiting jobs a card takes; None for none of them."""
        due: Kind | None = None
        warm: Kind | None = None
        cold: Kind | None = None
        for kind in self.waiting.kinds():
            if not self._may_run(card, kind.example):
                continue
            if self._is_due(kind):
                due = kind if due is None or kind.oldest < due.oldest else due
            elif kind.model in card.models:
                warm = kind if warm is None or kind.oldest < warm.oldest else warm
            elif cold is None or self._cold_key(kind) < self._cold_key(cold):
                if card.state is not State.IDLE or self._is_patient(kind.model, card):
                    continue
                if not self._waits(self._oldest(kind), card):
                    cold = kind  # a busy one gains nothing by loading early
        if due is not None:
            may_begin = card.state is State.IDLE or due.model in card.models
            return self._oldest(due) if may_begin else None
        if warm is not None:
            soon = self._due_soon(warm, card)
            if soon is not None:
                return self._oldest(soon) if card.state is State.IDLE else None
            return self._with_loras(warm, card)
        return cold and self._oldest(cold)

    def _due_soon(self, warm: Kind, card: Card) -> Kind | None:
        """A kind for which this card had best let go of its model: nobody has that, and of the models that
        are loaded this card's was drawn for the youngest jobs, so that it can be spared for longest.
        """
        kinds = [kind for kind in self.waiting.kinds() if kind is not warm]
        if any(self._copies[kind.model] and kind.oldest > warm.oldest for kind in kinds):
            return None
        soon = [
            kind
            for kind in kinds
            if not self._copies[kind.model]
            and self._may_run(card, kind.example)
            and kind.passed >= SOON_SHARE * self._most_passes(kind)
        ]
        return min(soon, key=lambda kind: kind.oldest, default=None)

    def _cold_key(self, kind: Kind) -> tuple[float, int]:
        """Which model is best loaded: the one for which most wait by the cards that have it."""
        return (self._copies[kind.model] / len(kind), kind.oldest)

    def _with_loras(self, kind: Kind, card: Card) -> Wanted:
        """The oldest of a kind, or one whose LoRAs are at hand where the oldest can be passed for that."""
        first = self._oldest(kind)
        is_ready = not first.lora_set or (kind.model, first.lora_set) in card.lora_sets
        if is_ready or kind.passed >= LORA_SHARE * self._most_passes(kind):
            return first
        sets = (lora_set for model, lora_set in card.lora_sets if model == kind.model)
        ready = (kind.oldest_with(lora_set) for lora_set in sets)
        return self.waiting.at(min((seq for seq in ready if seq is not None), default=first.seq))

    def _waits(self, wanted: Wanted, card: Card) -> bool:
        """Whether a job had better wait for a busy card than begin on this idle one."""
        if wanted.model in card.models or self._is_due(self.waiting.kind_of(wanted)):
            return False
        until = self._patience.until(
            card,
            wanted.model,
            self.waiting.by_model,
            self._busy_for(wanted),
            self.waiting.came_at(wanted.seq),
            self._clock(),
        )
        if until is None:
            return False
        self._patient[wanted.model] = min(until, self._patient.get(wanted.model, math.inf))
        return True

    def _is_patient(self, model: str, card: Card) -> bool:
        """Whether it was thought over lately, and nothing has happened to those who are waited for."""
        if not card.profile.leaving(model, card.models):
            return False
        return self._patient.get(model, 0.0) > self._clock() and model not in self._changed

    def _busy_for(self, wanted: Wanted) -> Iterator[Card]:
        """Busy cards that can run a job, those with its model first."""
        warm = self._warm.get(wanted.model, {})
        rest = (card for name, card in self._busy.items() if name not in warm)
        cards = itertools.chain(warm.values(), rest)
        return (card for card in cards if self._may_run(card, wanted))

    def _oldest(self, kind: Kind) -> Wanted:
        return self.waiting.at(kind.oldest)

    def _is_due(self, kind: Kind) -> bool:
        return kind.passed > 0 and kind.passed >= self._most_passes(kind)

    def _able(self, model: str) -> int:
        """How many cards could load a model."""
        return sum(count for profile, count in self._present.items() if model in profile.sizes)

    def _most_passes(self, kind: Kind) -> int:
        able = sum(
            count for profile, count in self._present.items() if profile.can_run(kind.example)
        )
        return self._passes * max(1, able) + self.waiting.ahead(kind.oldest)

    def _may_run(self, card: Card, wanted: Wanted) -> bool:
        if card.is_away or not card.profile.can_run(wanted):
            return False
        return card.replica not in wanted.avoid or not any(
            not other.is_away and other.profile.can_run(wanted)
            for other in self._cards.values()
            if other.replica not in wanted.avoid
        )

    # What is drawn together

    def share(self, job: str) -> int:
        """How many of its kind may begin together with a job that has just begun, that one counted, so that
        no idle card that could run them has fewer."""
        _, first = self._begun(job)
        kind = self.waiting.like(first)
        if kind is None:
            return 1
        idle = sum(each.state is State.IDLE and self._may_run(each, first) for each in self._idle)
        return math.ceil((1 + len(kind)) / (1 + idle))

    def next_beside(self, job: str) -> Wanted | None:
        """Who could be drawn together with a job that has just begun: the oldest of its kind, if it has its
        LoRAs; None where it is another's turn."""
        card, first = self._begun(job)
        kind = self.waiting.like(first)
        if kind is None or kind.oldest_with(first.lora_set) != kind.oldest:
            return None
        for other in self.waiting.kinds():
            if other is not kind and self._is_due(other) and self._may_run(card, other.example):
                return None
        return self._oldest(kind)

    def begin_beside(self, wanted: Wanted, job: str) -> None:
        """It begins together with a job that has just begun."""
        card, _ = self._begun(job)
        self._send(wanted, card)

    def _begun(self, job: str) -> tuple[Card, Wanted]:
        card = self._cards[self._on[job]]
        return card, card.sent[job]

    # What is known

    def why_not(self, wanted: Wanted) -> str | None:
        """Why no replica could ever run a job, to be told at once; None where one could."""
        if any(card.profile.can_run(wanted) for card in self._cards.values()):
            return None
        what = wanted.model + "".join(f" with {each}" for each in sorted(wanted.resources))
        if wanted.tags:
            what += f" on a node tagged {', '.join(sorted(wanted.tags))}"
        known = sorted({model for card in self._cards.values() for model in card.profile.sizes})
        there = f"what replicas run: {', '.join(known)}" if known else "no replica has reported"
        return f"no replica can run {what}; {there}"

    def explain(self, job: str) -> str:
        """What a waiting job waits for, in words."""
        wanted = self.waiting.get(job)
        if wanted is None:
            return f"{job} is on {self._on[job]}" if job in self._on else f"{job} is not known"
        able = [card for card in self._cards.values() if self._may_run(card, wanted)]
        if not able:
            return self.why_not(wanted) or "all that could run it are draining or silent"
        kind = self.waiting.kind_of(wanted)
        warm = sum(wanted.model in card.models for card in able)
        busy = sum(bool(card.jobs) for card in able)
        return (
            f"place {self.waiting.position(job)}; of {len(able)} that can run it {busy} are busy and "
            f"{warm} have {wanted.model} loaded; the oldest of its kind was passed {kind.passed} of "
            f"{self._most_passes(kind)} times"
        )

    def is_idle(self, replica: str) -> bool:
        """Whether a replica has nothing, so that it can be taken away."""
        card = self._cards.get(replica)
        return card is None or not card.jobs

    def snapshot(self) -> list[dict[str, Any]]:
        """Every replica as it is thought to be, for the dashboard."""
        return [
            {
                "replica": card.replica,
                "node": card.stats.node,
                "state": card.state.value,
                "models": list(card.models),
                "jobs": sorted(card.jobs),
                "load": card.stats.load,
                "resources": sorted(card.stats.resources),
                "tags": sorted(card.stats.tags),
                "memory_gib": card.stats.memory_gib,
            }
            for card in sorted(self._cards.values(), key=lambda card: card.replica)
        ]

    def reports(self) -> list[ReplicaStats]:
        """The replicas with what is known beyond their last reports, as `scaling.decide` takes them."""
        return [
            dataclasses.replace(
                card.stats, jobs=frozenset(card.jobs), models=card.models, is_draining=card.is_away
            )
            for card in self._cards.values()
        ]

    def demand(self) -> dict[str, float]:
        """How many jobs came lately in a second, by model."""
        return self._demand.all(self._clock())

    # Where a card stands in the indexes

    def _leave_indexes(self, card: Card) -> None:
        """Before anything of a card changes."""
        self._idle.discard(card)
        self._free.pop(card.replica, None)
        self._copies.subtract(card.models)
        if self._busy.pop(card.replica, None) is not None:
            for model in card.models:
                del self._warm[model][card.replica]
        if not card.is_away:
            self._present[card.profile] -= 1
            if not self._present[card.profile]:
                del self._present[card.profile]

    def _enter_indexes(self, card: Card, is_news: bool = True) -> None:
        """After it has changed; it may be free for somebody who waits."""
        self._copies.update(card.models)
        if card.is_away:
            return
        self._present[card.profile] = self._present.get(card.profile, 0) + 1
        self._idle.add(card)
        if card.jobs:
            self._busy[card.replica] = card
            for model in card.models:
                self._warm.setdefault(model, {})[card.replica] = card
            if is_news:
                self._changed.update(self._patient.keys() & card.models)
        if card.state in (State.IDLE, State.FINISHING) and self.waiting:
            self._free[card.replica] = None

    def _change(self, replica: str, **values: bool) -> None:
        card = self._cards.get(replica)
        if card is not None:
            self._leave_indexes(card)
            for name, value in values.items():
                setattr(card, name, value)
            self._enter_indexes(card)
            self._look_again()

    def _look_again(self) -> None:
        """Whom a job avoided may be its only one now."""
        if any(kind.example.avoid for kind in self.waiting.kinds()):
            self._free.update(dict.fromkeys(card.replica for card in self._idle))
