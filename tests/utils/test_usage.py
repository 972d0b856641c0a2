"""What was used: written once with a job's end, summed over the services of a machine, budgets of a day."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from config.errors import RateLimited, StorageUnavailable
from models.types import GenerationResult, ImageFile
from tests.utils.soak.bench import in_loop, request
from utils.allowance import Allowance
from utils.job import Job, JobError
from utils.job_store import JobStore
from utils.keys import Limits
from utils.usage import Group, Usage

DAY = "2026-11-26"
NOW = f"{DAY}T12:00:00.000Z"
LATE = "2026-11-27T00:00:00.000Z"


@asynccontextmanager
async def opened(folder: Path, name: str = "bf16") -> AsyncIterator[JobStore]:
    store = await JobStore.open(folder / f"{name}.sqlite3")
    try:
        yield store
    finally:
        await store.close()


def result(job_id: str, pictures: int = 1) -> GenerationResult:
    return GenerationResult(
        images=tuple(
            ImageFile(filename=f"{job_id}-{n}.png", seed=n, width=1000, height=500, size_bytes=9)
            for n in range(pictures)
        ),
        engine="e",
        precision="bf16",
        device="cpu",
        timings_ms={
            "queued": 900.0,
            "load": 500.0,
            "encode": 100.0,
            "denoise": 1000.0,
            "decode": 400.0,
            "total": 3000.0,
        },
    )


async def start(store: JobStore, job_id: str, owner: str = "", **values: Any) -> Job:
    """A job that a worker has."""
    estimate_usd = values.pop("estimate_usd", 0.0)
    await store.insert(job_id, request(**values), NOW, owner=owner, estimate_usd=estimate_usd)
    (job,) = await store.claim(
        "w", NOW, models=["embedded", "flux-pro"], limit=1, choose=lambda jobs: jobs
    )
    return job


async def finish(
    store: JobStore,
    job_id: str,
    owner: str = "",
    *,
    at: str = NOW,
    pictures: int = 1,
    **values: Any,
) -> Job:
    job = await start(store, job_id, owner, **values)
    done = await store.succeed(job, result(job_id, pictures), at, publish=lambda: None)
    assert done is not None
    return done


async def charge(
    store: JobStore, job_id: str, state: str, estimate: float, cost: float | None = None
) -> None:
    """A cloud was asked for the job's picture."""
    row = (job_id, state, DAY, estimate, cost)
    statement = "INSERT INTO cloud_task (job_id, picture, state, day, estimate_usd, cost_usd) VALUES (?, 0, ?, ?, ?, ?)"
    await store.write(lambda db: db.execute(statement, row))


async def rows(
    folder: Path,
    *groups: Group,
    owner: str | None = None,
    first: str = DAY,
    last: str = DAY,
    **page: int,
) -> list[dict[str, Any]]:
    usage = Usage(folder, ["bf16", "fp4"])
    values = {"limit": 100, "offset": 0, **page}
    sums = await usage.sums(groups, from_day=first, to_day=last, owner=owner, **values)
    return sums.rows


async def totals(folder: Path, **values: Any) -> dict[str, Any]:
    usage = Usage(folder, ["bf16", "fp4"])
    sums = await usage.sums(
        [], from_day="2026-01-01", to_day="2026-12-31", owner=values.get("owner"), limit=1, offset=0
    )
    return sums.totals


