"""Jobs and images on disk: SQLite, one connection for writing and one for reading.

Each connection lives in its own thread; the event loop never waits for the disk. A change is
committed and synced before its coroutine returns. Only one process may open the file (`flock`):
two writers on one SQLite file are two queues that believe they are one.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from config.errors import ConfigurationError, StorageUnavailable
from models.types import GenerationRequest, GenerationResult
from utils import sql
from utils.job import Job, JobError, JobStatus, StoredImage

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_AFTER_STORAGE_SECONDS = 5


class JobStore:
    """Maps rows to Job and StoredImage. Open with `await JobStore.open(path)`.

    Every method raises StorageUnavailable when the disk is full or the database refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="store-read")
        self._write_db: sqlite3.Connection
        self._read_db: sqlite3.Connection
        self._lock_file: Any

    @classmethod
    async def open(cls, path: Path) -> JobStore:
        """Raises ConfigurationError when the file is another process's, is damaged or is from a newer version."""
        store = cls(path)
        try:
            store._lock_file = _take_lock(path)
            store._write_db = await store._in(store._writer, lambda: _connect(path))
            await store._in(store._writer, lambda: _prepare(store._write_db, path))
            store._read_db = await store._in(store._reader, lambda: _connect(path, read_only=True))
        except (sqlite3.Error, OSError) as error:
            raise ConfigurationError(
                f"{path}: the job database cannot be opened ({error}). Check the folder's permissions and free space; "
                "to begin with an empty queue, move the file away"
            ) from error
        return store

    async def close(self) -> None:
        await self._in(self._writer, lambda: self._write_db.close())
        await self._in(self._reader, lambda: self._read_db.close())
        self._writer.shutdown()
        self._reader.shutdown()
        self._lock_file.close()

    # Jobs

    async def insert(
        self,
        job_id: str,
        request: GenerationRequest,
        created_at: str,
        *,
        idempotency_key: str | None = None,
        body_sha256: str | None = None,
    ) -> Job:
        """Append a job to the line; it is on disk when this returns."""
        values = {
            "id": job_id,
            "request": json.dumps(request.to_json(), ensure_ascii=False),
            "created_at": created_at,
            "idempotency_key": idempotency_key,
            "body_sha256": body_sha256,
        }
        job = await self._change("insert_job", values)
        assert job is not None
        return job

    async def get(self, job_id: str) -> Job | None:
        return _job(await self._one("job_by_id", {"id": job_id}))

    async def by_idempotency_key(self, key: str) -> tuple[Job, str] | None:
        """The job that was submitted with this key, and the digest of its body."""
        row = await self._one("job_by_idempotency_key", {"idempotency_key": key})
        return None if row is None else (_job_of(row), row["body_sha256"])

    async def claim_next(self, worker: str, now: str) -> Job | None:
        """The oldest waiting job, now running on `worker`; None when none waits."""
        return await self._change("claim_next", {"worker": worker, "now": now})

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

        def change(db: sqlite3.Connection) -> Job | None:
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
                db.execute(
                    sql.queries()["insert_image"],
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
            publish()
            return done

        return await self._write(change)

    async def fail(self, job_id: str, error: JobError, now: str) -> Job | None:
        return await self._change(
            "fail",
            {"id": job_id, "code": error.code, "message": error.message, "now": now},
        )

    async def cancel_queued(self, job_id: str, now: str) -> Job | None:
        return await self._change("cancel_queued", {"id": job_id, "now": now})

    async def cancel_running(self, job_id: str, now: str) -> Job | None:
        return await self._change("cancel_running", {"id": job_id, "now": now})

    async def running(self) -> list[Job]:
        return [_job_of(row) for row in await self._all("running_jobs", {})]

    async def list(self, *, status: JobStatus | None, limit: int, offset: int) -> list[Job]:
        page = {"limit": limit, "offset": offset}
        if status is None:
            rows = await self._all("list_jobs", page)
        else:
            rows = await self._all("list_jobs_by_status", {**page, "status": status.value})
        return [_job_of(row) for row in rows]

    async def count_queued(self) -> int:
        row = await self._one("count_queued", {})
        assert row is not None
        return row[0]

    async def counts(self) -> dict[str, int]:
        """Jobs by status, every status named."""
        found = {row[0]: row[1] for row in await self._all("count_by_status", {})}
        return {status.value: found.get(status.value, 0) for status in JobStatus}

    async def position(self, job: Job) -> int:
        """Place in line of a waiting job: 1 is next."""
        row = await self._one("position", {"seq": job.seq})
        assert row is not None
        return row[0]

    # Images

    async def image(self, image_id: str) -> StoredImage | None:
        return _image(await self._one("image_by_id", {"id": image_id}))

    async def image_by_filename(self, filename: str) -> StoredImage | None:
        return _image(await self._one("image_by_filename", {"filename": filename}))

    async def images(
        self, *, limit: int, before: str | None, words: str | None
    ) -> list[StoredImage]:
        pattern = None if words is None else f"%{_escape_like(words)}%"
        rows = await self._all("list_images", {"limit": limit, "before": before, "words": pattern})
        return [_image_of(row) for row in rows]

    async def delete_image(self, image_id: str, remove: Callable[[], None]) -> None:
        """Delete the row, then the file."""

        def change(db: sqlite3.Connection) -> None:
            db.execute(sql.queries()["delete_image"], {"id": image_id})
            remove()

        await self._write(change)

    # Threads and connections

    async def _change(self, query: str, values: Mapping[str, Any]) -> Job | None:
        return await self._write(lambda db: _job(_fetch_one(db, query, values)))

    async def _write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            with self._write_db:  # commits, or rolls back on an exception
                self._write_db.execute("BEGIN IMMEDIATE")
                return change(self._write_db)

        # A caller that goes away must not leave a change half noticed: the write runs to its end.
        return await asyncio.shield(self._in(self._writer, run))

    async def _one(self, query: str, values: Mapping[str, Any]) -> sqlite3.Row | None:
        return await self._in(self._reader, lambda: _fetch_one(self._read_db, query, values))

    async def _all(self, query: str, values: Mapping[str, Any]) -> list[sqlite3.Row]:
        return await self._in(
            self._reader,
            lambda: self._read_db.execute(sql.queries()[query], values).fetchall(),
        )

    async def _in(self, executor: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, call)
        except sqlite3.IntegrityError:
            raise
        except (sqlite3.Error, OSError) as error:
            if not hasattr(self, "_read_db"):
                raise  # still opening
            log.error("the store refused: %s", error, extra={"action": "store_refused"})
            raise StorageUnavailable(
                f"the job database or the output folder cannot be written ({error}); "
                "free some disk space or check its permissions, then try again",
                retry_after_seconds=RETRY_AFTER_STORAGE_SECONDS,
            ) from error


def _take_lock(path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_file = open(path.with_suffix(".lock"), "a")
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock_file.close()
        raise ConfigurationError(
            f"{path} is in use by another instance of this service; stop it, or give this one its own FLUX_DATA_DIR"
        ) from error
    lock_file.truncate(0)
    lock_file.write(str(os.getpid()))
    lock_file.flush()
    return lock_file


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA synchronous = FULL")
    if read_only:
        db.execute("PRAGMA query_only = ON")
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    try:
        damage = db.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        damage = str(error)
    if damage != "ok":
        raise ConfigurationError(
            f"{path}: the job database is damaged ({damage}). It was left as it is; move it away to begin with "
            "an empty queue (pictures in the output folder are not touched)"
        )
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > sql.SCHEMA_VERSION:
        raise ConfigurationError(
            f"{path}: written by a newer version (schema {version}, this one knows {sql.SCHEMA_VERSION}); "
            "use that version, or another FLUX_DATA_DIR"
        )
    db.execute("PRAGMA journal_mode = WAL")
    if version == 0:
        db.executescript(
            f"BEGIN; {sql.schema()} PRAGMA user_version = {sql.SCHEMA_VERSION}; COMMIT;"
        )


def _fetch_one(db: sqlite3.Connection, query: str, values: Mapping[str, Any]) -> sqlite3.Row | None:
    # All rows are fetched: a RETURNING statement is only done when it has been read to its end.
    rows = db.execute(sql.queries()[query], values).fetchall()
    return rows[0] if rows else None


def _escape_like(words: str) -> str:
    return words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _job(row: sqlite3.Row | None) -> Job | None:
    return None if row is None else _job_of(row)


def _job_of(row: sqlite3.Row) -> Job:
    return Job(
        seq=row["seq"],
        id=row["id"],
        status=JobStatus(row["status"]),
        request=GenerationRequest.from_json(json.loads(row["request"])),
        created_at=row["created_at"],
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


def _image(row: sqlite3.Row | None) -> StoredImage | None:
    return None if row is None else _image_of(row)


def _image_of(row: sqlite3.Row) -> StoredImage:
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
        precision=row["precision"],
        engine=row["engine"],
    )
