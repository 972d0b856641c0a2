"""A fleet of cards in simulated time: days of traffic in seconds, with the router that runs in earnest.

Events lie on a heap by their time. A card takes jobs from a line of its own, one after the other: it
loads the model where it is not loaded (who was used longest ago leaves), changes LoRAs where others were
used, and draws. Messages between the front door and a card take `latency_seconds`. What decides is a
`Policy`; the same cards and the same jobs can be given to any, so that rules can be compared.

A job's waiting time ends when its drawing begins: a load is waiting to the one who waits. In every run it
is counted for how long a card had nothing to do while a job waited that it could have run. A job in the
hand of a card that only decodes does not count as waiting: it is what the card does next.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fleet.patience import LONGEST_SECONDS
from fleet.replica import Profile, ReplicaStats
from fleet.routing import PASSES, Decision, Router
from fleet.wanted import Wanted

# Of a job's time on the card, what is left when its last step is done: decoding.
DECODE_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class CardModel:
    """A kind of card: what models take there, and how long things last."""

    name: str
    resources: frozenset[str]
    memory_gib: float
    model_gib: Mapping[str, float]
    job_seconds: Mapping[str, float]  # a picture of the default size in the default steps
    load_gib_per_second: float
    lora_seconds: float = 0.0  # to exchange the LoRAs of a loaded model

    def load_seconds(self, model: str) -> float:
        return self.model_gib[model] / self.load_gib_per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class SimJob:
    """A job of a trace."""

    job: str
    at: float  # seconds, when it comes
    model: str
    lora_set: str = ""
    work: float = 1.0  # times the card's seconds for the model
    resources: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A card dies, and is there again later with nothing loaded."""

    card: int  # index of the card
    at: float
    back_at: float


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of a job."""

    job: SimJob
    began: float | None = None  # of its drawing
    ended: float | None = None
    tries: int = 0

    @property
    def waited(self) -> float:
        assert self.began is not None
        return self.began - self.job.at


@dataclass(slots=True, kw_only=True)
class Result:
    """What a run came to."""

    outcomes: list[Outcome]
    loads: int
    lora_changes: int
    seconds: float  # from the first job's coming to the last one's end
    idle_while_waiting_seconds: float  # a card that could have loaded the model did nothing
    ready_while_waiting_seconds: float  # and of that, one that had the model or room for it
    sends: int

    @property
    def lost(self) -> int:
        return sum(outcome.ended is None for outcome in self.outcomes)

    @property
    def waits(self) -> list[float]:
        return sorted(outcome.waited for outcome in self.outcomes if outcome.began is not None)

    @property
    def mean_wait(self) -> float:
        return sum(self.waits) / len(self.waits)

    @property
    def p95_wait(self) -> float:
        return self.waits[min(len(self.waits) - 1, int(0.95 * len(self.waits)))]

    @property
    def rate(self) -> float:
        """Jobs a second, from the first job's coming to the last one's end."""
        return len(self.waits) / self.seconds


class SimCard:
    """A card in the world: the truth, which a router only hears of."""

    def __init__(self, name: str, node: str, model: CardModel, tags: frozenset[str]) -> None:
        self.name, self.node, self.kind, self.tags = name, node, model, tags
        self.life = 0  # counted, so that a card that comes back is another one
        self.is_alive = True
        self.models: tuple[str, ...] = ()  # used longest ago first
        self.unloaded_at: dict[str, float] = {}
        self.lora_of: dict[str, str] = {}  # the set in use, by model
        self.line: collections.deque[SimJob] = collections.deque()
        self.on_its_way: dict[str, SimJob] = {}
        self.running: SimJob | None = None
        self.is_decoding = False
        self.heard = ""
        self.profile = Profile.of(self._bare())

    @property
    def replica(self) -> str:
        return f"{self.name}#{self.life}"

    @property
    def has(self) -> int:
        """Jobs it has or will have in a moment."""
        return len(self.line) + len(self.on_its_way) + (self.running is not None)

    def stats(self) -> ReplicaStats:
        """What it would report now."""
        running = [self.running.job] if self.running else []
        return dataclasses.replace(
            self._bare(),
            models=self.models,
            lora_sets=frozenset(self.lora_of.items()),
            jobs=frozenset([*running, *(job.job for job in self.line)]),
            heard=self.heard,
            finishing=frozenset(running if self.is_decoding else ()),
        )

    def _bare(self) -> ReplicaStats:
        return ReplicaStats(
            replica=self.replica,
            node=self.node,
            resources=self.kind.resources,
            tags=self.tags,
            model_gib=self.kind.model_gib,
            memory_gib=self.kind.memory_gib,
            job_seconds=self.kind.job_seconds,
            load_seconds={model: self.kind.load_seconds(model) for model in self.kind.model_gib},
        )


class Policy(Protocol):
    """Who decides. It acts through `World.send` and `World.after`."""

    def begin(self, world: World) -> None:
        """Before anything happens."""

    def came(self, job: SimJob) -> None:
        """A job came to the front door."""

    def reported(self, card: SimCard, stats: ReplicaStats) -> None:
        """A card's report has arrived."""

    def ended(self, job: SimJob, card: SimCard) -> None:
        """The front door was told of an end."""

    def died(self, replica: str, jobs: Sequence[SimJob]) -> None:
        """A card is gone, with jobs that have to be tried again."""


