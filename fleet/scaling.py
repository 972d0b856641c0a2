"""How many replicas there should be, and which of them may go.

There are as many as are needed for the jobs that are there, each to hold `jobs_per_replica` of them, within
limits. More are asked for when that has been so for `up_after_seconds`, fewer when it has been so
for `down_after_seconds`, and then one after the other: a replica that comes has to load its models, so one
too many costs less than one that goes and comes. One that has a job never goes, nor does the only one that
has a model which somebody waits for or which was asked for lately; it goes by draining first.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from config.errors import ConfigurationError
from fleet.replica import ReplicaStats


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleLimits:
    """What the rule may do."""

    least: int = 1
    most: int = 1
    jobs_per_replica: float = 2.0  # waiting and running ones
    up_after_seconds: float = 10.0
    down_after_seconds: float = 600.0
    often_per_minute: float = (
        1.0  # a model that is asked for so often keeps the only replica that has it
    )

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            raise ConfigurationError(
                f"replicas: at least {self.least} and at most {self.most} cannot be;"
                " the least must be 0 or more, and the most no less"
            )
        if self.jobs_per_replica <= 0:
            raise ConfigurationError(
                f"jobs_per_replica is {self.jobs_per_replica:g}; it must be more than 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleState:
    """Since when more or fewer were wanted; kept from one decision to the next."""

    more_since: float | None = None
    fewer_since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """What to do now."""

    target: int  # how many there should be, draining ones not counted
    drain: str | None = None  # who gets nothing new from now on, and goes when it has nothing left
    gone: tuple[str, ...] = ()  # drained, with nothing left: may be ended
    reason: str = ""


def decide(
    limits: ScaleLimits,
    state: ScaleState,
    now: float,
    waiting: Mapping[str, int],
    replicas: Sequence[ReplicaStats],
    demand: Mapping[str, float],
) -> tuple[ScaleState, Scaling]:
    """`waiting` is how many jobs wait, `demand` how many came lately in a second, both by model."""
    present = [each for each in replicas if not each.is_draining]
    gone = tuple(each.replica for each in replicas if each.is_draining and not each.jobs)
    count = len(present)
    jobs = sum(waiting.values()) + sum(len(each.jobs) for each in replicas)
    needed = math.ceil(jobs / limits.jobs_per_replica)
    wanted = min(limits.most, max(limits.least, needed))
    words = f"{jobs} jobs for {count} replicas, wanted {wanted}"

    if wanted > count:
        since = now if state.more_since is None else state.more_since
        if count < max(1, limits.least) or now - since >= limits.up_after_seconds:
            return ScaleState(), Scaling(target=wanted, gone=gone, reason=words)
        held = f"{words}; for {now - since:.0f} of {limits.up_after_seconds:g} s"
        return ScaleState(more_since=since), Scaling(target=count, gone=gone, reason=held)

    if wanted < count:
        since = now if state.fewer_since is None else state.fewer_since
        state = ScaleState(fewer_since=since)
        if count <= limits.most and now - since < limits.down_after_seconds:
            held = f"{words}; for {now - since:.0f} of {limits.down_after_seconds:g} s"
            return state, Scaling(target=count, gone=gone, reason=held)
        leaver = spare(present, waiting, demand, limits.often_per_minute)
        if leaver is None:
            held = f"{words}; every replica has a job, or alone a model that is asked for"
            return state, Scaling(target=count, gone=gone, reason=held)
        # The next one goes after the same time again.
        return ScaleState(), Scaling(target=count - 1, drain=leaver, gone=gone, reason=words)

    return ScaleState(), Scaling(target=count, gone=gone, reason=words)


def spare(
    replicas: Sequence[ReplicaStats],
    waiting: Mapping[str, int],
    demand: Mapping[str, float],
    often_per_minute: float,
) -> str | None:
    """The replica that is missed least; None where none can be spared."""
    copies = collections.Counter(model for each in replicas for model in each.models)

    def is_asked_for(model: str) -> bool:
        return waiting.get(model, 0) > 0 or demand.get(model, 0.0) * 60 >= often_per_minute

    def may_go(each: ReplicaStats) -> bool:
        only = [model for model in each.models if copies[model] == 1 and is_asked_for(model)]
        return not each.jobs and not only

    def missed(each: ReplicaStats) -> tuple[float, int, str]:
        return (
            sum(demand.get(model, 0.0) / copies[model] for model in each.models),
            len(each.models),
            each.replica,
        )

    spared = sorted(filter(may_go, replicas), key=missed)
    return spared[0].replica if spared else None
