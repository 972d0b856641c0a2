"""The cloud as a worker, in a queue that has no other: ends, money, turns, and what happens over a stop."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from PIL import Image

from config.catalog import DefaultModel
from config.errors import StorageUnavailable, Unavailable
from models import bfl
from models.bfl_errors import BudgetSpent
from models.bfl_request import CloudTask
from models.precision import profile_of
from models.types import OutputFormat
from tests.cloud import KEY, StandIn, cloud_queue, cloud_request, ended
from utils import cloud_job, cloud_pictures, cloud_worker, metadata
from utils.clock import Chance
from utils.cloud_tasks import Asked, CloudTasks
from utils.gpu_manager import WorkerSlot
from utils.job import Job, JobStatus
from utils.queue_manager import QueueManager
from utils.worker.parent import Worker

T = TypeVar("T")

Use = Callable[[QueueManager], Awaitable[T]]


@pytest.fixture
def in_queue(cloud: StandIn, tmp_path: Path) -> Callable[..., Any]:
    """Runs something with a queue; settings of the cloud by name."""

    def run(use: Use[T], **values: Any) -> T:
        async def in_loop() -> T:
            async with cloud_queue(cloud, tmp_path, **values) as queue:
                return await asyncio.wait_for(use(queue), 120)

        return asyncio.run(in_loop())

    return run


@pytest.fixture
def end_of(in_queue: Callable[..., Any]) -> Callable[..., Job]:
    """The job of a prompt when it has ended."""

    def run(
        prompt: str = "a red balloon", *, settings: dict[str, Any] | None = None, **values: Any
    ):
        return in_queue(
            lambda queue: ended(queue, cloud_request(prompt, **values)), **settings or {}
        )

    return run


def rows(folder: Path) -> list[tuple[Any, ...]]:
    """(picture, state, cost) of every picture that was asked for."""
    with closing(sqlite3.connect(folder / "jobs.sqlite3")) as db:
        return db.execute(
            "SELECT picture, state, cost_usd FROM cloud_task ORDER BY job_id, picture"
        ).fetchall()


def files(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder / "out"))
        for path in (folder / "out").rglob("*.*")
        if path.is_file()
    )


def drain_at_once(queue: QueueManager) -> None:
    server = queue._settings.server.model_copy(update={"drain_seconds": 0.0})
    queue._settings = queue._settings.model_copy(update={"server": server})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


# A picture


def test_job_ends_with_a_picture_of_ours_and_its_cost(
    end_of: Callable[..., Job], cloud: StandIn, tmp_path: Path
) -> None:
    job = end_of("a red balloon", width=96, height=64)
    assert job.status is JobStatus.SUCCEEDED and job.result is not None
    assert (job.result.engine, job.result.precision) == ("bfl", "cloud")
    # No time of a GPU here, and the time that the cloud took.
    assert job.result.timings_ms["denoise"] == 0 < job.result.timings_ms["cloud"]
    assert job.result.cost_usd == pytest.approx(0.014)
    (image,) = job.result.images
    data = (tmp_path / "out" / image.filename).read_bytes()
    assert metadata.read_request(data)["request"]["prompt"] == "a red balloon"
    assert "Sampler" not in metadata.read_png_texts(data)["parameters"]  # nobody knows it
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (96, 64) == (image.width, image.height)
    assert len(cloud.submits) == 1 and files(tmp_path) == [image.filename]


@pytest.mark.parametrize("kind", list(OutputFormat))
def test_job_picture_has_the_format_that_was_asked_for(
    end_of: Callable[..., Job], tmp_path: Path, kind: OutputFormat
) -> None:
    job = end_of(output_format=kind)
    assert job.result is not None
    with Image.open(tmp_path / "out" / job.result.images[0].filename) as picture:
        assert picture.format == kind.value.upper()


def test_job_of_several_pictures_has_a_seed_for_each(
    end_of: Callable[..., Job], cloud: StandIn, tmp_path: Path
) -> None:
    job = end_of("[[delay=0.2]]", num_images=3, seed=40)
    assert job.result is not None
    assert [image.seed for image in job.result.images] == [40, 41, 42]
    assert job.result.cost_usd == pytest.approx(3 * 0.014)
    assert len({call["task"] for call in cloud.submits}) == 3 == len(cloud.submits)


def test_job_cost_that_the_cloud_does_not_tell_is_the_estimate(end_of: Callable[..., Job]) -> None:
    job = end_of("[[free]]", model="bfl/flux-2-pro", width=1024, height=1024)
    assert job.result is not None and job.result.cost_usd == pytest.approx(0.03)


def test_job_references_go_along_as_they_came(
    end_of: Callable[..., Job], cloud: StandIn, tmp_path: Path
) -> None:
    (tmp_path / "inputs").mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (1024, 2048)).save(buffer, "PNG")
    (tmp_path / "inputs" / ("a" * 64)).write_bytes(buffer.getvalue())
    job = end_of("[[free]]", model="bfl/flux-2-pro", reference_images=("a" * 64,))
    assert job.result is not None and job.result.cost_usd == pytest.approx(0.03 + 2 * 0.015)
    assert "input_image" in cloud.submits[0]["fields"]


def test_job_whose_picture_is_gone_costs_nothing(
    end_of: Callable[..., Job], cloud: StandIn, tmp_path: Path
) -> None:
    job = end_of(model="bfl/flux-2-pro", reference_images=("a" * 64,))
    assert job.error is not None and job.error.code == "not_found"
    assert "reference_images.0" in job.error.message
    assert cloud.submits == [] and rows(tmp_path) == []


def test_job_status_that_nobody_knows_goes_on(end_of: Callable[..., Job]) -> None:
    assert end_of("[[status=Dreaming,Reasoning]]").status is JobStatus.SUCCEEDED


def test_job_address_that_is_over_is_asked_for_anew(
    end_of: Callable[..., Job], cloud: StandIn
) -> None:
    assert end_of("[[expire=2]]").status is JobStatus.SUCCEEDED
    assert len(cloud.submits) == 1


def test_job_cloud_that_fails_for_a_while_is_looked_at_again(
    end_of: Callable[..., Job], cloud: StandIn
) -> None:
    assert end_of("[[poll-http=500:3]]").status is JobStatus.SUCCEEDED
    assert len(cloud.submits) == 1


# Failures: one request, its own error, no file

NOT_CHARGED = ("[[error]]", "[[503-body]]", "[[moderate")


@pytest.mark.parametrize(
    ("words", "code", "state"),
    [
        ("[[http=401]]", "provider_key", "refused"),
        ("[[http=402]]", "provider_credits", "refused"),
        ("[[http=403]]", "provider_forbidden", "refused"),
        ("[[http=422]]", "provider_refused", "refused"),
        ("[[http=500]]", "provider_error", "unclear"),
        ("[[http=503]]", "provider_error", "unclear"),
        ("[[then=drop]]", "provider_error", "unclear"),
        ("[[then=500]]", "provider_error", "unclear"),
        ("[[then=json]]", "provider_error", "unclear"),
        ("[[redirect]]", "provider_error", "refused"),
        ("[[moderate=request]]", "moderated", "taken"),
        ("[[moderate=content]]", "moderated", "taken"),
        ("[[error]]", "provider_error", "taken"),
        ("[[lost]]", "provider_lost", "taken"),
        ("[[503-body]]", "provider_error", "taken"),
        ("[[poll=foreign]]", "provider_error", "taken"),
        ("[[poll=redirect]]", "provider_error", "taken"),
        ("[[picture=foreign]]", "provider_error", "taken"),
        ("[[picture=redirect]]", "provider_error", "taken"),
        ("[[picture=html]]", "provider_error", "taken"),
        ("[[picture=cut]]", "provider_error", "taken"),
        ("[[picture=empty]]", "provider_error", "taken"),
    ],
)
def test_job_failure_has_its_code_and_was_asked_for_once(
    end_of: Callable[..., Job], cloud: StandIn, tmp_path: Path, words: str, code: str, state: str
) -> None:
    job = end_of(words)
    assert job.status is JobStatus.FAILED and job.error is not None
    assert job.error.code == code
    assert len(cloud.submits) == 1  # no second one, whatever became of the first
    assert [row[1] for row in rows(tmp_path)] == [state]
    assert files(tmp_path) == []
    hosts = {call["host"] for call in cloud.calls if call["has_key"]}
    assert hosts == {f"127.0.0.1:{cloud.port}"}
    assert ("may have charged" in job.error.message) == (
        state == "unclear" or (state == "taken" and not words.startswith(NOT_CHARGED))
    )


def test_job_that_was_blocked_costs_nothing_and_is_not_asked_for_again(
    cloud: StandIn, tmp_path: Path
) -> None:
    """Also when the service died before the job's end was written."""

    async def in_loop() -> Job:
        async with cloud_queue(cloud, tmp_path) as queue:
            job = await ended(queue, cloud_request("[[moderate=content]]"))
            assert rows(tmp_path) == [(0, "taken", 0.0)]
            undo = "UPDATE job SET status = 'queued', finished_at = NULL, error_code = NULL"
            await queue.store.write(lambda db: db.execute(undo))
        async with cloud_queue(cloud, tmp_path) as queue:
            return await queue.wait(await queue.get(job.id))

    job = asyncio.run(in_loop())
    assert job.error is not None and job.error.code == "moderated"
    assert len(cloud.submits) == 1


