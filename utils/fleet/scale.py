"""How many replicas have a worker, by how much waits: the others sleep and give their memory back.

Replicas are where the machines have places; a sleeping one is a small process that holds no model and no card. `fleet/scaling.py` decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from config.settings import FleetSettings
from fleet.scaling import ScaleLimits, ScaleState, decide
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
        if not here:
            return
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
        if scaling.drain is not None:
            by_id[scaling.drain].is_leaving = True
            self._say("has nothing to do", by_id[scaling.drain], scaling.reason)
        lacking = scaling.target - sum(not worker.is_leaving for worker in awake)
        for worker in sorted(here, key=lambda worker: worker.is_asleep):
            if lacking <= 0:
                break
            if worker.is_leaving or worker.is_asleep:
                worker.is_leaving = False
                if worker.is_asleep:
                    worker.wake()
                self._say("is needed", worker, scaling.reason)
                lacking -= 1
        self._queue.wake()

    def _say(self, what: str, worker: FleetWorker, why: str) -> None:
        extra = {"action": "fleet_scaled", "replica": worker.replica}
        log.info("replica %s %s: %s", worker.name, what, why, extra=extra)
