"""Jobs and images in a database: one connection writes, others read.

Each connection lives in its own thread; the event loop never waits for the disk. A change is
committed and synced before its coroutine returns. Changes that come while the database is busy are
committed together (group commit), each in its own savepoint, so that one that fails takes no
other with it. Which database it is, a file or a server, is not to be seen here (`utils/database/`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from config.errors import FluxError, StorageUnavailable
from models.types import GenerationRequest, GenerationResult
from utils import sql, usage
from utils.database import Connection, Database, NewRow, Refuse, Row, nothing_refused
from utils.database.sqlite import SqliteDatabase
from utils.job import Job, JobError, JobStatus, StoredImage

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_AFTER_STORAGE_SECONDS = 5
PROBE = "probe"  # the key of what is written to see whether it can be
MAX_GROUP = 256  # changes of one transaction: more would make the first of them wait


class JobStore:
    """Maps rows to Job and StoredImage. Open with `await JobStore.open(path)`, or of another database with `of`.

    Every method raises StorageUnavailable when the disk is full or the database refuses.
    """

    def __init__(self, database: Database) -> None:
        self.refusal: str | None = None  # why the last change was not written; None when it was
        self.database = database
        self.is_closed = False
        self._arrived: list[_Pending] = []  # in this turn of the loop
        self._changes: queue.SimpleQueue[list[_Pending] | None] = queue.SimpleQueue()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._reader = ThreadPoolExecutor(database.readers, thread_name_prefix="store-read")
        # A daemon: a process that is made to leave at once must not wait for changes that never come.
        self._committer = threading.Thread(
            target=self._commit_changes,
            args=(asyncio.get_running_loop(),),
            name="store-commit",
            daemon=True,
        )
        self._write_db: Connection
        self._read_db: Connection

    @classmethod
    async def open(cls, path: Path, *, holder: str = "") -> JobStore:
        """Of a file. Raises ConfigurationError when it is another process's (StoreInUse), is damaged or is from a newer version.

        As `holder` CLEANUP it does not wait for another, and is to be closed when `is_wanted`.
        """
        return await cls.of(SqliteDatabase(path, holder))

    @classmethod
    async def of(cls, database: Database) -> JobStore:
        """Raises ConfigurationError."""
        store = cls(database)
        try:
            store._write_db = await store._in(store._writer, database.prepare)
            store._read_db = await store._in(store._reader, database.reader)
            store._committer.start()
        except BaseException:
            await store._let_go()
            raise
        return store

    async def close(self) -> None:
        self._hand_over()
        self._changes.put(None)
        await self._in(self._writer, self._committer.join)
        await self._let_go()

    @property
    def damage(self) -> str | None:
        """What is wrong with the database, found after the start."""
        return self.database.damage

    @property
    def is_wanted(self) -> bool:
        """Whether a service waits for a database that a cleanup has."""
        return self.database.is_wanted

    async def _let_go(self) -> None:
        """Close what is open: all of it, or what there was when opening failed."""
        self.is_closed = True
        for executor, name in ((self._writer, "_write_db"), (self._reader, "_read_db")):
            if hasattr(self, name):
                await self._in(executor, getattr(self, name).close)
            executor.shutdown()
        self.database.close()

    # Jobs

    async def insert(
        self,
        job_id: str,
        request: GenerationRequest,
        created_at: str,
        *,
        owner: str = "",
        idempotency_key: str | None = None,
        body_sha256: str | None = None,
        estimate_usd: float = 0.0,
        refuse: Refuse = nothing_refused,
        then: Callable[[Job | None], None] | None = None,
    ) -> Job:
        """Append a job to the line; it is on disk when this returns. `refuse`: see `NewRow`.

        `then` is called in the loop as soon as it is, with None when it was refused, also when the
        caller has gone away meanwhile.
        """
        new = _NewJob(
            row=(
                job_id,
                sql.as_json(request.to_json()),
                request.model,
                owner,
                created_at,
                idempotency_key,
                body_sha256,
                estimate_usd,
            ),
            owner=owner,
            backend=request.backend,
            refuse=refuse,
            request=request,
        )
        return await self._write(new, then)

    async def get(self, job_id: str) -> Job | None:
        return _job(await self._one("job_by_id", {"id": job_id}))

    async def by_idempotency_key(
        self, owner: str, key: str, *, not_before: str
    ) -> tuple[Job, str] | None:
        """The job that the owner submitted with this key, and the digest of its body; older ones are forgotten."""
        values = {"owner": owner, "idempotency_key": key}
        row = await self._one("job_by_idempotency_key", values)
        if row is None:
            return None
        if row["created_at"] < not_before:
            old = {**values, "before": not_before}
            await self._write(lambda db: db.rows("forget_idempotency_key", old))
            return None
        return _job_of(row), row["body_sha256"]

    async def claim(
        self,
        worker: str,
        now: str,
        *,
        models: Sequence[str],
        limit: int,
        choose: Callable[[list[Job]], list[Job]],
    ) -> list[Job]:
        """Jobs from the head of the line, now running on `worker`.

        `choose` gets the oldest `limit` jobs of the `models`, oldest first, and returns those to
        take; it runs in the writer's thread.
        """
        head = {"models": json.dumps(list(models)), "limit": limit}

        def change(db: Connection) -> list[Job]:
            rows = db.rows("head_of_line", head)
            claimed = []
            for job in choose([_job_of(row) for row in rows]):
                values = {"seq": job.seq, "worker": worker, "now": now}
                taken = _job(_fetch_one(db, "claim", values))
                if taken is not None:  # else another front door routes since
                    claimed.append(taken)
            return claimed

        return await self._write(change)

    async def claim_at(self, seq: int, worker: str, now: str) -> Job | None:
        """The job at a place in line, now running on `worker`; None where none waits there."""
        return await self._change("claim", {"seq": seq, "worker": worker, "now": now})

    async def requeue(self, job_id: str, *, take_attempt_back: bool) -> Job | None:
        return await self._change(
            "requeue", {"id": job_id, "attempts_back": int(take_attempt_back)}
        )

    async def succeed(
        self,
        job: Job,
        result: GenerationResult,
        now: str,
        *,
        publish: Callable[[], None],
    ) -> Job | None:
        """Publish the files and commit the result and its images as one; None if the job is not running any more."""

        def change(db: Connection) -> Job | None:
            done = _job(
                _fetch_one(
                    db,
                    "succeed",
                    {"id": job.id, "now": now, "result": json.dumps(result.to_json())},
                )
            )
            if done is None:
                return None
            for index, image in enumerate(result.images):
                db.rows(
                    "insert_image",
                    {
                        "id": f"{job.id}-{index}",
                        "job_id": job.id,
                        "filename": image.filename,
                        "seed": image.seed,
                        "width": image.width,
                        "height": image.height,
                        "size_bytes": image.size_bytes,
                        "created_at": now,
                        "precision": result.precision,
                        "engine": result.engine,
                    },
                )
            db.rows("insert_usage", usage.row_of(done, result, now))
            publish()
            return done

        return await self._write(change)

    async def fail(self, job_id: str, error: JobError, now: str) -> Job | None:
        return await self._change(
            "fail",
            {"id": job_id, "code": error.code, "message": error.message, "now": now},
        )

    async def cancel(self, job_id: str, now: str) -> Job | None:
        """Cancel a job that waits or runs."""
        return await self._change("cancel_open", {"id": job_id, "now": now})

    async def cancel_queued(self, job_id: str, now: str) -> Job | None:
        return await self._change("cancel_queued", {"id": job_id, "now": now})

    async def cancel_running(self, job_id: str, now: str) -> Job | None:
        return await self._change("cancel_running", {"id": job_id, "now": now})

    async def expire_queued(self, job_id: str, message: str, now: str) -> Job | None:
        """Fail a job that waited too long."""
        return await self._change("expire_queued", {"id": job_id, "message": message, "now": now})

    async def clear_queued(self, now: str) -> list[Job]:
        """Cancel every waiting job; they are returned."""

        def change(db: Connection) -> list[Job]:
            return [_job_of(row) for row in db.rows("clear_queued", {"now": now})]

        return await self._write(change)

    async def running(self) -> list[Job]:
        return [_job_of(row) for row in await self._all("running_jobs", {})]

    async def begun_by_earlier(self) -> list[Job]:
        """Jobs that run under an earlier lease than this front door's."""
        return [_job_of(row) for row in await self._all("begun_by_earlier", {})]

    async def ended_of(self, job_ids: Sequence[str]) -> list[Job]:
        """Of these jobs those that have ended."""
        rows = await self._all("ended_of", {"ids": sql.as_json(job_ids)})
        return [_job_of(row) for row in rows]

    async def loras_of_open_jobs(self) -> set[str]:
        """SHA-256 of every LoRA that a job which waits or runs has."""
        return {row["sha256"] for row in await self._all("loras_of_open_jobs", {})}

    async def inputs_of_open_jobs(self) -> set[str]:
        """SHA-256 of every picture that a job which waits or runs begins with."""
        return {row["sha256"] for row in await self._all("inputs_of_open_jobs", {})}

    async def list(
        self, *, status: JobStatus | None, limit: int, offset: int, owner: str | None = None
    ) -> list[Job]:
        """Newest first; with an `owner` only that one's."""
        page = {"limit": limit, "offset": offset}
        if owner is not None:
            values = {**page, "owner": owner, "status": None if status is None else status.value}
            rows = await self._all("list_jobs_of_owner", values)
        elif status is None:
            rows = await self._all("list_jobs", page)
        else:
            rows = await self._all("list_jobs_by_status", {**page, "status": status.value})
        return [_job_of(row) for row in rows]

    async def ended_by_model(
        self, since: str, owner: str | None
    ) -> list[tuple[str, JobStatus, int, float]]:
        """(model, succeeded or failed, jobs, ms that those with pictures took) since a moment; None: everybody's."""
        rows = await self._all("ended_by_model", {"since": since, "owner": owner})
        return [
            (row["model"], JobStatus(row["status"]), row["jobs"], row["ms"] or 0.0) for row in rows
        ]

    async def ended_by_worker(self, since: str, owner: str | None) -> dict[str | None, int]:
        """Jobs that succeeded or failed since a moment, by who had them last; None: nobody did."""
        rows = await self._all("ended_by_worker", {"since": since, "owner": owner})
        return {row["worker"]: row["jobs"] for row in rows}

    async def ended_by_tag(self, since: str, owner: str | None) -> dict[str, int]:
        rows = await self._all("ended_by_tag", {"since": since, "owner": owner})
        return {row["tag"]: row["jobs"] for row in rows}

    async def ended_last(self, since: str, owner: str | None, limit: int) -> list[Job]:
        """The last that succeeded or failed since a moment, newest first."""
        values = {"since": since, "owner": owner, "limit": limit}
        return [_job_of(row) for row in await self._all("ended_last", values)]

    async def line(self) -> list[tuple[int, str, str, str, int, str]]:
        """(seq, id, owner, created_at, attempts, backend) of every waiting job, oldest first."""
        names = ("seq", "id", "owner", "created_at", "attempts", "backend")
        rows = await self._all("queued_jobs", {})
        return [tuple(row[name] for name in names) for row in rows]

    async def counts(self) -> dict[str, int]:
        """Jobs by status, every status named."""
        rows = await self._all("count_by_status", {})
        found = {row["status"]: row["jobs"] for row in rows}
        return {status.value: found.get(status.value, 0) for status in JobStatus}

    # What the service remembers

    async def read_state(self, key: str) -> str | None:
        row = await self._one("read_state", {"key": key})
        return None if row is None else row["value"]

    async def write_state(self, key: str, value: str) -> None:
        await self._write(lambda db: _fetch_one(db, "write_state", {"key": key, "value": value}))

    async def probe(self) -> None:
        """Write something, to see whether the store still refuses."""
        await self.write_state(PROBE, "")

    # Images

    async def image(self, image_id: str) -> StoredImage | None:
        return _image(await self._one("image_by_id", {"id": image_id}))

    async def image_by_filename(self, filename: str) -> StoredImage | None:
        return _image(await self._one("image_by_filename", {"filename": filename}))

    async def images(
        self, *, limit: int, before: str | None, words: str | None, owner: str | None = None
    ) -> list[StoredImage]:
        """Newest first; with an `owner` only that one's."""
        pattern = None if words is None else f"%{_escape_like(words)}%"
        values = {"limit": limit, "before": before, "words": pattern, "owner": owner}
        rows = await self._all("list_images", values)
        return [_image_of(row) for row in rows]

    async def pin_image(self, image_id: str, pinned: bool) -> None:
        """A pinned picture is not removed for its age, nor because there are too many."""
        values = {"id": image_id, "pinned": int(pinned)}
        await self._write(lambda db: _fetch_one(db, "pin_image", values))

    async def delete_image(self, image_id: str, remove: Callable[[], None]) -> None:
        """Delete the row, then the file."""

        def change(db: Connection) -> None:
            db.rows("delete_image", {"id": image_id})
            remove()

        await self._write(change)

    # For what is kept beside the jobs

    async def write(self, change: Callable[[Connection], T]) -> T:
        """One change in the writer's thread, committed when this returns. What it raises undoes it."""
        return await self._write(change)

    async def read(self, query: str, values: Mapping[str, Any]) -> Sequence[Row]:
        """The rows of a query of `queries.sql`."""
        return await self._all(query, values)

    async def select(self, words: str, values: Mapping[str, Any]) -> Sequence[Row]:
        """The rows of a query that is put together."""
        return await self._in(self._reader, lambda: self._read_db.select(words, values))

    # Threads and connections

    async def _change(self, query: str, values: Mapping[str, Any]) -> Job | None:
        return await self._write(lambda db: _job(_fetch_one(db, query, values)))

    async def _write(
        self,
        change: Callable[[Connection], T],
        then: Callable[[T | None], None] | None = None,
    ) -> T:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        if not self._arrived:
            loop.call_soon(self._hand_over)
        self._arrived.append(_Pending(change=change, done=done, then=then))
        return await done  # a caller that goes away does not stop the change

    def _hand_over(self) -> None:
        """What came in one turn of the loop goes to the writer's thread at once: waking it costs more than a change."""
        if self._arrived:
            self._changes.put(self._arrived)
            self._arrived = []

    def _commit_changes(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the writer's thread: whatever waits, in one transaction, until the store is closed."""
        left: list[_Pending] = []
        while (waiting := left or self._changes.get()) is not None:
            # Before the others join: nobody waits twice for a locked database.
            refused = self._begin()
            while len(waiting) < MAX_GROUP and not self._changes.empty():
                following = self._changes.get()
                if following is None:
                    self._changes.put(None)  # seen again after this group
                    break
                waiting += following
            group, left = waiting[:MAX_GROUP], waiting[MAX_GROUP:]
            outcomes = [(None, refused)] * len(group) if refused else self._commit(group)
            loop.call_soon_threadsafe(self._settle, group, outcomes)

    def _settle(self, group: list[_Pending], outcomes: list[tuple[Any, Exception | None]]) -> None:
        """In the loop: what became of each change."""
        for pending, (value, error) in zip(group, outcomes, strict=True):
            if pending.then is not None:
                pending.context.run(pending.then, value)
            if error is not None and self.database.is_refusal(error):
                error = self._refused(error)
                self.refusal = error.message
            elif error is None:
                self.refusal = None
            if pending.done.cancelled():
                continue
            if error is None:
                pending.done.set_result(value)
            else:
                pending.done.set_exception(error)

    def _begin(self) -> Exception | None:
        """Why no transaction could be begun; None when one was."""
        try:
            self._write_db.begin()
        except Exception as error:
            return error
        return None

    def _commit(self, group: list[_Pending]) -> list[tuple[Any, Exception | None]]:
        """All of them, as they nearly always go; when one fails, once more, each in its own savepoint."""
        try:
            with self._write_db.transaction():
                return [_outcome(value) for value in self._apply_all(group)]
        except Exception as error:
            if len(group) == 1:
                return [(None, error)]
            refused = self._begin()
        if refused is not None:
            return [(None, refused)] * len(group)
        try:
            with self._write_db.transaction():
                return [self._apply(pending.change) for pending in group]
        except Exception as error:
            return [(None, error)] * len(group)

    def _apply_all(self, group: list[_Pending]) -> Iterator[Any]:
        """What each change returns. New jobs that stand together go in together: one call instead of many."""
        for are_new, together in itertools.groupby(
            (pending.change for pending in group), lambda change: isinstance(change, _NewJob)
        ):
            if are_new:
                yield from _insert(self._write_db, list(together))
            else:
                yield from (change(self._write_db) for change in together)

    def _apply(self, change: Callable[[Connection], Any]) -> tuple[Any, Exception | None]:
        try:
            with self._write_db.savepoint():
                return _outcome(change(self._write_db))
        except Exception as error:
            if not self._write_db.in_transaction:
                raise  # the whole transaction is gone
            return None, error

    async def _one(self, query: str, values: Mapping[str, Any]) -> Row | None:
        return await self._in(self._reader, lambda: _fetch_one(self._read_db, query, values))

    async def _all(self, query: str, values: Mapping[str, Any]) -> Sequence[Row]:
        return await self._in(self._reader, lambda: self._read_db.rows(query, values))

    async def _in(self, executor: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, call)
        except Exception as error:
            if not self.database.is_refusal(error) or not hasattr(self, "_read_db"):
                raise
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> StorageUnavailable:
        words = self.database.in_words(error)
        log.error("the store refused: %s", words, extra={"action": "store_refused"})
        refused = StorageUnavailable(words, retry_after_seconds=RETRY_AFTER_STORAGE_SECONDS)
        refused.__cause__ = error
        return refused


@dataclass(frozen=True, slots=True, kw_only=True)
class _NewJob(NewRow):
    """A change that appends a job."""

    request: GenerationRequest

    def __call__(self, db: Connection) -> Job | FluxError:
        return _insert(db, [self])[0]

    # The row is what was given: reading it back would cost more than the insert.
    def at(self, seq: int | FluxError) -> Job | FluxError:
        if isinstance(seq, FluxError):
            return seq
        job_id, _, _, owner, created_at, *_ = self.row
        return Job(
            seq=seq,
            id=job_id,
            status=JobStatus.QUEUED,
            request=self.request,
            created_at=created_at,
            owner=owner,
        )


def _insert(db: Connection, new: list[_NewJob]) -> list[Job | FluxError]:
    return [each.at(seq) for each, seq in zip(new, db.append(new), strict=True)]


def _outcome(value: Any) -> tuple[Any, Exception | None]:
    return (None, value) if isinstance(value, FluxError) else (value, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    change: Callable[[Connection], Any]
    done: asyncio.Future[Any]
    then: Callable[[Any], None] | None = None
    context: Context = field(default_factory=copy_context)  # whose change it is, for the log


def _fetch_one(db: Connection, query: str, values: Mapping[str, Any]) -> Row | None:
    rows = db.rows(query, values)
    return rows[0] if rows else None


def _escape_like(words: str) -> str:
    return words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _job(row: Row | None) -> Job | None:
    return None if row is None else _job_of(row)


def _job_of(row: Row) -> Job:
    return Job(
        seq=row["seq"],
        id=row["id"],
        status=JobStatus(row["status"]),
        request=GenerationRequest.from_json(json.loads(row["request"])),
        created_at=row["created_at"],
        owner=row["owner"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        attempts=row["attempts"],
        worker=row["worker"],
        result=(GenerationResult.from_json(json.loads(row["result"])) if row["result"] else None),
        error=(
            JobError(code=row["error_code"], message=row["error_message"])
            if row["error_code"]
            else None
        ),
    )


def _image(row: Row | None) -> StoredImage | None:
    return None if row is None else _image_of(row)


def _image_of(row: Row) -> StoredImage:
    result = json.loads(row["result"])
    timings = result["timings_ms"]
    flags = {file["filename"]: file.get("nsfw_flagged") for file in result["images"]}
    return StoredImage(
        id=row["id"],
        job_id=row["job_id"],
        filename=row["filename"],
        seed=row["seed"],
        width=row["width"],
        height=row["height"],
        size_bytes=row["size_bytes"],
        created_at=row["created_at"],
        request=GenerationRequest.from_json(json.loads(row["request"])),
        owner=row["owner"],
        precision=row["precision"],
        engine=row["engine"],
        is_pinned=bool(row["pinned"]),
        nsfw_flagged=flags.get(row["filename"]),
        generation_time_ms=round(timings.get("total", 0.0) - timings.get("queued", 0.0), 1),
    )
