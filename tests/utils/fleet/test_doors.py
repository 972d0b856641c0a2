"""Several front doors over one real database: one routes, all know, none is missed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from config.errors import QueueFull, RateLimited, StorageUnavailable
from models.types import LoraRef
from tests.postgres import PostgresServer
from tests.utils.fleet.house import PNG, Door, House, until
from utils.fleet import shared_files
from utils.fleet.word import packed
from utils.input_pictures import looked_at
from utils.job import JobStatus
from utils.keys import Limits
from utils.lora_manager import DEFAULTS

HANG_SECONDS = 180.0
PARTS = [b"a" * 10, b"b" * 10, b"c"]


def in_house(
    test: Callable[..., Coroutine[Any, Any, None]],
) -> Callable[[Path, PostgresServer], None]:
    """A test with a house in which two doors are open; the first routes."""

    @wraps(test)
    def run(tmp_path: Path, postgres: PostgresServer) -> None:
        async def inside() -> None:
            with postgres.database() as url:
                async with asyncio.timeout(HANG_SECONDS), House(tmp_path, url) as house:
                    first = await house.open("first")
                    second = await house.open("second")
                    await test(house, first, second)

        asyncio.run(inside())

    del run.__wrapped__  # type: ignore[attr-defined]  # pytest would look at the parameters of the test
    return run


def deaf(*doors: Door) -> None:
    """What doors tell each other gets lost."""
    for door in doors:
        door.doors._word.tell = lambda message: None  # type: ignore[method-assign]


# One line


@in_house
async def test_job_of_any_door_is_drawn_and_told_there(
    house: House, first: Door, second: Door
) -> None:
    assert first.routes and not second.routes
    for door in (first, second):
        done = await door.end_of(await door.submit())
        assert (done.status, done.attempts, done.worker) == (JobStatus.SUCCEEDED, 1, "node/r0")
    assert len(house.replicas[0].drawn) == 2


@in_house
async def test_line_is_one_and_in_order_at_both_doors(
    house: House, first: Door, second: Door
) -> None:
    held = await second.submit("hold")
    await until(lambda: house.replicas[0].begun == [held.id])
    jobs = [await (first, second)[number % 2].submit(f"{number}") for number in range(6)]
    ids = [job.id for job in jobs]
    for door in (first, second):
        await until(lambda door=door: [id for _, id in door.queue.waiting_jobs(9)] == ids)
        assert [door.queue.position(job) for job in jobs] == [1, 2, 3, 4, 5, 6]
    house.replicas[0].gate.set()
    await second.end_of(jobs[-1])
    assert house.replicas[0].begun == [held.id, *ids]


@in_house
async def test_what_comes_while_the_line_is_read_is_known_before_the_next_job_begins(
    house: House, first: Door, second: Door
) -> None:
    """It may be drawn together with it."""
    store, router = first.queue.store, first.queue.dispatcher.router
    get, decide = store.get, router.next
    is_read, goes_on = asyncio.Event(), asyncio.Event()
    known: list[list[bool]] = []

    async def slowly(job_id: str) -> Any:
        is_read.set()
        await goes_on.wait()
        return await get(job_id)

    def noted() -> Any:
        known.append([job.id in router.waiting for job in jobs])
        return decide()

    store.get = slowly  # type: ignore[method-assign]
    jobs = [await first.submit("a")]
    await is_read.wait()
    jobs += [await first.submit(prompt) for prompt in "bc"]
    router.next = noted  # type: ignore[method-assign]
    goes_on.set()
    for job in jobs:
        assert (await first.end_of(job)).status is JobStatus.SUCCEEDED
    assert known[0] == [True, True, True]


@in_house
async def test_what_is_told_between_doors_may_be_lost(
    house: House, first: Door, second: Door
) -> None:
    """The rows are read, and every memory is right again."""
    deaf(first, second)
    held = await second.submit("hold")
    waiting = await second.submit("b")
    await until(lambda: held.id in house.replicas[0].begun)
    await until(lambda: [id for _, id in second.queue.waiting_jobs(9)] == [waiting.id])
    await until(lambda: second.queue.running_ids == [held.id])
    house.replicas[0].gate.set()
    for job in (held, waiting):
        assert (await second.end_of(job)).status is JobStatus.SUCCEEDED
    for door in (first, second):
        await until(lambda door=door: not door.queue.waiting and not door.queue.ledger.open_jobs)


@in_house
async def test_events_of_a_job_are_heard_at_the_other_door(
    house: House, first: Door, second: Door
) -> None:
    with second.queue.bus.listening(None) as ear:
        job = await first.submit()
        heard: list[str] = []

        def has_ended() -> bool:
            heard.extend(event.name for event in ear.take() if event.job_id == job.id)
            return "succeeded" in heard

        await until(has_ended)
        assert heard[0] == "queued" and heard.count("succeeded") == 1


@in_house
async def test_cancel_at_the_other_door_ends_a_running_job(
    house: House, first: Door, second: Door
) -> None:
    held = await first.submit("hold")
    await until(lambda: second.queue.running_ids == [held.id])
    assert (await second.queue.cancel(held.id)).status is JobStatus.CANCELLED
    await until(lambda: not first.queue.running_ids and not second.queue.running_ids)
    done = await first.end_of(await first.submit())  # its replica is free again
    assert done.status is JobStatus.SUCCEEDED


@in_house
async def test_pause_at_any_door_holds_and_is_remembered(
    house: House, first: Door, second: Door
) -> None:
    await second.queue.pause()
    await until(lambda: first.queue.is_paused)
    job = await first.submit()
    await until(lambda: second.queue.waiting == 1)
    assert await first.status(job) is JobStatus.QUEUED and house.replicas[0].begun == []
    await second.queue.resume()
    assert (await first.end_of(job)).status is JobStatus.SUCCEEDED


@in_house
async def test_machine_set_aside_at_any_door_gets_nothing(
    house: House, first: Door, second: Door
) -> None:
    second.crew.set_away(["node"])
    second.crew.on_away()
    await until(lambda: first.crew.away == {"node"})
    job = await first.submit()
    second.crew.set_away([])
    second.crew.on_away()
    assert (await first.end_of(job)).status is JobStatus.SUCCEEDED
    await until(lambda: first.crew.away == second.crew.away == set())


@in_house
async def test_default_loras_of_one_door_are_those_of_all(
    house: House, first: Door, second: Door
) -> None:
    await first.queue.store.write_state(DEFAULTS, "[]")
    await until(lambda: second.loras.stored == "[]")


def test_bound_of_the_line_holds_over_doors(tmp_path: Path, postgres: PostgresServer) -> None:
    async def test() -> None:
        with postgres.database() as url:
            async with asyncio.timeout(HANG_SECONDS), House(tmp_path, url, replicas=0) as house:
                doors = [await house.open(name, FLUX_MAX_QUEUE_SIZE="20") for name in "ab"]
                submits = [doors[number % 2].submit() for number in range(50)]
                outcomes = await asyncio.gather(*submits, return_exceptions=True)
                refused = [each for each in outcomes if isinstance(each, QueueFull)]
                assert len(refused) == 30 and all(each.retry_after_seconds for each in refused)
                await until(lambda: all(door.queue.waiting == 20 for door in doors))
                assert await doors[0].queue.clear() == 20
                await until(lambda: all(door.queue.waiting == 0 for door in doors))

    asyncio.run(test())


@pytest.mark.parametrize(
    ("limits", "taken"),
    [(Limits(daily_images=5), 5), (Limits(daily_usd=1.0), 4)],
    ids=["images", "usd"],
)
@pytest.mark.usefixtures("one_day")
def test_budget_of_the_day_holds_over_doors(
    tmp_path: Path, postgres: PostgresServer, limits: Limits, taken: int
) -> None:
    async def test() -> None:
        with postgres.database() as url:
            async with asyncio.timeout(HANG_SECONDS), House(tmp_path, url, replicas=0) as house:
                doors = [await house.open(name, limits) for name in "abc"]
                submits = [doors[number % 3].submit() for number in range(30)]
                outcomes = await asyncio.gather(*submits, return_exceptions=True)
                refused = [each for each in outcomes if isinstance(each, RateLimited)]
                assert (len(refused), len(outcomes)) == (30 - taken, 30)
                assert {each.retry_after_seconds > 0 for each in refused} == {True}
                for door in doors:
                    await until(lambda door=door: len(door.queue.waiting_jobs(99)) == taken)
                with pytest.raises(RateLimited):
                    await doors[0].submit()

    asyncio.run(test())


# Doors that end


@in_house
async def test_door_that_is_killed_is_followed_and_its_jobs_are_drawn_once_more(
    house: House, first: Door, second: Door
) -> None:
    held = await first.submit("hold")
    waiting = await first.submit("b")
    await until(lambda: held.id in house.replicas[0].begun)
    await house.kill(first)
    house.replicas[0].gate.set()
    for job in (held, waiting):
        done = await second.end_of(job)
        assert (done.status, done.attempts, done.request.seed) == (JobStatus.SUCCEEDED, 1, 7)
        assert await second.files.fetch("picture", f"{job.id}-0.png")
    assert second.routes
    assert sorted(house.replicas[0].drawn) == sorted([(held.id, 7), (waiting.id, 7)])


@in_house
async def test_door_that_waits_and_is_killed_is_not_missed(
    house: House, first: Door, second: Door
) -> None:
    job = await second.submit("hold")
    await house.kill(second)
    house.replicas[0].gate.set()
    assert (await first.end_of(job)).status is JobStatus.SUCCEEDED
    await until(lambda: [door["name"] for door in first.doors.others] != ["first", "second"])


@in_house
async def test_door_that_stops_lets_the_next_route_at_once(
    house: House, first: Door, second: Door
) -> None:
    held = await first.submit("hold")
    waiting = await second.submit("b")
    await until(lambda: held.id in house.replicas[0].begun)
    stopping = asyncio.create_task(first.stop())
    await until(lambda: first.queue.is_draining)
    house.replicas[0].gate.set()
    await stopping
    assert (await second.end_of(held)).attempts == 1
    assert (await second.end_of(waiting)).status is JobStatus.SUCCEEDED
    assert house.replicas[0].begun == [held.id, waiting.id]  # what ran was not begun anew


@in_house
async def test_door_that_slept_through_its_lease_changes_nothing(
    house: House, first: Door, second: Door
) -> None:
    """As a process that was stopped for a while and goes on: it thinks that it routes until it asks."""
    held = await first.submit("hold")
    await until(lambda: held.id in house.replicas[0].begun)
    look = first.doors._look
    first.doors._look = lambda: (_ for _ in ()).throw(StorageUnavailable("asleep"))  # type: ignore[method-assign]
    await until(lambda: second.routes)
    first.doors._look = look  # type: ignore[method-assign]
    late = await first.submit("b")
    house.replicas[0].gate.set()
    for job in (held, late):
        done = await second.end_of(job)
        assert (done.status, done.attempts) == (JobStatus.SUCCEEDED, 1)
    await until(lambda: not first.routes)
    assert len(house.replicas[0].drawn) == 2


@in_house
async def test_job_that_was_claimed_and_never_sent_is_drawn(
    house: House, first: Door, second: Door
) -> None:
    """The answer to a claim was lost, or its door died before it sent the job."""
    store = first.queue.store
    await first.queue.pause()
    job = await second.submit()
    await store.write(
        lambda db: db.select(
            "UPDATE job SET status = 'running', worker = 'node/r0', attempts = 1, door = :door, epoch = :epoch",
            {},
        )
    )
    await first.queue.resume()
    done = await second.end_of(job)
    assert (done.status, done.attempts) == (JobStatus.SUCCEEDED, 1)


@in_house
async def test_end_that_was_heard_of_before_its_beginning_stays_the_end(
    house: House, first: Door, second: Door
) -> None:
    with second.queue.bus.listening(None) as ear:
        done = await first.end_of(await first.submit())
        await until(lambda: any(event.name == "succeeded" for event in ear.take()))
    second.doors._heard(
        {"kind": "queued", "seq": done.seq, "id": done.id, "owner": "", "backend": "flux",
         "created_at": done.created_at, "attempts": 0}
    )  # fmt: skip
    assert second.queue.waiting == 0


# The database goes away


@pytest.fixture
def own_server() -> Any:
    server = PostgresServer()
    yield server
    server.close()


def test_outage_of_the_database_loses_nothing(tmp_path: Path, own_server: PostgresServer) -> None:
    async def test() -> None:
        with own_server.database() as url:
            async with asyncio.timeout(HANG_SECONDS), House(tmp_path, url) as house:
                first, second = await house.open("first"), await house.open("second")
                held = await first.submit("hold")
                waiting = await second.submit("b")
                await until(lambda: held.id in house.replicas[0].begun)
                await asyncio.to_thread(own_server.stop)
                house.replicas[0].gate.set()
                for door in (first, second):
                    with pytest.raises(StorageUnavailable) as caught:
                        await door.submit()
                    assert caught.value.retry_after_seconds
                await until(lambda: not first.doors.lease.is_sure)  # longer than a lease
                await asyncio.to_thread(own_server.start)
                for job in (held, waiting):
                    done = await second.end_of(job)
                    assert (done.status, done.attempts) == (JobStatus.SUCCEEDED, 1)
                assert first.routes and not second.routes
                assert len(house.replicas[0].drawn) == 2

    asyncio.run(test())


# Files


@in_house
async def test_picture_that_one_door_drew_is_had_at_the_other(
    house: House, first: Door, second: Door
) -> None:
    done = await second.end_of(await second.submit())
    name = f"{done.id}-0.png"
    assert (first.output_dir / name).read_bytes() == PNG
    assert not (second.output_dir / name).exists()
    assert await second.files.fetch("picture", name)
    assert (second.output_dir / name).read_bytes() == PNG
    assert not await second.files.fetch("picture", "no-0.png")


@in_house
async def test_input_that_came_to_one_door_goes_to_the_replica_by_another(
    house: House, first: Door, second: Door
) -> None:
    picture = looked_at("image", PNG)
    second.inputs.keep(picture, PNG)
    done = await second.end_of(await second.submit(image=picture.sha256, strength=0.5))
    assert done.status is JobStatus.SUCCEEDED  # the replica asserts that the file was sent
    assert (first.inputs.folder / picture.sha256).read_bytes() == PNG
    assert (await first.end_of(await first.queue.retry(done.id))).status is JobStatus.SUCCEEDED


@pytest.fixture
def alone(tmp_path: Path, postgres: PostgresServer) -> Any:
    """A call that runs a test with the shared files of two doors, whose files have small parts."""

    def run(test: Callable[[Door, Door], Coroutine[Any, Any, None]]) -> None:
        async def inside() -> None:
            with postgres.database() as url:
                async with asyncio.timeout(HANG_SECONDS), House(tmp_path, url, replicas=0) as house:
                    await test(await house.open("a"), await house.open("b"))

        asyncio.run(inside())

    return run


def lora(door: Door, data: bytes) -> LoraRef:
    """A LoRA that lies at a door."""
    sha256 = hashlib.sha256(data).hexdigest()
    path = door.folder / "pins" / f"{sha256}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return LoraRef(name="style", sha256=sha256, weight=1.0)


def test_file_of_many_parts_arrives_whole(alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_files, "PART_BYTES", 10)

    async def test(a: Door, b: Door) -> None:
        style = lora(a, b"".join(PARTS))
        job = await a.submit(loras=[asdict(style)])
        assert await b.files.fetch("lora", style.sha256)
        path = b.folder / "pins" / f"{style.sha256}.safetensors"
        assert path.read_bytes() == b"".join(PARTS)
        assert await b.status(job) is JobStatus.QUEUED

    alone(test)


DAMAGES = {
    "another part": "UPDATE file_part SET data = 'x' WHERE part = 1",
    "a part less": "DELETE FROM file_part WHERE part = 1",
    "not whole yet": "UPDATE file SET bytes = -1",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_file_that_is_damaged_in_the_database_is_not_taken(
    alone: Any, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(shared_files, "PART_BYTES", 10)

    async def test(a: Door, b: Door) -> None:
        style = lora(a, b"".join(PARTS))
        await a.submit(loras=[asdict(style)])
        await a.queue.store.write(lambda db: db.select(damage, {}))
        assert not await b.files.fetch("lora", style.sha256)
        folder = b.folder / "pins"
        assert not folder.exists() or list(folder.iterdir()) == []

    alone(test)


def test_files_that_nobody_needs_go_and_others_stay(alone: Any) -> None:
    async def test(a: Door, b: Door) -> None:
        kept, gone = lora(a, b"kept"), lora(a, b"gone")
        await a.submit(loras=[asdict(kept)])
        ended = await a.submit(loras=[asdict(gone)])
        await a.queue.cancel(ended.id)
        await a.files.sweep(a.queue.store)
        assert await b.files.fetch("lora", gone.sha256)  # for a retry
        old = "UPDATE file SET used_at = clock_timestamp() - interval '2 hours'"
        await a.queue.store.write(lambda db: db.select(old, {}))
        await a.files.sweep(a.queue.store)
        (b.folder / "pins" / f"{gone.sha256}.safetensors").unlink()
        assert not await b.files.fetch("lora", gone.sha256)
        assert await b.files.fetch("lora", kept.sha256)

    alone(test)


@in_house
async def test_copies_of_pictures_whose_rows_are_gone_go(
    house: House, first: Door, second: Door
) -> None:
    jobs = [await first.end_of(await first.submit()) for _ in range(2)]
    for job in jobs:
        await second.files.fetch("picture", f"{job.id}-0.png")
    mine = second.output_dir / "mine.png"
    mine.write_bytes(PNG)
    await first.queue.store.delete_image(f"{jobs[0].id}-0", lambda: None)
    shared_files.COPY_KEPT_SECONDS, before = 0.0, shared_files.COPY_KEPT_SECONDS
    try:
        await second.files.sweep_copies()
    finally:
        shared_files.COPY_KEPT_SECONDS = before
    left = {path.name for path in second.output_dir.glob("*.png")}
    assert left == {f"{jobs[1].id}-0.png", "mine.png"}


# Words


def test_words_are_packed_within_their_bound() -> None:
    told = [{"kind": "ended", "id": f"{number:026}"} for number in range(400)]
    payloads = packed("door", told)
    assert all(len(payload.encode()) < 8000 for payload in payloads) and len(payloads) < 5
    assert packed("door", [{"id": "x" * 9000}]) == []