def test_job_without_a_picture_in_time_fails_as_timeout(
    end_of: Callable[..., Job], cloud: StandIn
) -> None:
    job = end_of("[[never]]", settings={"bfl_poll_timeout": 0.3})
    assert job.error is not None and job.error.code == "timeout"
    assert "FLUX_BFL_POLL_TIMEOUT" in job.error.message and "Pending" in job.error.message
    assert cloud.submits[0]["task"] in job.error.message


def test_job_silence_after_the_request_is_unclear(
    end_of: Callable[..., Job], cloud: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bfl, "ANSWER_SECONDS", 0.2)
    job = end_of("[[then=hang]]")
    assert job.error is not None and "may have charged" in job.error.message
    assert len(cloud.submits) == 1


def test_job_fails_internally_where_our_code_is_wrong(
    end_of: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any) -> Any:
        raise ZeroDivisionError("secret 4711")

    monkeypatch.setattr(cloud_pictures, "body_of", wrong)
    job = end_of()
    assert job.error is not None and job.error.code == "internal"
    assert "ZeroDivisionError" in job.error.message and "4711" not in job.error.message


def test_job_of_several_stops_asking_at_the_first_failure(
    end_of: Callable[..., Job], cloud: StandIn
) -> None:
    job = end_of("[[http=402]]", num_images=4)
    assert job.error is not None and job.error.code == "provider_credits"
    assert len(cloud.submits) == 1


