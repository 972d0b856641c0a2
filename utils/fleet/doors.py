"""Several front doors with one line: who routes, what the others did, and that no memory drifts from the rows.

Every door takes requests, answers and lets its clients follow jobs; one routes (`lease.py`). What is told at once
(`word.py`) may be lost, so each second a door compares sums over the open jobs with its own memory, and where they
differ reads which they are. What differs twice in a row is put right: in between, something was on its way.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from config.errors import FluxError, NotFound, StorageUnavailable
from utils.database import Row
from utils.database.postgres import PostgresDatabase, PostgresReader
from utils.fleet.crew import Crew
from utils.fleet.lease import Lease
from utils.fleet.queue import FleetQueue
from utils.fleet.shared_files import SharedFiles
from utils.fleet.word import Message, Word
from utils.job import Job, JobStatus
from utils.job_store import JobStore
from utils.ledger import Others
from utils.lora_manager import DEFAULTS, LoraManager
from utils.queue_manager import PAUSED

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
# However well the sums agree, so often the rows are read.
WHOLE_SECONDS = 30.0
GONE_SECONDS = 5.0  # a door that has not told of itself for so long counts no more
AWAY = "fleet_away"  # the key of the machines that get nothing new
STATES = (PAUSED, AWAY, DEFAULTS)


class Doors(Others):
    """This door among the others. `share` before the queue starts, `start` when queue and crew are there."""

    def __init__(self, database: PostgresDatabase, files: SharedFiles, name: str) -> None:
        self.name = name
        self.files = files
        self.others: list[dict[str, Any]] = []  # the doors, as of the last beat
        self.database = self._database = database
        self._reader = PostgresReader(database)
        self.lease = Lease(database)
        self._word = Word(database, self._heard, self._hurry_all)
        self._hurry = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._looker = ThreadPoolExecutor(1, thread_name_prefix="doors-look")
        self._fetching: asyncio.Task[None] | None = None
        self._ended: set[str] = set()  # ids, heard of and to be read
        self._begun: set[str] = set()
        self._differed: dict[str, str] = {}  # at the last look: by job, how
        self._is_away = False  # the database, as of the last beat
        self._is_closing = False
        self._must_read = True
        self._read_at = 0.0
        self._states: dict[str, str] = {}
        # Keys that are being written here, and those that were: what was read before says less.
        self._own: set[str] = set()
        self._written: set[str] = set()
        self._queue: FleetQueue
        self._store: JobStore
        self._crew: Crew
        self._loras: LoraManager

    def share(self, queue: FleetQueue, crew: Crew, loras: LoraManager) -> None:
        self._queue, self._store, self._crew, self._loras = queue, queue.store, crew, loras
        self._database.is_shared = True
        queue.share(self, self.files)
        queue.why_not_routing = self.why_not_routing
        crew.routes = False
        queue.state_changes, queue.state_changed = self._own.add, self._state_changed
        crew.on_away = self._write_away

    async def start(self) -> None:
        self._crew.files.fetch = self._bring
        self._word.start()
        await self._beat()
        self._tasks = [
            asyncio.create_task(self._beat_on(), name="doors' beat"),
            asyncio.create_task(
                self.files.sweep_on(self._store, lambda: self.routes), name="doors' files"
            ),
        ]

    async def _bring(self, kind: str, name: str) -> bool:
        """A file that a job needs which was begun: an outage of the database is waited for."""
        while True:
            try:
                return await self.files.fetch(kind, name)
            except StorageUnavailable:
                await asyncio.sleep(BEAT_SECONDS)

    async def release(self) -> None:
        """Let another door route. After the queue has stopped."""
        self._is_closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._looker, self._say_goodbye)
            self._word.tell({"kind": "lease"})
        except Exception as error:
            if not self._database.is_refusal(error):
                raise  # else it is over by itself in a moment
        await self._word.close()
        await asyncio.to_thread(self._looker.shutdown)
        self._database.end()

    def _say_goodbye(self) -> None:
        self.lease.give_up()
        self._reader.rows("forget_doors", {"gone": self._database.door})

    def why_not_routing(self) -> str | None:
        """Why this door begins no job; None when it does."""
        if self.lease.is_sure:
            return None
        if self.lease.epoch is not None:
            return "the job database does not answer"
        return f"the front door {self.lease.holder or 'that comes next'} routes"

    def to_json(self) -> list[dict[str, Any]]:
        """The doors that told of themselves lately, and which of them routes."""
        router = self.name if self.lease.epoch is not None else self.lease.holder
        return [
            {
                "name": row["name"],
                "routes": row["name"] == router,
                "is_this": row["id"] == self._database.door,
            }
            for row in self.others
        ]

    @property
    def routes(self) -> bool:
        return self._queue.dispatcher.routes

    # Told to the others

    def queued(self, job: Job) -> None:
        self._word.tell({"kind": "queued", **_place_of(job)})

    def begun(self, job: Job) -> None:
        self._word.tell({"kind": "begun", "seq": job.seq, "id": job.id})

    def back(self, job: Job, why: str) -> None:
        self._word.tell({"kind": "back", "why": why[:500], **_place_of(job)})

    def ended(self, job: Job) -> None:
        self._word.tell({"kind": "ended", "id": job.id})

    def _state_changed(self, key: str, value: str) -> None:
        self._states[key] = value
        self._written.add(key)
        self._word.tell({"kind": "states"})

    def _write_away(self) -> None:
        """Machines were set aside here: for whoever routes, now and later."""
        value = json.dumps(sorted(self._crew.away))
        self._own.add(AWAY)

        async def write() -> None:
            try:
                await self._store.write_state(AWAY, value)
            except FluxError as error:  # it holds here until the rows are read again
                log.error("%s", error.message, extra={"action": "store_refused"})
            self._state_changed(AWAY, value)

        self._writing = asyncio.create_task(write(), name="write who is away")

    # Heard of the others

    def _heard(self, message: Message) -> None:
        if self._store.is_closed:
            return
        ledger = self._queue.ledger
        match message.get("kind"):
            case "queued":
                ledger.heard_queued(**_where(message))
                self._queue.wake()
            case "back":
                ledger.heard_back(**_where(message), why=message["why"])
                self._queue.wake()
            case "begun":
                ledger.heard_begun(message["seq"], message["id"])
                self._fetch(self._begun, message["id"])
            case "ended":
                self._fetch(self._ended, message["id"])
            case "states" | "lease":
                self._hurry.set()

    def _hurry_all(self) -> None:
        """Something may have been told that was not heard."""
        self._must_read = True
        self._hurry.set()

    def _fetch(self, which: set[str], job_id: str) -> None:
        which.add(job_id)
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch_on(), name="doors' rows")

    async def _fetch_on(self) -> None:
        while (self._ended or self._begun) and not self._store.is_closed:
            ended, self._ended = self._ended, set()
            begun, self._begun = self._begun, set()
            try:
                await self._take_ended(ended)
                for job_id in begun - ended:
                    job = await self._store.get(job_id)
                    if job is not None and job.status is JobStatus.RUNNING:
                        self._queue.note_worker(job)
            except FluxError:
                self._must_read = True  # found again when the database is there

    async def _take_ended(self, job_ids: Iterable[str]) -> None:
        ids = sorted(job_ids)
        for start in range(0, len(ids), 500):
            for job in await self._store.ended_of(ids[start : start + 500]):
                self._queue.ledger.heard_end(job)

    # The beat

    async def _beat_on(self) -> None:
        while not self._is_closing:
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._hurry.clear()
            await self._beat()

    async def _beat(self) -> None:
        self._own -= self._written
        self._written.clear()
        try:
            loop = asyncio.get_running_loop()
            seen = await loop.run_in_executor(self._looker, self._look)
            if not self._store.is_closed:
                await self._take(seen)
            if self._is_away:
                log.info("the job database answers again", extra={"action": "database_back"})
            self._is_away = False
        except FluxError as error:
            self._note_away(error.message)
        except Exception as error:
            if self._database.is_refusal(error):
                self._note_away(self._database.in_words(error))
            else:
                log.exception("a beat failed", extra={"action": "beat_failed"})

    def _note_away(self, words: str) -> None:
        self._must_read = True
        if not self._is_away:
            log.error("%s", words, extra={"action": "database_away"})
        self._is_away = True

    def _look(self) -> Mapping[str, Any]:
        """In a thread: the lease first, whatever else takes its time."""
        rows = self._reader.rows
        self.lease.look(may_take=not self._queue.is_draining)
        rows("beat", {"name": self.name, "listens": self._queue.bus.listeners_here})
        return {
            "doors": rows("doors", {}),
            "states": rows("states", {"keys": json.dumps(STATES)}),
            "sums": rows("sums_of_open_jobs", {})[0],
        }

    def _forget_doors(self) -> None:
        """Those that ended without a word, long ago."""
        self._reader.rows("forget_doors", {"gone": ""})

    async def _take(self, seen: Mapping[str, Any]) -> None:
        await self._route_or_not()
        self._take_doors(seen["doors"])
        self._take_states({row["key"]: row["value"] for row in seen["states"]})
        now = asyncio.get_running_loop().time()
        if self._must_read or self._differ(seen["sums"]) or now - self._read_at > WHOLE_SECONDS:
            self._must_read, self._read_at = False, now
            await self._compare(await self._store.read("open_jobs", {}))
            if self.routes:
                await asyncio.to_thread(self._forget_doors)
        elif self._differed:
            self._differed = {}

    async def _route_or_not(self) -> None:
        has_lease = self.lease.epoch is not None
        if has_lease and not self.routes and self.lease.is_sure:
            left = await self._store.begun_by_earlier()
            await self._compare_line(await self._store.read("open_jobs", {}))
            await self._crew.set_routes(True)
            await self._queue.route(left)
        elif not has_lease and self.routes:
            self._queue.stop_routing()
            await self._crew.set_routes(False)

    def _take_doors(self, doors: Iterable[Row]) -> None:
        self.others = [dict(row) for row in doors if row["seconds"] < GONE_SECONDS]
        elsewhere = sum(row["listens"] for row in self.others if row["id"] != self._database.door)
        self._queue.bus.listeners_elsewhere = elsewhere if self.routes else 0

    def _take_states(self, states: dict[str, str]) -> None:
        before = self._states
        kept = {key: value for key, value in before.items() if key in self._own}
        self._states = states | kept
        if self._states == before:
            return
        states = self._states
        is_paused = states.get(PAUSED) == "true"
        if is_paused != self._queue.is_paused:
            self._queue.is_paused = is_paused
            self._queue.bus.publish("queue")
        self._crew.set_away(json.loads(states.get(AWAY, "[]")))
        if states.get(DEFAULTS) != before.get(DEFAULTS):
            self._loras.set_defaults(states.get(DEFAULTS))

    # Comparing

    def _differ(self, sums: Row) -> bool:
        ledger = self._queue.ledger
        running = sum(not waits for waits in ledger.open_jobs.values())
        seen = {id for worker in self._queue.workers for id in worker.jobs} | ledger.ending
        return (len(ledger.line), str(ledger.line.sum_of_places), running, len(seen)) != (
            sums["queued"], sums["places"], sums["running"], sums["running"],
        )  # fmt: skip

    async def _compare_line(self, rows: Iterable[Row]) -> None:
        """Who waits, at once: a door that begins to route needs the whole line."""
        known = self._queue.ledger.open_jobs
        for row in rows:
            if row["id"] not in known and row["status"] == JobStatus.QUEUED:
                self._queue.ledger.heard_queued(**_where(row))

    async def _compare(self, rows: Iterable[Row]) -> None:
        ledger, known = self._queue.ledger, self._queue.ledger.open_jobs
        there = {row["id"]: row for row in rows}
        found: dict[str, str] = {}
        for job_id, row in there.items():
            waits = row["status"] == JobStatus.QUEUED
            if known.get(job_id) is not waits:
                found[job_id] = row["status"]
            elif not waits and self.routes and self._is_nobodys(row):
                found[job_id] = "nobody's"
        found |= dict.fromkeys((job_id for job_id in known if job_id not in there), "gone")
        before, self._differed = self._differed, found
        twice = {job_id: how for job_id, how in found.items() if before.get(job_id) == how}
        await self._take_ended(job_id for job_id, how in twice.items() if how == "gone")
        for job_id, how in twice.items():
            if how == JobStatus.QUEUED:
                ledger.heard_queued(**_where(there[job_id]))
            elif how == JobStatus.RUNNING:
                if job_id not in known:
                    ledger.heard_queued(**_where(there[job_id]))
                ledger.heard_begun(there[job_id]["seq"], job_id)
            elif how == "nobody's":
                await self._adopt(job_id)
        if not self.routes:
            self._begun |= {id for id, row in there.items() if self._is_unnoted(row)}
            if self._begun:
                self._fetch(self._begun, next(iter(self._begun)))
        else:
            self._queue.dispatcher.recollect()
        if twice:
            self._queue.wake()

    def _is_nobodys(self, row: Row) -> bool:
        """Whether a row says that a job runs by this door, which does not know of it."""
        job_id, queue = row["id"], self._queue
        is_here = any(job_id in worker.jobs for worker in queue.workers)
        return not (is_here or job_id in queue.ledger.ending or queue.dispatcher.is_sending(job_id))

    def _is_unnoted(self, row: Row) -> bool:
        return row["status"] == JobStatus.RUNNING and any(
            worker.name == row["worker"] and row["id"] not in worker.jobs
            for worker in self._queue.replicas
        )

    async def _adopt(self, job_id: str) -> None:
        try:
            await self._queue.adopt(job_id)
        except NotFound:
            pass


def _place_of(job: Job) -> Message:
    return {
        "seq": job.seq,
        "id": job.id,
        "owner": job.owner,
        "backend": job.request.backend,
        "created_at": job.created_at,
        "attempts": job.attempts,
    }


def _where(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of a message or a row what a ledger needs to know a waiting job."""
    names = ("seq", "owner", "backend", "created_at", "attempts")
    return {"job_id": row["id"], **{name: row[name] for name in names}}