@dataclass(kw_only=True)
class World:
    """One run."""

    cards: list[SimCard]
    jobs: Sequence[SimJob]
    policy: Policy
    latency_seconds: float = 0.002
    report_seconds: float = 1.0  # a card reports so often, beside when something changes
    reports_arrivals: bool = False  # also when a job arrives: for front doors that did not send it
    failures: Sequence[Failure] = ()
    is_strict: bool = False  # a card that could begin with a job and does not ends the run
    now: float = 0.0
    loads: int = 0
    lora_changes: int = 0
    sends: int = 0
    _idle_while_waiting: float = 0.0
    _ready_while_waiting: float = 0.0
    _idle_now: tuple[bool, list[tuple[SimCard, str]]] | None = None  # until something changes
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _count: itertools.count[int] = field(default_factory=itertools.count)

    def run(self) -> Result:
        """Until every job has ended, or nothing happens any more."""
        self._outcomes = {job.job: Outcome(job=job) for job in self.jobs}
        self._left = len(self.jobs)
        self._waiting: dict[str, SimJob] = {}  # came, and no card began with it
        self._kinds: collections.Counter[object] = collections.Counter()
        self._idle = {card.name: card for card in self.cards}
        self.policy.begin(self)
        for card in self.cards:
            self._report(card)
        if self.report_seconds:
            for place, card in enumerate(self.cards):
                self.after(
                    self.report_seconds * place / len(self.cards), lambda c=card: self._tick(c)
                )
        for job in self.jobs:
            self._at(job.at, lambda j=job: self._come(j))
        for failure in self.failures:
            self._at(failure.at, lambda f=failure: self._fail(f))
        while self._left and self._events:
            at, _, act = heapq.heappop(self._events)
            self._check_idle(at)
            self.now = at
            act()
        outcomes = list(self._outcomes.values())
        last = max((each.ended for each in outcomes if each.ended is not None), default=0.0)
        return Result(
            outcomes=outcomes,
            loads=self.loads,
            lora_changes=self.lora_changes,
            seconds=last - min(job.at for job in self.jobs),
            idle_while_waiting_seconds=self._idle_while_waiting,
            ready_while_waiting_seconds=self._ready_while_waiting,
            sends=self.sends,
        )

    # What a policy may do

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Something later."""
        self._at(self.now + seconds, act)

    def send(self, job: SimJob, card: SimCard) -> None:
        """A job goes to the end of a card's own line."""
        self._idle_now = None
        self.sends += 1
        self._idle.pop(card.name, None)
        if card.has == (1 if card.is_decoding else 0):
            self._no_longer_waits(job)  # it is what the card does next
        card.on_its_way[job.job] = job
        life = card.life
        self.after(self.latency_seconds, lambda: self._arrive(job, card, life))

    def load(self, card: SimCard, model: str) -> None:
        """A model is loaded ahead of any job, if the card has nothing else to do."""
        self._idle_now = None
        if card.running is None and model not in card.models:
            seconds = self._load(card, model)
            job = SimJob(job=f"load {next(self._count)}", at=self.now, model=model)
            card.running = job
            self._idle.pop(card.name, None)
            life = card.life
            self.after(seconds, lambda: self._free(job, card, life))

    def switch_off(self, card: SimCard) -> None:
        """A card that has nothing to do is taken away."""
        self._idle_now = None
        assert card.has == 0, f"{card.name} has a job"
        card.life += 1
        card.is_alive = False
        card.models, card.lora_of = (), {}
        self._idle.pop(card.name, None)

    def switch_on(self, card: SimCard) -> None:
        """A card is there, with nothing loaded."""
        self._idle_now = None
        card.is_alive = True
        self._idle[card.name] = card
        self._report(card)

    # What happens

    def _at(self, at: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at, next(self._count), act))

    def _come(self, job: SimJob) -> None:
        self._waits(job)
        self.policy.came(job)

    def _waits(self, job: SimJob) -> None:
        self._idle_now = None
        self._waiting[job.job] = job
        self._kinds[(job.model, job.resources, job.tags)] += 1

    def _no_longer_waits(self, job: SimJob) -> None:
        self._idle_now = None
        if self._waiting.pop(job.job, None) is not None:
            self._kinds[(job.model, job.resources, job.tags)] -= 1

    def _arrive(self, job: SimJob, card: SimCard, life: int) -> None:
        if card.life != life:
            return  # it died meanwhile, and the job was among those that were lost
        card.on_its_way.pop(job.job)
        card.line.append(job)
        card.heard = job.job
        self._go_on(card)
        if self.reports_arrivals:
            self._report(card)

    def _go_on(self, card: SimCard) -> None:
        self._idle_now = None
        if card.running is not None:
            return
        if not card.line:
            if not card.on_its_way and card.is_alive:
                self._idle[card.name] = card
            return
        job = card.line.popleft()
        self._no_longer_waits(job)
        card.running = job
        outcome = self._outcomes[job.job]
        outcome.tries += 1
        setup = self._load(card, job.model)
        if card.lora_of.get(job.model, "") != job.lora_set:
            self.lora_changes += 1
            setup += card.kind.lora_seconds
            card.lora_of[job.model] = job.lora_set
        outcome.began = self.now + setup
        drawing = card.kind.job_seconds[job.model] * job.work
        life = card.life
        self.after(setup + drawing * (1 - DECODE_SHARE), lambda: self._decode(job, card, life))
        self.after(setup + drawing, lambda: self._free(job, card, life))

    def _load(self, card: SimCard, model: str) -> float:
        """Seconds until the model is there."""
        if model in card.models:
            card.models = card.profile.loaded_after(model, card.models)
            return 0.0
        self.loads += 1
        before = card.models
        card.models = card.profile.loaded_after(model, card.models)
        for gone in set(before) - set(card.models):
            card.unloaded_at[gone] = self.now
            card.lora_of.pop(gone, None)
        return card.kind.load_seconds(model)

    def _decode(self, job: SimJob, card: SimCard, life: int) -> None:
        if card.life == life and card.running is job:
            card.is_decoding = True
            if card.line:
                self._no_longer_waits(card.line[0])
            self._report(card)

    def _free(self, job: SimJob, card: SimCard, life: int) -> None:
        if card.life != life:
            return
        card.running, card.is_decoding = None, False
        if job.job in self._outcomes:
            self._outcomes[job.job].ended = self.now
            self._left -= 1
            self.after(self.latency_seconds, lambda: self.policy.ended(job, card))
        self._report(card)
        self._go_on(card)

    def _report(self, card: SimCard) -> None:
        stats = card.stats()
        self.after(self.latency_seconds, lambda: self._deliver(card, stats))

    def _deliver(self, card: SimCard, stats: ReplicaStats) -> None:
        if card.is_alive and stats.replica == card.replica:
            self.policy.reported(card, stats)

    def _tick(self, card: SimCard) -> None:
        if card.is_alive:
            self._report(card)
        self.after(self.report_seconds, lambda: self._tick(card))

    def _fail(self, failure: Failure) -> None:
        self._idle_now = None
        card = self.cards[failure.card]
        lost = [*([card.running] if card.running else []), *card.line, *card.on_its_way.values()]
        lost = [job for job in lost if job.job in self._outcomes]
        replica = card.replica
        card.life += 1
        card.is_alive = False
        card.models, card.lora_of, card.running, card.is_decoding = (), {}, None, False
        card.line.clear()
        card.on_its_way.clear()
        self._idle.pop(card.name, None)
        for job in lost:
            self._outcomes[job.job].began = None
            self._waits(job)
        self.after(self.latency_seconds, lambda: self.policy.died(replica, lost))
        self._at(failure.back_at, lambda: self.switch_on(card))

    def _check_idle(self, until: float) -> None:
        """Count the time since the last event in which a card idled while somebody waited."""
        if until <= self.now or not self._waiting or not self._idle:
            return
        if self._idle_now is None:
            self._idle_now = self._idle_beside()
        is_able, ready = self._idle_now
        seconds = until - self.now
        self._idle_while_waiting += seconds * is_able
        self._ready_while_waiting += seconds * bool(ready)
        if self.is_strict and ready:
            card, model = ready[0]
            raise AssertionError(
                f"{card.name} could have begun with {model} at {self.now} and did nothing until {until}"
            )

    def _idle_beside(self) -> tuple[bool, list[tuple[SimCard, str]]]:
        """Whether an idle card could run somebody's job; one that has the model, or room for it."""
        kinds = [kind for kind, count in self._kinds.items() if count]
        is_able = False
        for card in self._idle.values():
            for model, resources, tags in kinds:
                if _can_run(card, model, resources, tags):
                    is_able = True
                    if not card.profile.leaving(model, card.models):
                        return True, [(card, model)]
        return is_able, []


