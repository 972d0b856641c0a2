"""Who is in the fleet: replicas are found, listened to, set aside, put to sleep, and missed.

Lives in the front door's event loop; Ray's blocking calls go to threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

from config.catalog import DefaultModel
from config.errors import NotFound, StorageUnavailable
from config.settings import Settings
from utils.fleet import background, messages
from utils.fleet.board import BOARD, Board, Seat, board_of
from utils.fleet.cluster import Cluster
from utils.fleet.door_files import DoorFiles
from utils.fleet.link import Link
from utils.fleet.queue import FleetQueue
from utils.fleet.roster import Roster
from utils.fleet.scale import Scale
from utils.fleet.worker import FleetWorker

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0  # between two looks at how many places there are
HELLO_SECONDS = 60.0
AGAIN_SECONDS = 1.0
RAY_SECONDS = 0.5  # between two looks at Ray's processes
ABILITIES = "fleet_abilities"  # the key of what is remembered


class Crew:
    """`cluster` is connected. `open` with the queue that it works for."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self.roster = Roster()
        self.away: set[str] = set()  # machines that get nothing new
        self.has_ray: Callable[[], bool] = lambda: True
        self.is_without_ray = False  # it has ended, and with it the front door
        self.routes = True  # or another front door does, and we listen
        self.on_away: Callable[[], None] = lambda: None
        self._cluster = cluster
        self._board: Board = board_of(BOARD)
        self._settings = settings
        self._door = secrets.token_hex(8)  # of this life of the front door
        self._handles: dict[str, Any] = {}
        self._greeting: dict[str, asyncio.Task[None]] = {}  # by replica
        self._tasks: list[asyncio.Task[None]] = []
        self._ending: set[asyncio.Task[None]] = set()  # processes that are ended
        self._changed = asyncio.Event()
        self._known: set[tuple[str, str]] = set()  # precision and model that a replica ever could
        self._queue: FleetQueue
        self.files: DoorFiles
        self._default: DefaultModel

    async def open(
        self, queue: FleetQueue, default: DefaultModel, loras: Path, inputs: Path
    ) -> None:
        self._queue, self._default = queue, default
        queue.on_missed = self.missed
        self.files = DoorFiles(loras, inputs)
        # Of an earlier start: jobs are taken before the first replica has said what it can.
        known = json.loads(await queue.store.read_state(ABILITIES) or "[]")
        self._known = {(precision, model) for precision, model in known}
        for precision, model in self._known:
            self.roster.left(precision, [model])
        loop = asyncio.get_running_loop()
        self._board.listen(lambda: loop.call_soon_threadsafe(self._changed.set))
        scale = Scale(self.replicas, queue, self._settings.fleet)
        self._tasks = [
            asyncio.create_task(scale.go_on(), name="fleet's size"),
            asyncio.create_task(self._watch_ray(), name="fleet's Ray"),
            asyncio.create_task(self._fill_on(), name="fleet's places"),
            asyncio.create_task(self._greet_on(), name="fleet's replicas"),
        ]

    async def close(self) -> None:
        self._board.listen(lambda: None)
        tasks = [*self._tasks, *self._greeting.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def replicas(self) -> list[FleetWorker]:
        return self.roster.replicas

    @property
    def nodes(self) -> list[str]:
        """The machines that have a replica up."""
        return sorted({worker.node for worker in self.replicas})

    def replicas_of(self, node: str) -> list[FleetWorker]:
        return [worker for worker in self.replicas if worker.node == node]

    def drain(self, node: str, *, is_away: bool) -> None:
        """A machine gets nothing new, or again. Raises NotFound for one that is not in the fleet."""
        if node not in self.nodes and node not in self.away:
            there = ", ".join(self.nodes) or "none"
            raise NotFound.of(
                "node", f"{node[:64]!r} is no machine of the fleet; there is: {there}"
            )
        (self.away.add if is_away else self.away.discard)(node)
        self.set_away(self.away)
        self.on_away()

    def set_away(self, nodes: Iterable[str]) -> None:
        """The machines that get nothing new, as somebody said."""
        self.away = set(nodes)
        for worker in self.replicas:
            worker.is_draining = worker.node in self.away
        self._queue.wake()

    async def set_routes(self, routes: bool) -> None:
        """Have the replicas for this door alone, or listen to them beside the one that has."""
        self.routes = routes
        self._door = secrets.token_hex(8)
        greeting = list(self._greeting.values())
        for task in greeting:
            task.cancel()
        await asyncio.gather(*greeting, return_exceptions=True)
        for worker in list(self.replicas):
            await worker.leave()
        self._changed.set()

    async def _watch_ray(self) -> None:
        """Without it nobody is reached any more, and Ray itself would say so after a minute."""
        while self.has_ray():
            await asyncio.sleep(RAY_SECONDS)
        self.is_without_ray = True
        log.critical(
            "Ray's processes on this machine have ended, and the front door ends with them; what ran and "
            "waits begins with the next start (data/fleet/ray.log may say why)",
            extra={"action": "ray_ended"},
        )
        for task in [*self._tasks, *self._greeting.values()]:
            if task is not asyncio.current_task():
                task.cancel()
        self._queue.drain()  # so that nobody's attempt is counted
        for worker in list(self.replicas):
            await worker.lose("Ray has ended")
        signal.raise_signal(signal.SIGTERM)

    # Replicas come

    async def _fill_on(self) -> None:
        while True:
            try:
                find = self._cluster.fill if self.routes else self._cluster.find
                self._handles = await background.run(find)
                self._changed.set()
            except Exception:
                log.exception("the fleet was not filled", extra={"action": "fleet_not_filled"})
            await asyncio.sleep(LOOK_SECONDS)

    async def _greet_on(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            known = {worker.replica for worker in self.replicas} | self._greeting.keys()
            for seat in self._board.seats().values():
                if seat.id not in known and seat.deployment in self._handles:
                    task = asyncio.create_task(self._greet(seat), name=f"greet {seat.id}")
                    self._greeting[seat.id] = task
                    task.add_done_callback(lambda _, id=seat.id: self._greeting.pop(id, None))

    async def _remember(self, precision: str, models: Iterable[str]) -> None:
        known = self._known | {(precision, model) for model in models}
        if known != self._known:
            self._known = known
            with contextlib.suppress(StorageUnavailable):  # the next start waits for its replicas
                await self._queue.store.write_state(ABILITIES, json.dumps(sorted(known)))

    async def _greet(self, seat: Seat) -> None:
        link = Link(self._handles[seat.deployment], seat.id)
        routes = self.routes
        lines = link.watch(self._door) if routes else link.listen()
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = messages.decode(await anext(lines))
        except Exception as e:  # whatever it is, it is asked again
            log.warning(
                "replica %s did not say what it is: %s",
                seat.id,
                str(e) or type(e).__name__,
                extra={"action": "replica_silent"},
            )
            await asyncio.sleep(AGAIN_SECONDS)
            self._changed.set()
            return
        self._add(seat, link, lines, hello, is_ours=routes)
        await self._remember(hello.precision, hello.models)

    def _add(
        self,
        seat: Seat,
        link: Link,
        lines: AsyncIterator[str],
        hello: messages.Hello,
        *,
        is_ours: bool,
    ) -> None:
        worker = FleetWorker(
            hello,
            link,
            lines,
            self.files,
            self._settings,
            self._default,
            self._queue,
            end_process=lambda: self._end_process(seat),
        )
        worker.is_ours = is_ours
        worker.is_draining = worker.node in self.away
        self.replicas.append(worker)
        self._queue.add_worker(worker)
        log.info(
            "replica %s is in the fleet: %d models",
            worker.name,
            len(worker.runnable),
            extra={"action": "replica_up", "replica": worker.replica},
        )

    def _end_process(self, seat: Seat) -> None:
        ending = asyncio.create_task(background.run(self._cluster.end_process, seat))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    # Replicas go

    def missed(self, worker: FleetWorker) -> None:
        """A replica is gone."""
        with contextlib.suppress(ValueError):
            self.replicas.remove(worker)
        self.roster.left(worker.precision, worker.runnable)
        self._changed.set()
