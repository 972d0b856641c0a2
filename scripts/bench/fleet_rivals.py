"""Other routers' rules, written from what they say of themselves, on the simulator's cards.

They are told the truth without delay, and a job whose card died is tried again, also where the original
would let it fail: what is compared is the rule. Their cards keep models in memory as ours do.

ollama-herd scores nodes. For pictures: -50 for one that draws, half a point for each GiB that is free, -0.2
for each percent of its processor; a request goes to the best at once and waits there. For language
models: seven signals, of which those that can differ here are the model's state (loaded 50, unloaded less
than half an hour ago 30, on disk 10), how well it fits (up to 20), the queue of the model there (-6 each,
up to -30), the expected wait there (-1 for ten seconds, up to -25), and large models for large nodes (up
to 15); every five seconds up to three of more than four waiting move to a node that has the model and
fewer, and a queue of three or more has the model loaded on the runner-up.

Ray Serve picks two replicas at random and takes the one with less to do, if it takes more; a replica
has at most `max_ongoing_requests`, 5 unless it is said. With multiplexed model ids, the two are picked
among those that have the model; where none has it, or they take no more, among those with the fewest
models, and after a second or two among all. What finds no replica tries again, after 25 ms, twice that and so
on up to half a second; a replica that is found serves the oldest request of that model, or the oldest. No
more than twice as many requests as there are replicas look for one at a time.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Sequence

from fleet.replica import ReplicaStats
from fleet.simulator import SimCard, SimJob, World

HERD_TICK_SECONDS = 5.0
WARM_SECONDS = 1800.0
BACKOFF_SECONDS = 0.025
LONGEST_BACKOFF_SECONDS = 0.5
MATCHING_SECONDS = 1.0  # to twice that, at random


class Rival:
    """What all of them share."""

    def begin(self, world: World) -> None:
        self.world = world

    def able(self, job: SimJob) -> list[SimCard]:
        """Cards that are there and can run a job."""
        return [
            card
            for card in self.world.cards
            if card.is_alive
            and job.resources <= card.kind.resources
            and job.tags <= card.tags
            and card.kind.model_gib.get(job.model, float("inf")) <= card.kind.memory_gib
        ]

    def came(self, job: SimJob) -> None:
        raise NotImplementedError

    def reported(self, card: SimCard, stats: ReplicaStats) -> None:
        pass

    def ended(self, job: SimJob, card: SimCard) -> None:
        pass

    def died(self, replica: str, jobs: Sequence[SimJob]) -> None:
        for job in jobs:
            self.came(job)


def free_gib(card: SimCard) -> float:
    return card.kind.memory_gib - sum(card.kind.model_gib[model] for model in card.models)


class HerdForPictures(Rival):
    """ollama-herd's three signals for pictures."""

    def came(self, job: SimJob) -> None:
        cards = self.able(job)
        if not cards:
            self.world.after(HERD_TICK_SECONDS, lambda: self.came(job))
            return
        self.world.send(job, max(cards, key=self._score))

    @staticmethod
    def _score(card: SimCard) -> float:
        # The processors of a node are about as busy as its card, here: none at all, or one.
        return -50.0 * (card.has > 0) + 0.5 * free_gib(card)