def _can_run(card: SimCard, model: str, resources: frozenset[str], tags: frozenset[str]) -> bool:
    wanted = Wanted(job="", seq=0, model=model, resources=resources, tags=tags)
    return card.profile.can_run(wanted)


class OurPolicy:
    """The router as it is, with every job in its line until a card takes it."""

    def __init__(self, passes: int = PASSES, patience_seconds: float = LONGEST_SECONDS) -> None:
        self.router = Router(passes, patience_seconds, clock=lambda: self._world.now)
        self.decisions: list[Decision] = []
        self._seqs: dict[str, int] = {}
        self._wakes_at = -math.inf

    def begin(self, world: World) -> None:
        self._world = world
        self._jobs = {job.job: job for job in world.jobs}
        self._cards = {card.name: card for card in world.cards}

    def came(self, job: SimJob) -> None:
        self._wait(job)
        self._give_out()

    def reported(self, card: SimCard, stats: ReplicaStats) -> None:
        self.router.report(stats)
        self._give_out()

    def ended(self, job: SimJob, card: SimCard) -> None:
        self.router.ended(job.job)
        self._give_out()

    def died(self, replica: str, jobs: Sequence[SimJob]) -> None:
        self.router.forget(replica)
        for job in jobs:
            self._wait(job)
        self._give_out()

    def _wait(self, job: SimJob) -> None:
        self.router.wait(
            Wanted(
                job=job.job,
                seq=self._seqs.setdefault(job.job, len(self._seqs)),
                model=job.model,
                lora_set=job.lora_set,
                work=job.work,
                resources=job.resources,
                tags=job.tags,
            )
        )

    def _give_out(self) -> None:
        while (decision := self.router.next()) is not None:
            self.decisions.append(decision)
            card = self._cards[decision.replica.rpartition("#")[0]]
            self._world.send(self._jobs[decision.job], card)
        now, at = self._world.now, self.router.wakes_at
        if at < math.inf and not now < self._wakes_at <= at:  # one is on its way, and soon enough
            self._wakes_at = max(now, at)
            self._world.after(self._wakes_at - now, self._give_out)
