"""How many replicas have a worker, by how much waits: the others sleep and give their memory back.

Replicas are where the machines have places; a sleeping one is a small process that holds no model and no card.
`fleet/scaling.py` decides how many; of those that sleep the ones are woken that can draw what waits, and a job that
none awake could ever draw has one woken for it, within the limits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from config.settings import FleetSettings
from fleet.replica import Profile
from fleet.scaling import ScaleLimits, ScaleState, decide
from fleet.waiting import Kind
from utils.fleet.queue import FleetQueue
from utils.fleet.worker import FleetWorker

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
UP_AFTER_SECONDS = 5.0


class Scale:
    """`replicas` is the list that others fill."""

    def __init__(
        self,
        replicas: Sequence[FleetWorker],
        queue: FleetQueue,
        settings: FleetSettings,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replicas = replicas
        self._queue = queue
        self._settings = settings
        self._monotonic = monotonic
        self._state = ScaleState()
        self._making_room: set[str] = set()  # who is leaving for another kind of jobs

    async def go_on(self) -> None:
        if not self._settings.fleet_min_replicas and not self._settings.fleet_max_replicas:
            return  # all of them, always
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                self.look()
            except Exception:
                log.exception("the fleet was not scaled", extra={"action": "scale_failed"})

    def limits(self, places: int) -> ScaleLimits:
        most = min(places, self._settings.fleet_max_replicas or places)
        return ScaleLimits(
            least=min(most, self._settings.fleet_min_replicas or most),
            most=most,
            up_after_seconds=UP_AFTER_SECONDS,
            down_after_seconds=self._settings.fleet_idle_seconds,
        )

    def look(self) -> None:
        here = [worker for worker in self._replicas if not worker.is_draining]
        if not here or not self._queue.dispatcher.routes:
            return
        kinds = list(self._queue.dispatcher.router.waiting.kinds())
        can: dict[FleetWorker, list[Kind]] = {}  # what waits that each can draw
        if kinds and any(worker.is_asleep or worker.is_leaving for worker in here):
            can = {worker: _drawable(worker, kinds) for worker in here}
            self._wake_for_stuck(here, kinds, can)
        awake = [worker for worker in here if not worker.is_asleep]
        router = self._queue.dispatcher.router
        # One that starts counts: it is on its way.
        reports = [replace(worker.stats(), is_draining=worker.is_leaving) for worker in awake]
        self._state, scaling = decide(
            self.limits(len(here)),
            self._state,
            self._monotonic(),
            router.waiting.by_model,
            reports,
            router.demand(),
        )
        by_id = {worker.replica: worker for worker in here}
        for replica in scaling.gone:
            by_id[replica].sleep()
            self._making_room.discard(replica)
        if scaling.drain is not None:
            by_id[scaling.drain].is_leaving = True
            self._say("has nothing to do", by_id[scaling.drain], scaling.reason)
        lacking = scaling.target - sum(not worker.is_leaving for worker in awake)
        use = {worker: sum(map(len, drawable)) for worker, drawable in can.items()}
        for worker in sorted(here, key=lambda each: (-use.get(each, 0), each.is_asleep)):
            may = worker.is_leaving and worker.replica not in self._making_room
            may |= worker.is_asleep and self._has_room(here)
            if lacking > 0 and may:
                self._call_back(worker, scaling.reason)
                lacking -= 1
        self._queue.wake()

    def _has_room(self, here: Sequence[FleetWorker]) -> bool:
        """Whether one more may be awake; one that is leaving has its memory still."""
        return sum(not worker.is_asleep for worker in here) < self.limits(len(here)).most

    def _wake_for_stuck(
        self,
        here: Sequence[FleetWorker],
        kinds: Sequence[Kind],
        can: Mapping[FleetWorker, Sequence[Kind]],
    ) -> None:
        """A kind of jobs that no replica awake can draw has one woken, or one set aside to make room for it."""
        for kind in sorted(kinds, key=lambda kind: kind.oldest):
            able = [worker for worker in here if kind in can[worker]]
            if not able or any(not (each.is_asleep or each.is_leaving) for each in able):
                continue
            awake = [worker for worker in here if not worker.is_asleep]
            why = f"{kind.model} waits, and nobody awake can draw it so"
            asleep = [worker for worker in able if worker.is_asleep]
            spared = [worker for worker in able if worker.is_leaving]
            spared = [worker for worker in spared if worker.replica not in self._making_room]
            if spared or (asleep and self._has_room(here)):
                self._call_back((spared or asleep)[0], why)
            elif asleep and not any(worker.is_leaving for worker in awake):
                self._set_one_aside(awake, kind, can, why)

    def _set_one_aside(
        self,
        awake: Sequence[FleetWorker],
        stuck: Kind,
        can: Mapping[FleetWorker, Sequence[Kind]],
        why: str,
    ) -> None:
        """One that draws nothing older: so each gets its turn, and nobody is set aside before it has drawn."""
        for worker in sorted(awake, key=lambda worker: len(worker.jobs)):
            own = (kind.oldest for kind in can[worker])
            if stuck.oldest < min(own, default=math.inf):
                worker.is_leaving = True
                self._making_room.add(worker.replica)
                return self._say("makes room", worker, why)

    def _call_back(self, worker: FleetWorker, why: str) -> None:
        worker.is_leaving = False
        self._making_room.discard(worker.replica)
        if worker.is_asleep:
            worker.wake()
        self._say("is needed", worker, why)

    def _say(self, what: str, worker: FleetWorker, why: str) -> None:
        extra = {"action": "fleet_scaled", "replica": worker.replica}
        log.info("replica %s %s: %s", worker.name, what, why, extra=extra)


def _drawable(worker: FleetWorker, kinds: Sequence[Kind]) -> list[Kind]:
    profile = Profile.of(worker.stats())
    return [kind for kind in kinds if profile.can_run(kind.example)]
