"""What was drawn, for whom, and what it cost: one row for each job that came to its end.

A row is written in the transaction in which its job ends, so nothing is counted twice and nothing is
missed. A job without pictures has one where a cloud charges for it all the same. Every service has its own database; what is asked here is asked of all that lie in
the data folder, because a key and its budget are the machine's.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from config.errors import StorageUnavailable
from models.types import GenerationResult
from utils.job import Job

USAGE_SCHEMA = 4  # the first schema with usage in it
BUSY_SECONDS = 5.0
RETRY_AFTER_SECONDS = 5
# Of a picture's way what keeps a device busy; a cloud's own words are not among them.
COMPUTING = ("encode", "denoise", "decode")


class Group(StrEnum):
    """By what usage can be summed up."""

    DAY = "day"  # UTC
    MONTH = "month"
    KEY = "key"
    SERVICE = "service"
    BACKEND = "backend"
    MODEL = "model"
    TAG = "tag"  # a job with several counts under each


_COLUMNS: Mapping[Group, str] = {
    Group.DAY: "day",
    Group.MONTH: "substr(day, 1, 7)",
    Group.KEY: "owner",
    Group.SERVICE: "service",
    Group.BACKEND: "backend",
    Group.MODEL: "model",
    Group.TAG: "coalesce(tag.value, '')",
}
_SUMS = (
    "count(*) FILTER (WHERE images > 0) AS jobs, coalesce(sum(images), 0) AS images, coalesce(sum(megapixels), 0.0) AS megapixels, "
    "coalesce(sum(gpu_seconds), 0.0) AS gpu_seconds, coalesce(sum(cost_usd), 0.0) AS cost_usd, "
    "max(finished_at) AS last_at"
)
# Where no service was ever started.
_NO_ROWS = (
    "SELECT NULL AS day, NULL AS owner, NULL AS service, NULL AS backend, NULL AS model, '[]' AS tags, "
    "0 AS images, 0 AS megapixels, 0 AS gpu_seconds, 0 AS cost_usd, NULL AS finished_at WHERE 0"
)
_WHERE = "day BETWEEN :from_day AND :to_day AND (:owner IS NULL OR owner = :owner)"
# Of jobs that have ended what clouds charged on the day; of those that have not, what was estimated.
_SPENT = """
SELECT
    (SELECT coalesce(sum(images), 0) FROM {name}.usage
     WHERE day = :day AND (:owner IS NULL OR owner = :owner))
    + coalesce(sum(json_extract(request, '$.num_images')), 0),
    (SELECT coalesce(sum(coalesce(task.cost_usd, task.estimate_usd)), 0.0)
     FROM {name}.cloud_task AS task JOIN {name}.job AS ended ON ended.id = task.job_id
     WHERE task.day = :day AND task.state <> 'refused' AND ended.status NOT IN ('queued', 'running')
       AND (:owner IS NULL OR ended.owner = :owner))
    + coalesce(sum(estimate_usd), 0.0)
FROM {name}.job
WHERE status IN ('queued', 'running') AND (:owner IS NULL OR owner = :owner)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a day's jobs came to, and those that wait or run will come to."""

    images: int
    usd: float