def test_job_of_several_says_what_was_asked_for(end_of: Callable[..., Job], cloud: StandIn) -> None:
    cloud.reset(credits=3)  # two pictures of 1.4 credits
    job = end_of("[[error]]", num_images=4)
    assert job.error is not None and job.error.code == "provider_error"
    assert "2 of its pictures were asked for" in job.error.message
    assert len(cloud.submits) == 3


# Of several pictures some come: what was paid for is kept


def test_job_keeps_the_pictures_that_came_and_says_which_did_not(
    end_of: Callable[..., Job], cloud: StandIn, tmp_path: Path
) -> None:
    job = end_of("[[moderate=content]] [[only=41]]", num_images=3, seed=40)
    assert job.status is JobStatus.SUCCEEDED and job.result is not None
    assert [image.seed for image in job.result.images] == [40, 42]
    (failed,) = job.result.failed
    assert (failed.index, failed.seed, failed.code) == (1, 41, "moderated")
    assert len(cloud.submits) == 3 and job.result.cost_usd == pytest.approx(2 * 0.014)
    names = [f"{job.id}-{place}.png" for place in range(2)]
    assert [image.filename for image in job.result.images] == names == files(tmp_path)
    seeds = [
        metadata.read_request((tmp_path / "out" / name).read_bytes())["request"]["seed"]
        for name in names
    ]
    assert seeds == [40, 42]
    assert type(job.result).from_json(job.result.to_json()).failed == (failed,)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("[[error]]", "provider_error"),
        ("[[lost]]", "provider_lost"),
        ("[[picture=cut]]", "provider_error"),
        ("[[picture=html]]", "provider_error"),
        ("[[poll=foreign]]", "provider_error"),
    ],
)
def test_job_of_several_loses_no_neighbour_of_a_picture_that_fails(
    end_of: Callable[..., Job], cloud: StandIn, words: str, code: str
) -> None:
    job = end_of(f"{words} [[only=7]]", num_images=2)
    assert job.result is not None and [image.seed for image in job.result.images] == [8]
    assert [failed.code for failed in job.result.failed] == [code]
    assert len(cloud.submits) == 2