class HerdInFull(Rival):
    """ollama-herd's seven signals, its rebalancing and its warming."""

    def begin(self, world: World) -> None:
        super().begin(world)
        self._by_name = {card.name: card for card in world.cards}
        self._seconds: dict[tuple[str, str], list[float]] = {}
        world.after(HERD_TICK_SECONDS, self._tick)

    def came(self, job: SimJob) -> None:
        cards = [card for card in self.able(job) if self._could_load(card, job.model)]
        if not cards:
            self.world.after(HERD_TICK_SECONDS, lambda: self.came(job))
            return
        self.world.send(job, max(cards, key=lambda card: self._score(card, job.model)))

    def ended(self, job: SimJob, card: SimCard) -> None:
        seconds = self._seconds.setdefault((card.name, job.model), [])
        seconds.append(card.kind.job_seconds[job.model] * job.work)

    def _could_load(self, card: SimCard, model: str) -> bool:
        """Models that nobody uses make room, as with Ollama; those in use do not."""
        used = {job.model for job in self._jobs(card)}
        needed = sum(card.kind.model_gib[each] for each in used | {model})
        return model in card.models or needed <= card.kind.memory_gib or card.has == 0

    @staticmethod
    def _jobs(card: SimCard) -> list[SimJob]:
        running = [card.running] if card.running else []
        return [*running, *card.line, *card.on_its_way.values()]

    def _depth(self, card: SimCard, model: str) -> int:
        return sum(job.model == model for job in self._jobs(card))

    def _score(self, card: SimCard, model: str) -> float:
        depth = self._depth(card, model)
        size = card.kind.model_gib[model]
        if model in card.models:
            score = 50.0 + 20.0
        else:
            unloaded_at = card.unloaded_at.get(model, -WARM_SECONDS)
            score = 30.0 if self.world.now - unloaded_at < WARM_SECONDS else 10.0
            ratio = free_gib(card) / size
            score += (
                20 if ratio > 2 else 15 if ratio > 1.5 else 8 if ratio > 1.2 else 3 * (ratio >= 1)
            )
        score -= min(30.0, 6.0 * depth)
        seconds = sorted(self._seconds.get((card.name, model), []))[-200:]
        if depth and seconds:
            score -= min(25.0, depth * seconds[int(0.75 * (len(seconds) - 1))] / 10)
        if size > 20:
            score += 15.0 if card.kind.memory_gib >= 128 else 5.0 * (card.kind.memory_gib >= 32)
        elif size < 8:
            score += 15.0 if card.kind.memory_gib <= 32 else 8.0
        else:
            score += 5.0
        return score

    def _tick(self) -> None:
        queues = [
            (card, model)
            for card in self.world.cards
            for model in dict.fromkeys(job.model for job in self._jobs(card))
        ]
        for card, model in queues:
            self._warm_runner_up(card, model)
        for card, model in queues:
            self._rebalance(card, model)
        self.world.after(HERD_TICK_SECONDS, self._tick)

    def _ranked(self, model: str) -> list[SimCard]:
        cards = self.able(SimJob(job="", at=0, model=model))
        cards = [card for card in cards if self._could_load(card, model)]
        return sorted(cards, key=lambda card: -self._score(card, model))

    def _warm_runner_up(self, card: SimCard, model: str) -> None:
        if self._depth(card, model) >= 3:
            ranked = self._ranked(model)
            if len(ranked) > 1:
                self.world.load(ranked[1], model)

    def _rebalance(self, card: SimCard, model: str) -> None:
        waiting = [job for job in card.line if job.model == model]
        if len(waiting) < 4:
            return
        for other in self._ranked(model):
            if other is card or model not in other.models or self._depth(other, model) >= 4:
                continue
            for job in waiting[: min(len(waiting) // 2, 3)]:
                card.line.remove(job)
                self.world.send(job, other)
            return


class Ray(Rival):
    """Ray Serve's router: the power of two choices, with or without multiplexed model ids."""

    def __init__(self, multiplexed: bool, max_ongoing: int, seed: int = 0) -> None:
        self._multiplexed = multiplexed
        self._max_ongoing = max_ongoing
        self._random = random.Random(seed)
        self._pending: dict[str, SimJob] = {}  # in the order in which they came
        self._unlooked: collections.deque[SimJob] = collections.deque()
        self._looking = 0  # no more than twice the replicas
        self._fell_back: set[str] = set()

    def came(self, job: SimJob) -> None:
        self._pending[job.job] = job
        self._unlooked.append(job)
        self._look_for_more()

    def _look_for_more(self) -> None:
        while self._unlooked and self._looking < 2 * len(self.world.cards):
            job = self._unlooked.popleft()
            if job.job in self._pending:
                self._looking += 1
                self._look(job, tries=0, since=self.world.now, tried=set())

    def _look(self, job: SimJob, tries: int, since: float, tried: set[str]) -> None:
        if job.job not in self._pending:  # another's look found a replica for it
            self._looking -= 1
            self._look_for_more()
            return
        cards = self._candidates(job, since, tried)
        chosen = self._random.sample(cards, min(2, len(cards)))
        chosen = [card for card in chosen if card.has < self._max_ongoing]
        if not chosen:
            pause = min(BACKOFF_SECONDS * 2**tries, LONGEST_BACKOFF_SECONDS)
            self.world.after(pause, lambda: self._look(job, min(tries + 1, 10), since, tried))
            return
        card = min(chosen, key=lambda card: card.has)
        served = self._served_by(card, job)
        del self._pending[served.job]
        self.world.send(served, card)
        self._look(job, tries, since, tried)

    def _candidates(self, job: SimJob, since: float, tried: set[str]) -> list[SimCard]:
        able = self.able(job)
        if not self._multiplexed or not able:
            return able
        fewest = min(len(card.models) for card in able)
        with_fewest = [card for card in able if len(card.models) == fewest]
        patience = self._random.uniform(MATCHING_SECONDS, 2 * MATCHING_SECONDS)
        if self.world.now - since < patience:
            matching = [card for card in able if job.model in card.models]
            is_first = not matching and job.model not in self._fell_back
            if matching and not (is_first or "first" in tried):
                self._fell_back.discard(job.model)
            if is_first or "first" in tried:
                self._fell_back.add(job.model)
                matching = with_fewest
            tried.add("first")
            return matching
        if "fewest" not in tried:
            tried.add("fewest")
            return with_fewest
        return able

    def _served_by(self, card: SimCard, job: SimJob) -> SimJob:
        """The oldest of its model, or the oldest that the card can run."""
        for other in self._pending.values():
            if (other.model == job.model) if self._multiplexed else self._can(card, other):
                return other
        return job

    @staticmethod
    def _can(card: SimCard, job: SimJob) -> bool:
        return job.model in card.kind.model_gib and job.resources <= card.kind.resources