def spent_of(row: Mapping[str, Any]) -> Spent:
    """Of a row with `images` and `usd`."""
    return Spent(images=int(row["images"]), usd=float(row["usd"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Usage in groups (`rows`, with a column for each group), and over everything (`totals`)."""

    rows: list[dict[str, Any]]
    totals: dict[str, Any]
    has_more: bool


def row_of(job: Job, result: GenerationResult, now: str) -> dict[str, Any]:
    """The values of a finished job's row."""
    milliseconds = sum(result.timings_ms.get(name, 0.0) for name in COMPUTING)
    return {
        "job_id": job.id,
        "day": now[:10],
        "owner": job.owner,
        "backend": job.request.backend,
        "model": job.request.model,
        "tags": json.dumps(list(job.request.tags), ensure_ascii=False),
        "images": len(result.images),
        "megapixels": sum(image.width * image.height for image in result.images) / 1e6,
        "gpu_seconds": milliseconds / 1000,
        "finished_at": now,
    }


class Usage:
    """Reads the usage of all services whose databases lie in a folder. Methods raise StorageUnavailable."""

    def __init__(self, data_dir: Path, services: Sequence[str]) -> None:
        self._paths = {name: data_dir / f"{name}.sqlite3" for name in services}

    async def spent(self, owner: str | None, day: str) -> Spent:
        """Of one owner, or of all (None)."""
        return await asyncio.to_thread(self._spent, owner, day)

    async def sums(
        self,
        groups: Sequence[Group],
        *,
        from_day: str,
        to_day: str,
        owner: str | None,
        limit: int,
        offset: int,
    ) -> Sums:
        """Days as `2026-01-31`, both included; with an `owner` only that one's."""
        values = {"from_day": from_day, "to_day": to_day, "owner": owner}
        page = {"limit": limit + 1, "offset": offset}
        return await asyncio.to_thread(self._sums, list(dict.fromkeys(groups)), values, page)

    def _spent(self, owner: str | None, day: str) -> Spent:
        images, usd = 0, 0.0
        with self._databases() as (db, names):
            for name in names:
                row = db.execute(_SPENT.format(name=name), {"owner": owner, "day": day}).fetchone()
                images, usd = images + row[0], usd + row[1]
        return Spent(images=images, usd=usd)

    def _sums(
        self, groups: list[Group], values: Mapping[str, Any], page: Mapping[str, int]
    ) -> Sums:
        with self._databases() as (db, names):
            every = " UNION ALL ".join(
                f"SELECT '{name}' AS service, * FROM {name}.usage" for name in names
            )
            every = every or _NO_ROWS
            totals = dict(
                db.execute(f"SELECT {_SUMS} FROM ({every}) WHERE {_WHERE}", values).fetchone()
            )
            if not groups:
                return Sums(rows=[], totals=totals, has_more=False)
            columns = ", ".join(f"{_COLUMNS[group]} AS {alias(group)}" for group in groups)
            names_of_groups = ", ".join(map(alias, groups))
            tags = "LEFT JOIN json_each(used.tags) AS tag" if Group.TAG in groups else ""
            rows = db.execute(
                f"SELECT {columns}, {_SUMS} FROM ({every}) AS used {tags} WHERE {_WHERE} "
                f"GROUP BY {names_of_groups} ORDER BY {names_of_groups} LIMIT :limit OFFSET :offset",
                {**values, **page},
            ).fetchall()
        found = [
            {**{group.value: row[alias(group)] for group in groups}, **sums_of(row)}
            for row in rows[: page["limit"] - 1]
        ]
        return Sums(rows=found, totals=totals, has_more=len(rows) == page["limit"])

    @contextmanager
    def _databases(self) -> Iterator[tuple[sqlite3.Connection, list[str]]]:
        """A connection with every service's database attached under the service's name."""
        try:
            with closing(sqlite3.connect(":memory:", timeout=BUSY_SECONDS)) as db:
                db.row_factory = sqlite3.Row
                names = []
                for name, path in self._paths.items():
                    if not path.exists():
                        continue  # a service that was never started
                    db.execute(f"ATTACH ? AS {name}", (str(path),))
                    if db.execute(f"PRAGMA {name}.user_version").fetchone()[0] < USAGE_SCHEMA:
                        continue  # one that was not started since
                    names.append(name)
                db.execute("PRAGMA query_only = ON")
                yield db, names
        except sqlite3.Error as error:
            raise StorageUnavailable(
                f"what was used cannot be read from the job databases ({error}); try again",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            ) from error


def columns_of(group: Group) -> str:
    """What a group is in a row of usage."""
    return _COLUMNS[group]


def sums_columns() -> str:
    return _SUMS


def alias(group: Group) -> str:
    return f"by_{group.value}"


def sums_of(row: Any) -> dict[str, Any]:
    names = ("jobs", "images", "megapixels", "gpu_seconds", "cost_usd", "last_at")
    return {name: row[name] for name in names}