def test_job_of_several_leaves_no_file_of_a_run_that_was_not_committed_and_had_more(
    in_queue: Callable[..., Any], tmp_path: Path
) -> None:
    """The service was killed after it had put the files in place; now one does not come any more."""

    async def use(queue: QueueManager) -> Job:
        await queue.pause()
        request = cloud_request("[[moderate=content]] [[only=8]]", num_images=3)
        job = await queue.submit(request)
        for place in range(3):
            (tmp_path / "out" / f"{job.id}-{place}.png").write_bytes(b"of the first run")
        await queue.resume()
        return await queue.wait(job)

    job = in_queue(use)
    assert files(tmp_path) == [f"{job.id}-{place}.png" for place in range(2)]
    assert b"of the first run" not in [
        (tmp_path / "out" / name).read_bytes() for name in files(tmp_path)
    ]


def test_log_of_a_picture_that_fails_beside_others_has_not_the_prompt(
    end_of: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """BFL's words may quote the client's."""
    look, failing = bfl.Bfl.look, iter([True])

    async def quoting(self: bfl.Bfl, task: CloudTask) -> bfl.Look:
        if next(failing, False):
            raise bfl.CloudError("BFL failed over 'a secret garden'")
        return await look(self, task)

    monkeypatch.setattr(bfl.Bfl, "look", quoting)
    job = end_of("a secret garden", num_images=2)
    assert job.result is not None and "secret garden" in job.result.failed[0].message
    (said,) = [each for each in caplog.messages if "did not come" in each]
    assert "BFL failed over" in said and "secret garden" not in caplog.text


def test_job_of_several_is_asked_for_no_further_after_a_refusal(
    end_of: Callable[..., Job], cloud: StandIn, tmp_path: Path
) -> None:
    cloud.reset(credits=3)  # two pictures of 1.4 credits
    job = end_of("[[delay=0.3]]", num_images=4)
    assert job.result is not None and [image.seed for image in job.result.images] == [7, 8]
    assert [(each.index, each.code) for each in job.result.failed] == [
        (2, "provider_credits"),
        (3, "provider_credits"),
    ]
    assert len(cloud.submits) == 3 and job.result.cost_usd == pytest.approx(2 * 0.014)
    assert [row[1] for row in rows(tmp_path)] == ["taken", "taken", "refused"]


def test_job_of_several_is_paid_for_as_the_ledger_says(
    end_of: Callable[..., Job], cloud: StandIn, tmp_path: Path
) -> None:
    """One that nobody knows of counts as charged, and is not asked for again."""
    job = end_of("[[then=500]] [[only=8]]", num_images=2)
    assert job.result is not None and len(job.result.images) == 1
    assert "may have charged" in job.result.failed[0].message
    assert [row[1] for row in rows(tmp_path)] == ["taken", "unclear"]
    assert len(cloud.submits) == 2 and job.result.cost_usd == pytest.approx(2 * 0.014)
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as db:
        assert db.execute("SELECT images, cost_usd FROM usage").fetchall() == [
            (1, pytest.approx(2 * 0.014))
        ]


def test_job_of_several_over_a_stop_keeps_what_came_and_asks_for_nothing_twice(
    cloud: StandIn, tmp_path: Path
) -> None:
    async def in_loop() -> Job:
        async with cloud_queue(cloud, tmp_path) as queue:
            prompt = "[[then=500]] [[only=9]] [[delay=1]]"
            job = await queue.submit(cloud_request(prompt, num_images=4))
            await until(lambda: [row[1] for row in rows(tmp_path)][2:] == ["unclear"])
            drain_at_once(queue)
        async with cloud_queue(cloud, tmp_path) as queue:
            return await queue.wait(await queue.get(job.id))

    job = asyncio.run(in_loop())
    assert job.result is not None and [image.seed for image in job.result.images] == [7, 8]
    assert [failed.index for failed in job.result.failed] == [2, 3]
    assert len(cloud.submits) == 3


def test_job_of_several_that_is_cancelled_gives_its_turns_back(
    in_queue: Callable[..., Any], cloud: StandIn, tmp_path: Path
) -> None:
    async def use(queue: QueueManager) -> None:
        worker: Any = queue.workers[0]
        job = await queue.submit(cloud_request("[[never]]", num_images=3))
        await until(lambda: len(cloud.submits) == 3)
        await queue.cancel(job.id)
        await until(lambda: not worker.jobs)
        assert worker._cloud.turns._inside == set()

    in_queue(use)
    assert files(tmp_path) == []


# Coming back later


def test_job_429_is_asked_for_again_after_the_time_that_the_cloud_names(
    end_of: Callable[..., Job], cloud: StandIn, tmp_path: Path
) -> None:
    job = end_of("[[http=429:2]] [[retry-after=0]]")
    assert job.status is JobStatus.SUCCEEDED
    assert len(cloud.submits) == 3 and rows(tmp_path) == [(0, "taken", pytest.approx(0.014))]


def test_job_429_that_says_at_once_is_not_asked_for_without_a_pause(
    end_of: Callable[..., Job], cloud: StandIn
) -> None:
    job = end_of("[[http=429]] [[retry-after=0]]", settings={"bfl_poll_timeout": 1.0})
    assert job.error is not None and job.error.code == "provider_busy"
    assert 1 < len(cloud.submits) < 6


def test_job_429_for_longer_than_anybody_waits_is_busy(
    end_of: Callable[..., Job], cloud: StandIn
) -> None:
    job = end_of("[[http=429]] [[retry-after=9]]", settings={"bfl_poll_timeout": 1.0})
    assert job.error is not None and job.error.code == "provider_busy"
    assert len(cloud.submits) == 1


def test_job_retry_after_holds_those_behind(in_queue: Callable[..., Any], cloud: StandIn) -> None:
    async def use(queue: QueueManager) -> None:
        prompts = ["[[http=429:1]] [[retry-after=1]]", "second", "third"]
        jobs = [await queue.submit(cloud_request(prompt)) for prompt in prompts[:1]]
        await until(lambda: len(cloud.submits) == 1)
        jobs += [await queue.submit(cloud_request(prompt)) for prompt in prompts[1:]]
        await asyncio.gather(*(queue.wait(job) for job in jobs))
        assert [call["prompt"] for call in cloud.submits[:1]] == prompts[:1]
        assert sorted(call["prompt"] for call in cloud.submits[1:]) == sorted(prompts)

    in_queue(use)


def test_job_where_nobody_listens_fails_after_some_tries(
    end_of: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud_job, "PAUSE_SECONDS", 0.01)
    job = end_of(settings={"bfl_api_base": "http://127.0.0.1:9/v1"})
    assert job.error is not None and job.error.code == "provider_error"
    assert "nothing was sent or charged" in job.error.message
    assert [row[1] for row in rows(tmp_path)] == ["refused"]


# Several at once


def test_jobs_are_in_the_cloud_at_once_and_no_more_than_may_be(
    in_queue: Callable[..., Any], cloud: StandIn
) -> None:
    async def use(queue: QueueManager) -> None:
        jobs = [await queue.submit(cloud_request(f"[[never]] {i}")) for i in range(5)]
        await until(lambda: len(cloud.submits) == 3)
        assert len(queue.running_ids) == 3 and queue.waiting == 2
        fourth = await queue.get(jobs[3].id)
        assert queue.position(fourth) == 1
        await queue.cancel(jobs[0].id)
        await until(lambda: len(cloud.submits) == 4)
        asked = [call["prompt"][-1] for call in cloud.submits]
        assert (sorted(asked[:3]), asked[3]) == (list("012"), "3")
        for job in jobs:
            await queue.cancel(job.id)

    in_queue(use, bfl_concurrency=3)


def test_pictures_in_the_cloud_are_no_more_than_bfl_allows(
    in_queue: Callable[..., Any], cloud: StandIn
) -> None:
    async def use(queue: QueueManager) -> list[Job]:
        requests = [cloud_request(f"[[delay=0.3]] {i}", num_images=8) for i in range(4)]
        jobs = [await queue.submit(request) for request in requests]
        return list(await asyncio.gather(*(queue.wait(job) for job in jobs)))

    assert {job.status for job in in_queue(use)} == {JobStatus.SUCCEEDED}
    assert (
        len(cloud.submits) == 32
    )  # with 25 at once one would have been refused and asked for again


def test_jobs_wait_while_the_queue_is_paused(in_queue: Callable[..., Any], cloud: StandIn) -> None:
    async def use(queue: QueueManager) -> None:
        await queue.pause()
        job = await queue.submit(cloud_request())
        await asyncio.sleep(0.1)
        assert cloud.submits == [] and (await queue.get(job.id)).status is JobStatus.QUEUED
        await queue.resume()
        assert (await queue.wait(job)).status is JobStatus.SUCCEEDED

    in_queue(use)


# Cancelling


def test_cancel_of_a_running_job_waits_no_more(
    in_queue: Callable[..., Any], cloud: StandIn, tmp_path: Path
) -> None:
    async def use(queue: QueueManager) -> None:
        job = await queue.submit(cloud_request("[[never]]"))
        await until(lambda: len(cloud.submits) == 1)
        cancelled = await queue.cancel(job.id)
        assert cancelled.status is JobStatus.CANCELLED
        await until(lambda: not queue.workers[0].jobs)
        assert (await ended(queue, cloud_request("next"))).status is JobStatus.SUCCEEDED

    in_queue(use)
    assert [row[1] for row in rows(tmp_path)] == ["taken", "taken"]


def test_cancel_while_the_cloud_is_asked_keeps_what_it_answers(
    in_queue: Callable[..., Any], cloud: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is on its way: what it costs must be known although nobody wants the picture any more."""
    asked, go_on = asyncio.Event(), asyncio.Event()
    submit = bfl.Bfl.submit

    async def slow(self: bfl.Bfl, *given: Any) -> Any:
        asked.set()
        await go_on.wait()
        return await submit(self, *given)

    monkeypatch.setattr(bfl.Bfl, "submit", slow)

    async def use(queue: QueueManager) -> None:
        job = await queue.submit(cloud_request("[[never]]"))
        await asked.wait()
        await queue.cancel(job.id)
        await until(lambda: not queue.workers[0].jobs)
        go_on.set()

    in_queue(use)
    assert rows(tmp_path) == [(0, "taken", pytest.approx(0.014))]


@pytest.mark.parametrize("name", ["begin", "body_with"])
def test_cancel_before_the_request_has_left_costs_nothing(
    in_queue: Callable[..., Any],
    cloud: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """It is cancelled while its row is written, or while its pictures are read."""
    owner = CloudTasks if name == "begin" else cloud_pictures
    method, workers = getattr(owner, name), []

    async def begin(self: CloudTasks, *given: Any) -> Any:
        asked = await method(self, *given)
        await workers[0].cancel(given[0])
        return asked

    def body_with(*given: Any) -> Any:
        worker = workers[0]
        asyncio.run_coroutine_threadsafe(worker.cancel(worker.job_id), worker.loop).result()
        return method(*given)

    monkeypatch.setattr(owner, name, begin if name == "begin" else body_with)

    async def use(queue: QueueManager) -> None:
        worker: Any = queue.workers[0]
        worker.loop = asyncio.get_running_loop()
        workers.append(worker)
        job = await queue.wait(await queue.submit(cloud_request()))
        assert job.status is JobStatus.CANCELLED
        await until(lambda: not worker._cloud.asking)

    in_queue(use)
    assert cloud.calls == []
    assert [row[1] for row in rows(tmp_path)] in ([], ["refused"])


def test_cancel_before_a_job_has_begun_leaves_no_job_behind(
    in_queue: Callable[..., Any], cloud: StandIn
) -> None:
    async def use(queue: QueueManager) -> None:
        worker = queue.workers[0]
        await worker.run([("unknown", cloud_request().to_json())], is_alone=True)
        await worker.cancel("unknown")
        await until(lambda: not worker.jobs)

    in_queue(use)
    assert cloud.submits == []


# Over a stop


def test_job_of_an_earlier_start_is_looked_after_and_not_asked_for_again(
    cloud: StandIn, tmp_path: Path
) -> None:
    async def in_loop() -> Job:
        async with cloud_queue(cloud, tmp_path) as queue:
            job = await queue.submit(cloud_request("[[delay=1]]", num_images=2))
            await until(lambda: len(cloud.submits) == 2)
            await until(lambda: [row[1] for row in rows(tmp_path)] == ["taken", "taken"])
            drain_at_once(queue)
        async with cloud_queue(cloud, tmp_path) as queue:
            return await queue.wait(await queue.get(job.id))

    job = asyncio.run(in_loop())
    assert job.status is JobStatus.SUCCEEDED and len(cloud.submits) == 2
    assert job.attempts == 1  # a stop is no attempt that failed


def test_job_that_was_being_asked_for_is_not_asked_for_again(
    cloud: StandIn, tmp_path: Path
) -> None:
    """The service died between sending and the answer: the row says `asking`, and nobody knows more."""

    async def in_loop() -> Job:
        async with cloud_queue(cloud, tmp_path) as queue:
            await queue.pause()
            job = await queue.submit(cloud_request())
            await CloudTasks(queue.store, Chance().now, 0.0).begin(job.id, 0, 0.014)
        async with cloud_queue(cloud, tmp_path) as queue:
            await queue.resume()
            return await queue.wait(await queue.get(job.id))

    job = asyncio.run(in_loop())
    assert job.error is not None and job.error.code == "provider_error"
    assert "may have charged" in job.error.message and "retry" in job.error.message
    assert cloud.submits == []


def test_job_address_of_another_host_on_disk_gets_no_key(cloud: StandIn, tmp_path: Path) -> None:
    async def in_loop() -> Job:
        async with cloud_queue(cloud, tmp_path) as queue:
            await queue.pause()
            job = await queue.submit(cloud_request())
            tasks = CloudTasks(queue.store, Chance().now, 0.0)
            await tasks.begin(job.id, 0, 0.014)
            elsewhere = "https://bfl.example/v1/get_result?id=x"
            task = CloudTask(id="x", polling_url=elsewhere, cost_usd=None)
            await tasks.taken(job.id, 0, task)
        async with cloud_queue(cloud, tmp_path) as queue:
            await queue.resume()
            return await queue.wait(await queue.get(job.id))

    job = asyncio.run(in_loop())
    assert job.error is not None and "key is not sent there" in job.error.message
    assert cloud.calls == []


def test_stop_while_the_cloud_does_not_answer_leaves_it_unclear(
    cloud: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud_worker, "LEAVE_SECONDS", 0.2)

    async def in_loop() -> Job:
        async with cloud_queue(cloud, tmp_path) as queue:
            job = await queue.submit(cloud_request("[[then=hang]]"))
            await until(lambda: len(cloud.submits) == 1)
            drain_at_once(queue)
        assert [row[1] for row in rows(tmp_path)] == ["asking"]
        async with cloud_queue(cloud, tmp_path) as queue:
            return await queue.wait(await queue.get(job.id))

    job = asyncio.run(in_loop())
    assert job.error is not None and "may have charged" in job.error.message
    assert len(cloud.submits) == 1


def test_job_waits_for_a_store_that_refuses_before_it_asks(
    end_of: Callable[..., Job], cloud: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud_job, "STORE_PAUSE_SECONDS", 0.01)
    refusals = {"begin": 2, "taken": 2}

    def refusing(name: str) -> Callable[..., Any]:
        method = getattr(CloudTasks, name)

        async def change(self: CloudTasks, *given: Any) -> Any:
            if refusals[name]:
                refusals[name] -= 1
                raise StorageUnavailable("the disk is full")
            return await method(self, *given)

        return change

    for name in refusals:
        monkeypatch.setattr(CloudTasks, name, refusing(name))
    assert end_of().status is JobStatus.SUCCEEDED
    assert set(refusals.values()) == {0} and len(cloud.submits) == 1


def test_job_for_a_lane_without_a_worker_is_refused(in_queue: Callable[..., Any]) -> None:
    async def use(queue: QueueManager) -> None:
        with pytest.raises(Unavailable, match="worker of this machine"):
            await queue.submit(cloud_request(backend="flux", model="embedded"))

    in_queue(use)


def test_key_is_nowhere_in_the_database(end_of: Callable[..., Job], tmp_path: Path) -> None:
    end_of("[[http=401]]")
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.glob("jobs.sqlite3*"))


# Money


@pytest.mark.usefixtures("one_day")
def test_budget_of_the_day_that_is_spent_asks_for_nothing(
    end_of: Callable[..., Job], cloud: StandIn
) -> None:
    settings = {"bfl_daily_budget_usd": 0.03}
    assert end_of(settings=settings).status is JobStatus.SUCCEEDED
    assert end_of(settings=settings).status is JobStatus.SUCCEEDED
    job = end_of(settings=settings)
    assert job.error is not None and job.error.code == "provider_budget"
    assert "FLUX_BFL_DAILY_BUDGET_USD" in job.error.message and "$0.028" in job.error.message
    assert len(cloud.submits) == 2


@pytest.mark.usefixtures("one_day")
def test_budget_counts_what_is_unclear_and_not_what_was_refused(
    end_of: Callable[..., Job], cloud: StandIn
) -> None:
    settings = {"bfl_daily_budget_usd": 0.02}
    end_of("[[moderate=request]]", settings=settings)
    end_of("[[http=402]]", settings=settings)
    end_of("[[then=500]]", settings=settings)
    job = end_of(settings=settings)
    assert job.error is not None and job.error.code == "provider_budget"


def test_budget_begins_anew_with_the_day(cloud: StandIn, tmp_path: Path) -> None:
    moment = datetime(2026, 1, 31, 23, 59, 50, tzinfo=UTC)

    async def in_loop() -> None:
        async with cloud_queue(cloud, tmp_path) as queue:
            await queue.pause()
            ids = [(await queue.submit(cloud_request())).id for _ in range(3)]
            tasks = CloudTasks(queue.store, lambda: moment, 0.02)
            await tasks.begin(ids[0], 0, 0.014)
            with pytest.raises(BudgetSpent) as caught:
                await tasks.begin(ids[1], 0, 0.014)
            assert caught.value.retry_after_seconds == 10
            assert await tasks.of_job(ids[1]) == []
            tomorrow = CloudTasks(queue.store, lambda: moment.replace(day=30), 0.02)
            _, may_be_asked = await tomorrow.begin(ids[2], 0, 0.014)
            assert may_be_asked and await tomorrow.spent_usd() == pytest.approx(0.014)

    asyncio.run(in_loop())


def test_task_is_begun_once(cloud: StandIn, tmp_path: Path) -> None:
    async def in_loop() -> list[bool]:
        async with cloud_queue(cloud, tmp_path) as queue:
            await queue.pause()
            job = await queue.submit(cloud_request())
            tasks = CloudTasks(queue.store, Chance().now, 0.0)
            many = await asyncio.gather(*(tasks.begin(job.id, 0, 0.01) for _ in range(20)))
            await tasks.ended(job.id, 0, Asked.REFUSED)
            again = await tasks.begin(job.id, 0, 0.01)
            await tasks.ended(job.id, 0, Asked.UNCLEAR)
            never = await tasks.begin(job.id, 0, 0.01)
            return [sum(may for _, may in many) == 1, again[1], never[1]]

    assert asyncio.run(in_loop()) == [True, True, False]


# What others see


def test_cloud_has_all_of_a_workers_face(in_queue: Callable[..., Any]) -> None:
    """What the dispatcher and the routes may ask of a worker they may ask of the cloud."""

    async def use(queue: QueueManager) -> list[str]:
        settings, default = queue._settings, DefaultModel("embedded", "for a test")
        worker = Worker(WorkerSlot(name="cpu"), profile_of("bf16"), settings, default, queue)
        face = {*vars(worker), *dir(Worker)} - {"send"}  # into its own process
        return [name for name in face if name[0] != "_" and not hasattr(queue.workers[0], name)]

    assert in_queue(use) == []


def test_progress_is_told_in_hundredths(in_queue: Callable[..., Any], cloud: StandIn) -> None:
    async def use(queue: QueueManager) -> list[tuple[str, Any]]:
        with queue.bus.listening(None) as heard:
            job = await queue.submit(cloud_request("[[status=Generating]] [[delay=0.2]]"))
            await queue.wait(job)
            return [(event.name, event.data) for event in heard.take() if event.job_id == job.id]

    seen = in_queue(use)
    names = [name for name, _ in seen]
    assert names[0] == "queued" and names[-1] == "succeeded" and "started" in names
    (progress,) = [data for name, data in seen if name == "progress"]
    assert progress["step"] <= progress["steps"] == 100


def test_result_is_read_back_with_its_cost(end_of: Callable[..., Job]) -> None:
    job = end_of()
    assert job.result is not None
    again = type(job.result).from_json(json.loads(json.dumps(job.result.to_json())))
    assert again == replace(job.result, timings_ms=dict(job.result.timings_ms))
