"""Pictures of the cloud and the safety checker: nothing that is flagged, or not looked at, is kept as it came."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from config.errors import ModelUnavailable
from config.settings import ModelSettings
from models.safety import Weights
from models.types import OutputFormat
from tests.cloud import StandIn, cloud_queue, cloud_request, ended
from tests.safety_weights import classifier
from tests.utils.test_cloud_worker import drain_at_once, files, rows, until
from utils import checker_process, cloud_worker, images, metadata
from utils.checker_process import CheckerProcess
from utils.job import Job, JobStatus

Draw = Callable[..., Job]
RED = (230, 10, 10)  # as the stand-in draws it


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("weights") / "judge")


@pytest.fixture(scope="module")
def process(weights: Path) -> Iterator[CheckerProcess]:
    """One for all of them: it takes seconds to read its libraries."""
    made = CheckerProcess(Weights(folder=weights, name="judge"), {"PATH": os.environ["PATH"]})
    yield made
    made.close()


@pytest.fixture
def shared(process: CheckerProcess, monkeypatch: pytest.MonkeyPatch) -> CheckerProcess:
    """Workers of the cloud take the one that is there, and leave it."""
    monkeypatch.setattr(cloud_worker, "CheckerProcess", lambda *_: process)
    monkeypatch.setattr(process, "close", lambda: None)
    return process


def settings(weights: Path, mode: str) -> ModelSettings:
    return ModelSettings(safety_checker=mode, safety_model=str(weights))


@pytest.fixture
def draw(cloud: StandIn, tmp_path: Path, weights: Path) -> Draw:
    def run(prompt: str, mode: str = "flag", **values: Any) -> Job:
        async def in_loop() -> Job:
            async with cloud_queue(cloud, tmp_path, models=settings(weights, mode)) as queue:
                return await asyncio.wait_for(ended(queue, cloud_request(prompt, **values)), 120)

        return asyncio.run(in_loop())

    return run


def picture_of(folder: Path, job: Job, place: int = 0) -> Image.Image:
    assert job.result is not None
    data = (folder / "out" / job.result.images[place].filename).read_bytes()
    return Image.open(io.BytesIO(data)).convert("RGB")


def has_letters(picture: Image.Image) -> bool:
    """Whether the white prompt on the red ground can be made out."""
    return picture.getchannel("G").getextrema()[1] > 150


@pytest.mark.parametrize("kind", list(OutputFormat))
def test_flagged_picture_of_the_cloud_is_stored_blurred(
    shared: CheckerProcess, draw: Draw, tmp_path: Path, kind: OutputFormat
) -> None:
    job = draw("[[red]] HELLO", output_format=kind)
    assert job.status is JobStatus.SUCCEEDED and job.result is not None, job.error
    (image,) = job.result.images
    assert image.nsfw_flagged is True and files(tmp_path) == [image.filename]
    picture = picture_of(tmp_path, job)
    assert picture.size == (64, 64) and not has_letters(picture)
    thumbnail = images.thumbnail(tmp_path / "out", image.filename)
    assert thumbnail is not None and not has_letters(Image.open(thumbnail).convert("RGB"))


def test_flagged_picture_of_the_cloud_says_so_in_its_file(
    shared: CheckerProcess, draw: Draw, tmp_path: Path
) -> None:
    job = draw("[[red]]")
    assert job.result is not None
    data = (tmp_path / "out" / job.result.images[0].filename).read_bytes()
    assert metadata.read_request(data)["nsfw_flagged"] is True


def test_other_picture_of_the_cloud_is_stored_as_it_came(
    shared: CheckerProcess, draw: Draw, tmp_path: Path
) -> None:
    job = draw("[[red]] [[only=99]] HELLO", seed=8)
    assert job.result is not None and job.result.images[0].nsfw_flagged is False
    assert has_letters(picture_of(tmp_path, job))


def test_of_several_pictures_of_the_cloud_each_is_looked_at(
    shared: CheckerProcess, draw: Draw
) -> None:
    job = draw("[[red]] [[only=9]]", num_images=2, seed=8)
    assert job.result is not None
    assert [image.nsfw_flagged for image in job.result.images] == [False, True]


def test_flagged_picture_of_the_cloud_is_not_stored_where_such_are_blocked(
    shared: CheckerProcess, draw: Draw, cloud: StandIn, tmp_path: Path
) -> None:
    job = draw("[[red]]", "block")
    assert job.error is not None and job.error.code == "nsfw_blocked"
    assert "FLUX_SAFETY_CHECKER is block" in job.error.message
    assert "may have charged" in job.error.message
    assert files(tmp_path) == [] and len(cloud.submits) == 1


def test_blocked_picture_takes_no_other_of_its_job_with_it(
    shared: CheckerProcess, draw: Draw, tmp_path: Path
) -> None:
    job = draw("[[red]] [[only=7]]", "block", num_images=2)
    assert job.result is not None and [image.seed for image in job.result.images] == [8]
    assert [(failed.seed, failed.code) for failed in job.result.failed] == [(7, "nsfw_blocked")]
    assert files(tmp_path) == [f"{job.id}-0.png"]


# Faults: nothing is kept that nobody has looked at


def test_checker_that_dies_while_it_looks_lets_nothing_through(
    shared: CheckerProcess, draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(picture: Any) -> bool:
        raise ModelUnavailable("the safety checker judge could not look at the picture: killed")

    monkeypatch.setattr(shared, "is_flagged", dying)
    job = draw("a balloon")
    assert job.error is not None and job.error.code == "model_unavailable"
    assert "could not look" in job.error.message and "may have charged" in job.error.message
    assert files(tmp_path) == []


def test_checker_that_fails_in_a_way_nobody_expected_lets_nothing_through(
    shared: CheckerProcess, draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(picture: Any) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(shared, "is_flagged", wrong)
    job = draw("a balloon")
    assert job.error is not None and job.error.code == "internal"
    assert files(tmp_path) == []


@pytest.mark.parametrize("mode", ["flag", "block"])
def test_checker_that_cannot_be_read_is_said_before_anything_is_paid(
    draw: Draw, cloud: StandIn, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:  # fmt: skip

    def damaged(self: CheckerProcess) -> None:
        raise ModelUnavailable("the safety checker judge cannot be loaded: damaged")

    monkeypatch.setattr(CheckerProcess, "prepare", damaged)
    job = draw("a balloon", mode)
    assert job.error is not None and "cannot be loaded" in job.error.message
    assert cloud.submits == [] and rows(tmp_path) == []


def test_no_weights_where_flagged_pictures_are_blocked_asks_for_nothing(
    cloud: StandIn, tmp_path: Path
) -> None:
    models = ModelSettings(safety_checker="block", models_dir=tmp_path / "models")

    async def in_loop() -> Job:
        async with cloud_queue(cloud, tmp_path, models=models) as queue:
            return await ended(queue, cloud_request())

    job = asyncio.run(in_loop())
    assert job.error is not None and job.error.code == "model_unavailable"
    assert "download_models --safety-checker" in job.error.message
    assert cloud.submits == [] and files(tmp_path) == []


def test_checker_that_is_named_and_gone_asks_for_nothing(cloud: StandIn, tmp_path: Path) -> None:
    async def in_loop() -> Job:
        models = settings(tmp_path / "gone", "flag")
        async with cloud_queue(cloud, tmp_path, models=models) as queue:
            return await ended(queue, cloud_request())

    job = asyncio.run(in_loop())
    assert job.error is not None and "weights of the safety checker are gone" in job.error.message
    assert cloud.submits == [] and files(tmp_path) == []


def test_no_weights_means_that_nobody_looks_and_no_process(
    cloud: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud_worker, "CheckerProcess", None)
    (tmp_path / "models").mkdir()
    models = ModelSettings(models_dir=tmp_path / "models")

    async def in_loop() -> Job:
        async with cloud_queue(cloud, tmp_path, models=models) as queue:
            assert queue.workers[0].safety is None
            return await ended(queue, cloud_request("[[red]]"))

    job = asyncio.run(in_loop())
    assert job.result is not None and job.result.images[0].nsfw_flagged is None


def test_service_that_stops_while_a_picture_is_looked_at_keeps_nothing_and_goes_on_later(
    process: CheckerProcess, cloud: StandIn, tmp_path: Path, weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A checker that is at it is ended, not waited for."""
    there = 'print("{}", flush=True); '
    silent = f"import sys, time; {there}sys.stdin.buffer.readline(); {there}time.sleep(600)"

    async def in_loop() -> Job:
        with monkeypatch.context() as patched:
            patched.setattr(checker_process, "COMMAND", (sys.executable, "-S", "-c", silent))
            async with cloud_queue(cloud, tmp_path, models=settings(weights, "flag")) as queue:
                worker: Any = queue.workers[0]
                job = await queue.submit(cloud_request("[[red]]"))
                await until(worker._cloud.saving.locked)
                drain_at_once(queue)
            assert files(tmp_path) == [] and worker._checker.pid is None
        with monkeypatch.context() as patched:
            patched.setattr(cloud_worker, "CheckerProcess", lambda *_: process)
            patched.setattr(process, "close", lambda: None)
            async with cloud_queue(cloud, tmp_path, models=settings(weights, "flag")) as queue:
                return await queue.wait(await queue.get(job.id))

    job = asyncio.run(in_loop())
    assert job.result is not None and job.result.images[0].nsfw_flagged is True
    assert len(cloud.submits) == 1


def test_job_that_is_cancelled_while_its_picture_is_looked_at_leaves_no_file(
    shared: CheckerProcess, cloud: StandIn, tmp_path: Path, weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    looking, go_on = threading.Event(), threading.Event()

    def slow(picture: Any) -> bool:
        looking.set()
        go_on.wait(60)
        return False

    monkeypatch.setattr(shared, "is_flagged", slow)

    async def in_loop() -> None:
        async with cloud_queue(cloud, tmp_path, models=settings(weights, "flag")) as queue:
            job = await queue.submit(cloud_request("a balloon"))
            await until(looking.is_set)
            assert (await queue.cancel(job.id)).status is JobStatus.CANCELLED
            go_on.set()
            await until(lambda: not queue.workers[0].jobs)

    asyncio.run(in_loop())
    assert files(tmp_path) == []