@in_loop
async def test_usage_of_a_finished_job_is_what_it_drew(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await finish(store, "a", "key", pictures=2, tags=["x"])
        (row,) = await rows(tmp_path, Group.DAY, Group.KEY, Group.MODEL, Group.TAG)
    assert row == {
        "day": DAY, "key": "key", "model": "embedded", "tag": "x", "jobs": 1, "images": 2,
        "megapixels": 1.0, "gpu_seconds": 1.5, "cost_usd": 0.0, "last_at": NOW,
    }  # fmt: skip


@in_loop
async def test_usage_of_a_job_that_ran_twice_counts_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        job = await start(store, "a")
        await store.requeue("a", take_attempt_back=False)
        (job,) = await store.claim("w", NOW, models=["embedded"], limit=1, choose=lambda jobs: jobs)
        assert job.attempts == 2
        ends = await asyncio.gather(
            *(store.succeed(job, result("a"), NOW, publish=lambda: None) for _ in range(3))
        )
        assert [end is not None for end in ends] == [True, False, False]
        assert (await totals(tmp_path))["images"] == 1


@in_loop
async def test_usage_and_result_are_committed_together_or_not_at_all(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    async with opened(tmp_path) as store:
        job = await start(store, "a")
        with pytest.raises(StorageUnavailable):
            await store.succeed(job, result("a"), NOW, publish=full)
        assert (await totals(tmp_path))["images"] == 0
        await store.succeed(job, result("a"), NOW, publish=lambda: None)
        assert (await totals(tmp_path))["images"] == 1


@in_loop
async def test_usage_of_jobs_that_failed_or_were_cancelled_here_is_none(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await start(store, "a")
        await store.fail("a", JobError(code="oom", message="m"), NOW)
        await start(store, "b")
        await store.cancel("b", NOW)
        assert await rows(tmp_path, Group.DAY) == []


@in_loop
async def test_usage_outlives_its_picture(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await finish(store, "a")
        await store.delete_image("a-0", lambda: None)
        assert (await totals(tmp_path))["images"] == 1


@in_loop
async def test_usage_day_is_that_of_the_end_in_utc(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await finish(store, "a")
        await finish(store, "b", at=LATE)
        found = await rows(tmp_path, Group.DAY, last="2026-11-27")
        assert [(row["day"], row["images"]) for row in found] == [(DAY, 1), ("2026-11-27", 1)]
        assert len(await rows(tmp_path, Group.DAY)) == 1
        (month,) = await rows(tmp_path, Group.MONTH, last="2026-11-27")
        assert (month["month"], month["images"]) == ("2026-11", 2)


@in_loop
async def test_usage_by_tag_counts_under_each_and_once_in_the_totals(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await finish(store, "a", tags=["x", "y"])
        await finish(store, "b", tags=["x"])
        await finish(store, "c")
        found = {row["tag"]: row["images"] for row in await rows(tmp_path, Group.TAG)}
        assert found == {"": 1, "x": 2, "y": 1}
        assert (await totals(tmp_path))["images"] == 3


@in_loop
async def test_usage_of_one_owner_is_that_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await finish(store, "a", "one")
        await finish(store, "b", "two")
        assert [row["key"] for row in await rows(tmp_path, Group.KEY, owner="one")] == ["one"]
        assert (await totals(tmp_path, owner="one"))["images"] == 1


@in_loop
async def test_usage_is_summed_over_the_services_of_the_machine(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path, "fp4") as two:
        await finish(one, "a", "key")
        await finish(two, "b", "key")
        found = {row["service"]: row["images"] for row in await rows(tmp_path, Group.SERVICE)}
        assert found == {"bf16": 1, "fp4": 1}
        assert (await Usage(tmp_path, ["bf16", "fp4"]).spent("key", DAY)).images == 2


@in_loop
async def test_usage_pages_are_told_to_go_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await finish(store, "a", tags=["a", "b", "c"])
        usage = Usage(tmp_path, ["bf16"])
        values = {"from_day": DAY, "to_day": DAY, "owner": None}
        first = await usage.sums([Group.TAG], **values, limit=2, offset=0)
        rest = await usage.sums([Group.TAG], **values, limit=2, offset=2)
    assert ([row["tag"] for row in first.rows], first.has_more) == (["a", "b"], True)
    assert ([row["tag"] for row in rest.rows], rest.has_more) == (["c"], False)


@in_loop
async def test_usage_of_a_folder_without_services_is_nothing(tmp_path: Path) -> None:
    assert (await totals(tmp_path))["images"] == 0
    assert list(tmp_path.iterdir()) == []


@in_loop
async def test_usage_of_a_service_not_started_since_is_left_out(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "fp4.sqlite3") as db:
        db.execute("PRAGMA user_version = 2")
    async with opened(tmp_path) as store:
        await finish(store, "a")
        assert (await totals(tmp_path))["images"] == 1


@in_loop
async def test_usage_of_a_database_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fp4.sqlite3").write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageUnavailable):
        await totals(tmp_path)


# Clouds


@in_loop
async def test_usage_of_a_cloud_job_has_the_clouds_price(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        job = await start(store, "a", backend="flux-api", model="flux-pro")
        await charge(store, "a", "taken", 0.03, 0.04)
        await store.succeed(job, result("a"), NOW, publish=lambda: None)
        await finish(store, "b")
        found = {row["backend"]: row["cost_usd"] for row in await rows(tmp_path, Group.BACKEND)}
    assert found == {"flux": 0.0, "flux-api": 0.04}


@in_loop
@pytest.mark.parametrize(
    ("state", "expected"), [("taken", 0.03), ("unclear", 0.03), ("asking", 0.03), ("refused", None)]
)
@pytest.mark.parametrize("end", ["fail", "cancel", "clear"])
async def test_usage_of_a_cloud_job_without_a_picture_is_what_may_be_charged(
    tmp_path: Path, state: str, expected: float | None, end: str
) -> None:
    async with opened(tmp_path) as store:
        await start(store, "a", "key")
        await charge(store, "a", state, 0.03)
        if end == "fail":
            await store.fail("a", JobError(code="timeout", message="m"), NOW)
        elif end == "cancel":
            await store.cancel("a", NOW)
        else:
            await store.requeue("a", take_attempt_back=True)
            await store.clear_queued(NOW)
        found = await rows(tmp_path, Group.KEY)
    assert [(row["jobs"], row["images"], row["cost_usd"]) for row in found] == (
        [] if expected is None else [(0, 0, expected)]
    )


# Budgets


def allowance(folder: Path, usd: float = 0.0, **limits: Any) -> Allowance:
    return Allowance(
        limits_of=lambda owner: Limits(**limits) if owner == "key" else Limits(),
        estimate=lambda wanted: usd,
        usage=Usage(folder, ["bf16", "fp4"]),
        now=lambda: datetime(2026, 11, 26, 23, 59, tzinfo=UTC),
    )


async def why_not(allowance: Allowance, owner: str = "key", **values: Any) -> RateLimited | None:
    wanted = request(**values)
    try:
        async with allowance.room(owner, wanted, allowance.estimate(wanted)):
            return None
    except RateLimited as error:
        return error


@in_loop
async def test_budget_of_images_counts_what_is_done_waits_and_runs(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        budget = allowance(tmp_path, daily_images=4)
        await finish(store, "a", "key")
        await start(store, "b", "key")
        await store.insert("c", request(), NOW, owner="key")
        await store.insert("d", request(num_images=4), NOW, owner="other")
        assert await why_not(budget) is None
        refused = await why_not(budget, num_images=2)
        assert refused is not None and "4 images a day" in refused.message
        assert refused.retry_after_seconds == 60, "the next day begins then"
        assert await why_not(budget, "other", num_images=8) is None


@in_loop
async def test_budget_of_images_is_the_machines(tmp_path: Path) -> None:
    async with opened(tmp_path), opened(tmp_path, "fp4") as other_service:
        await finish(other_service, "a", "key")
        assert await why_not(allowance(tmp_path, daily_images=1)) is not None


@in_loop
async def test_budget_of_images_of_yesterday_is_over(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await finish(store, "a", "key", at="2026-11-25T23:59:59.999Z")
        assert await why_not(allowance(tmp_path, daily_images=1)) is None


@in_loop
async def test_budget_of_money_counts_charges_and_estimates(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        job = await start(store, "a", "key", estimate_usd=0.05)
        await charge(store, "a", "taken", 0.05, 0.04)
        budget = allowance(tmp_path, usd=0.05, daily_usd=0.1)
        assert await why_not(budget) is None, "an open job counts as estimated: 0.05 and 0.05"
        await store.insert("b", request(), NOW, owner="key", estimate_usd=0.01)
        refused = await why_not(budget)
        assert refused is not None and "0.1 USD a day" in refused.message
        await store.succeed(job, result("a"), NOW, publish=lambda: None)
        assert await why_not(budget) is None, "one that ended as charged: 0.04, 0.01 and 0.05"


@in_loop
async def test_budget_of_no_money_takes_what_costs_none(tmp_path: Path) -> None:
    async with opened(tmp_path):
        assert await why_not(allowance(tmp_path, usd=0.0, daily_usd=0.0)) is None
        assert await why_not(allowance(tmp_path, usd=0.01, daily_usd=0.0)) is not None


@in_loop
async def test_budget_holds_for_requests_that_come_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        budget = allowance(tmp_path, daily_images=3)

        async def submit(number: int) -> bool:
            wanted = request()
            try:
                async with budget.room("key", wanted, 0.0):
                    await store.insert(f"{number}", wanted, NOW, owner="key")
            except RateLimited:
                return False
            return True

        assert sum(await asyncio.gather(*map(submit, range(12)))) == 3
