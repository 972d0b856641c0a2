"""What the router knows of one replica: its last report, and what was sent to it since.

A report is old when it arrives. So the router never takes it for the present: jobs that it sent and
whose end it was not told count as there, jobs whose end it was told count as gone, and the models of
what is on its way count as loaded, because they will be before anything else can be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum

from fleet.replica import Profile, ReplicaStats
from fleet.wanted import Wanted

# So many jobs' effect on the loaded models is remembered until a report shows it.
REMEMBERED = 32
# Measured seconds that differ by less than a step of this are equal, so that noise decides nothing.
PACE_STEP = math.log(1.15)
LOAD_STEP = 0.25


class State(Enum):
    IDLE = "idle"  # has nothing to do
    FINISHING = "finishing"  # the last steps of its job are done; it takes another into its hand
    BUSY = "busy"  # takes no more
    AWAY = "away"  # drains, or was not heard of


class Card:
    """One replica; `stats` is its last report."""

    def __init__(self, stats: ReplicaStats) -> None:
        self.sent: dict[str, Wanted] = {}  # our jobs there, in the order in which they were sent
        self.is_set_aside = False  # by our own word, beside the replica's
        self.is_silent = False
        self._ended: set[str] = set()  # told to us, and perhaps not yet seen by a report
        self._unseen: list[Wanted] = []  # sent, and perhaps not yet seen by a report
        self.free_at = math.inf  # as far as is known
        self.stats = stats
        self.profile = Profile.of(stats)
        self.paces = _paces(stats.job_seconds)
        self._conclude()

    def take_report(self, stats: ReplicaStats, now: float) -> None:
        """Another report of the same replica."""
        self.profile = Profile.of(stats)
        if stats.job_seconds != self.stats.job_seconds:
            self.paces = _paces(stats.job_seconds)
        self.stats = stats
        self.is_silent = False
        self._ended &= stats.jobs
        seen = len(self._unseen) if not stats.heard else 0
        for place, job in enumerate(self._unseen):
            if job.job == stats.heard:
                seen = place + 1
        # What runs stays: its model may be on its way to memory.
        running = [job for job in self._unseen[:seen] if job.job in self.sent]
        self._unseen = running + self._unseen[seen:]
        self._conclude()
        if stats.seconds_left is not None:
            in_hand = [job for job in self.sent.values() if job.job not in stats.jobs]
            self.free_at = now + stats.seconds_left + sum(map(self.seconds_of, in_hand))

    def send(self, wanted: Wanted, now: float) -> None:
        """A job was given to it."""
        begins = self.free_at if self.jobs else now
        self.free_at = begins + self.seconds_of(wanted)
        self.sent[wanted.job] = wanted
        self._unseen = [*self._unseen[-REMEMBERED + 1 :], wanted]
        self._conclude()

    def seconds_of(self, wanted: Wanted) -> float:
        """How long it would be busy with a job, begun next; unknown is for ever."""
        unknown = math.inf
        load = 0.0
        if wanted.model not in self.models:
            load = self.stats.load_seconds.get(wanted.model, unknown)
        return load + self.stats.job_seconds.get(wanted.model, unknown) * wanted.work

    def end(self, job: str, now: float) -> None:
        """A job of ours there has ended."""
        del self.sent[job]
        self._ended.add(job)
        self._conclude()
        self.free_at = now + sum(self.seconds_of(wanted) for wanted in self.sent.values())

    @property
    def replica(self) -> str:
        return self.stats.replica

    @property
    def rest(self) -> int:
        """How much of its processors is in use, in steps."""
        return int(self.stats.load / LOAD_STEP)

    def pace(self, model: str) -> int:
        """How long a job of the model takes there, in steps; 0 where it was not measured, to be tried."""
        return self.paces.get(model, 0)

    @property
    def is_away(self) -> bool:
        """Whether it gets nothing new."""
        return self.stats.is_draining or self.is_set_aside or self.is_silent

    @property
    def state(self) -> State:
        if self.is_away:
            return State.AWAY
        if not self.jobs:
            return State.IDLE
        in_the_way = len(self.jobs - self.stats.finishing)
        return State.FINISHING if in_the_way < self.stats.takes else State.BUSY

    def _conclude(self) -> None:
        """What it has by now, as far as can be known."""
        self.jobs = (self.stats.jobs - self._ended) | self.sent.keys()
        models, lora_sets = self.stats.models, self.stats.lora_sets
        for job in self._unseen:
            if job.model in self.profile.sizes:
                models = self.profile.loaded_after(job.model, models)
                if job.lora_set:
                    lora_sets |= {(job.model, job.lora_set)}
        self.models = models
        self.lora_sets = frozenset(pair for pair in lora_sets if pair[0] in models)


def _paces(seconds: Mapping[str, float]) -> dict[str, int]:
    """Measured times in steps, from 1 for a millisecond."""
    return {
        model: 1 + round(math.log(max(each, 1e-3) / 1e-3) / PACE_STEP)
        for model, each in seconds.items()
    }
