"""What is asked beside the store, of a file and of a server: usage, a cloud's charges, cleanup. Both answer alike."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import PostgresServer
from tests.utils.soak.bench import in_loop
from tests.utils.test_cleanup_service import DAY as ONE_DAY
from tests.utils.test_cleanup_service import House, settings_of
from tests.utils.test_job_store import routing
from tests.utils.test_usage import DAY, LATE, NOW, finish, start
from utils.database.postgres import PostgresDatabase
from utils.fleet.usage import FleetUsage
from utils.job import JobError
from utils.job_store import JobStore
from utils.usage import Group, Usage


@asynccontextmanager
async def both(folder: Path, server: PostgresServer) -> AsyncIterator[list[tuple[JobStore, Any]]]:
    """A file and a server, each with who tells its usage."""
    with server.database() as url:
        on_server = await routing(PostgresDatabase(url, "door"))
        in_file = await JobStore.open(folder / "fleet.sqlite3")
        try:
            yield [(in_file, Usage(folder, ["fleet"])), (on_server, FleetUsage(on_server))]
        finally:
            await in_file.close()
            await on_server.close()


async def charge(store: JobStore, job_id: str, state: str, usd: float) -> None:
    values = {"job_id": job_id, "picture": 0, "day": DAY, "estimate_usd": usd}
    await store.write(lambda db: db.rows("insert_cloud_task", values))
    noted = {"state": state, "task_id": "t", "polling_url": None, "cost_usd": usd}
    await store.write(lambda db: db.rows("note_cloud_task", {**values, **noted}))


async def a_day(store: JobStore) -> None:
    """Jobs of two keys: drawn here, drawn in a cloud, failed there and charged, waiting."""
    await finish(store, "a", "key1", pictures=2, tags=["x", "y"])
    await finish(store, "b", "key2", at=LATE, tags=["x"])
    await start(store, "c", "key1", model="flux-pro", backend="flux-api", estimate_usd=0.5)
    await charge(store, "c", "taken", 0.4)
    await store.fail("c", JobError(code="internal", message="no"), NOW)
    await start(store, "d", "key2", model="flux-pro", backend="flux-api", estimate_usd=0.25)
    await charge(store, "d", "refused", 0.25)
    await store.cancel("d", NOW)
    await start(store, "e", "key1", num_images=3, estimate_usd=0.125)


@in_loop
async def test_usage_of_a_server_is_that_of_a_file(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    told: list[list[Any]] = []
    async with both(tmp_path, postgres) as kinds:
        for store, usage in kinds:
            await a_day(store)
            answers: list[Any] = []
            for groups in [
                (),
                *itertools.permutations(Group, 1),
                (Group.KEY, Group.TAG, Group.MONTH),
            ]:
                for owner in (None, "key1"):
                    page = {"limit": 3, "offset": 0}
                    answers.append(
                        await usage.sums(
                            groups, from_day=DAY, to_day="2026-12-31", owner=owner, **page
                        )
                    )
            answers += [await usage.spent(owner, DAY) for owner in (None, "key1", "nobody")]
            told.append(answers)
    assert told[0] == told[1]
    assert told[0][0].totals["images"] == 3 and told[0][-3].images == 5


@in_loop
async def test_cleanup_of_a_server_is_that_of_a_file(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    left: list[Any] = []
    async with both(tmp_path, postgres) as kinds:
        for number, (store, _) in enumerate(kinds):
            folder = tmp_path / f"{number}"
            folder.mkdir()
            settings = settings_of(
                folder, FLUX_CLEANUP_OUTPUT_DAYS="7", FLUX_CLEANUP_JOB_DAYS="30", FLUX_CLEANUP_USAGE_DAYS="60",
            )  # fmt: skip
            house = House(folder, store, settings)
            ages = (100 * ONE_DAY, 40 * ONE_DAY, 8 * ONE_DAY, ONE_DAY)
            jobs = [await house.picture(age) for age in ages]
            await store.pin_image(f"{jobs[1]}-0", True)
            report = await house.clean()
            left.append(
                (
                    [jobs.index(job) for job in sorted(house.left())],
                    [await store.get(job) is not None for job in jobs],
                    {name: tally.count for name, tally in report.tallies.items()},
                    len(await store.read("old_usage", {"before": "9", "after": "", "limit": 9})),
                )
            )
    assert left[0] == left[1]
    assert left[0][:2] == ([1, 3], [False, True, True, True])


QUESTIONS: dict[str, Callable[[JobStore], Any]] = {
    "by model": lambda store: store.ended_by_model("2026", None),
    "by model of a key": lambda store: store.ended_by_model("2026", "key1"),
    "by worker": lambda store: store.ended_by_worker("2026", None),
    "by tag": lambda store: store.ended_by_tag("2026", "key1"),
    "last": lambda store: store.ended_last("2026", None, 9),
    "of a key": lambda store: store.list(status=None, limit=9, offset=0, owner="key1"),
    "counts": lambda store: store.counts(),
}


@in_loop
async def test_statistics_of_a_server_are_those_of_a_file(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    async with both(tmp_path, postgres) as kinds:
        for store, _ in kinds:
            await a_day(store)
        for name, ask in QUESTIONS.items():
            in_file, on_server = [await ask(store) for store, _ in kinds]
            if isinstance(in_file, list):
                in_file, on_server = sorted(in_file, key=str), sorted(on_server, key=str)
            assert in_file == on_server and in_file, name


@pytest.mark.parametrize("words", ["BALLOON", "%", None])
@in_loop
async def test_gallery_of_a_server_is_that_of_a_file(
    tmp_path: Path, postgres: PostgresServer, words: str | None
) -> None:
    async with both(tmp_path, postgres) as kinds:
        found = []
        for store, _ in kinds:
            for number in range(3):
                await finish(store, f"{number}", "key", pictures=2, prompt=f"a balloon {number}")
            page = await store.images(limit=2, before="1-1", words=words, owner="key")
            found.append(page)
        assert found[0] == found[1] and len(found[0]) == (0 if words == "%" else 2)
