"""The queue on a real model: jobs drawn together, a model that is given back, one spread over two devices."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator

import psutil
import pytest
from PIL import Image

from tests.faults.handles import paused, picture
from tests.faults.listener import Told, is_in_order, listen
from tests.service import RunningService

# Whether jobs go together depends on how long each took.
alone = pytest.mark.timing

MIB = 2**20
TOGETHER = 4
BODY = {"prompt": "a red balloon", "width": 128, "height": 128, "num_inference_steps": 4}
# What the embedded model's weights are at least; a process that gave them back is smaller by this.
WEIGHTS_MIB = 20


def drawn_together(service: RunningService, *bodies: dict) -> list[dict]:
    """Jobs that waited while the queue was paused, at their end."""
    with paused(service):
        job_ids = [service.submit(**body) for body in bodies]
    return [service.wait_for_job(job_id) for job_id in job_ids]


def batches(jobs: list[dict]) -> set[str]:
    """Jobs of one batch were begun in one change, at one time."""
    return {job["started_at"] for job in jobs}


# Batches


@pytest.fixture(scope="module")
def measured(service: RunningService) -> RunningService:
    """A service that has drawn one job alone: it knows what a batch is compared with."""
    service.wait_for_job(service.submit(**BODY, seed=99))
    return service


@pytest.fixture(scope="module")
def batch(measured: RunningService) -> list[dict]:
    return drawn_together(measured, *({**BODY, "seed": i} for i in range(TOGETHER)))


@alone
def test_like_jobs_at_the_head_of_the_line_are_drawn_together(batch: list[dict]) -> None:
    assert [job["status"] for job in batch] == ["succeeded"] * TOGETHER
    assert len(batches(batch)) == 1


@alone
def test_jobs_drawn_together_have_the_bytes_of_jobs_drawn_alone(
    batch: list[dict], measured: RunningService
) -> None:
    for number, job in enumerate(batch):
        alone = measured.wait_for_job(measured.submit(**BODY, seed=number))
        assert picture(measured, job["id"]) == picture(measured, alone["id"])


@pytest.mark.parametrize(
    "other",
    [{"width": 144}, {"height": 144}, {"num_inference_steps": 3}, {"true_cfg_scale": 2.0}],
    ids=lambda other: next(iter(other)),
)
def test_unlike_jobs_are_not_drawn_together(measured: RunningService, other: dict) -> None:
    jobs = drawn_together(measured, BODY, {**BODY, "negative_prompt": "blue", **other}, BODY)
    assert [job["status"] for job in jobs] == ["succeeded"] * 3
    assert len(batches(jobs)) == 3


@alone
def test_job_drawn_with_others_can_be_cancelled_alone(measured: RunningService) -> None:
    with paused(measured):
        job_ids = [measured.submit(**{**BODY, "num_inference_steps": 60}) for _ in range(3)]
    measured.wait_until(lambda: is_at_step(measured.job(job_ids[1]), 1), pause_seconds=0.01)
    measured.client.post(f"/jobs/{job_ids[1]}/cancel")
    found = [measured.wait_for_job(job_id)["status"] for job_id in job_ids]
    assert found == ["succeeded", "cancelled", "succeeded"]


# A model that is given back


def model_status(service: RunningService) -> dict:
    (worker,) = service.client.get("/model-status").json()["workers"]
    return worker


def worker_mib(service: RunningService) -> float:
    (worker,) = service.workers()
    return psutil.Process(worker["pid"]).memory_info().rss / MIB


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service whose model is spread over two devices, and is given back after a second of rest."""
    running = RunningService(
        tmp_path_factory.mktemp("split"),
        FLUX_GPU_MODE="split",
        FLUX_FAKE_GPUS="2",
        FLUX_IDLE_UNLOAD_SECONDS="1",
    ).start()
    try:
        running.wait_for_workers()
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def idle(split: RunningService) -> dict:
    """Memory with the model and after it was given back, and the way of the job that came then."""
    first = split.submit(**BODY, seed=5)
    split.wait_for_job(first)
    busy = split.submit(**{**BODY, "num_inference_steps": 100})
    split.wait_until(lambda: is_at_step(split.job(busy), 1), pause_seconds=0.01)
    with_model = worker_mib(split)  # before the second of rest has begun
    split.client.post(f"/jobs/{busy}/cancel")
    pid = split.workers()[0]["pid"]
    split.wait_until(lambda: model_status(split)["model"] is None)
    split.wait_until(lambda: with_model - worker_mib(split) > WEIGHTS_MIB, what="keeps the memory")
    without = worker_mib(split)
    with paused(split):
        second = split.submit(**BODY, seed=5)
        listener = listen(split, second)
    with listener:
        events: list[Told] = listener.wait_for_end()
    return {
        "given_back": with_model - without,
        "events": events,
        "same_worker": split.workers()[0]["pid"] == pid,
        "pictures": [picture(split, job_id) for job_id in (first, second)],
    }


def test_idle_worker_gives_its_models_memory_back(idle: dict) -> None:
    assert idle["given_back"] > WEIGHTS_MIB


def test_job_after_that_loads_again_and_says_so(idle: dict) -> None:
    names = [event.name for event in idle["events"]]
    assert is_in_order(names) and "loading" in names


def test_job_after_that_is_drawn_by_the_same_worker(idle: dict) -> None:
    assert idle["same_worker"]


def test_job_after_that_has_the_same_bytes(idle: dict) -> None:
    assert idle["pictures"][0] == idle["pictures"][1]


def test_unload_gives_the_model_back_at_once(measured: RunningService) -> None:
    measured.wait_for_job(measured.submit(**BODY))
    measured.wait_for_workers()
    assert model_status(measured)["model"] is not None
    answer = measured.client.post("/unload-model").json()
    assert answer["unloaded"] is True and model_status(measured)["model"] is None


# A worker that dies


def is_at_step(job: dict, step: int) -> bool:
    return job["status"] == "succeeded" or (job["progress"] or {}).get("step", 0) >= step


def test_worker_killed_while_drawing_draws_again_with_equal_bytes(
    split: RunningService, measured: RunningService
) -> None:
    """Also to the pixels of another service, whose worker did not die."""
    body = {**BODY, "seed": 11, "num_inference_steps": 20, "num_images": 2}
    for _ in range(20):  # until one is seen before its end
        job_id = split.submit(**body)
        split.wait_until(lambda id=job_id: is_at_step(split.job(id), 3), pause_seconds=0.01)
        if split.job(job_id)["status"] == "running":
            os.kill(split.workers()[0]["pid"], signal.SIGKILL)
        job = split.wait_for_job(job_id)
        if job["attempts"] == 2:
            break
    assert (job["status"], job["attempts"]) == ("succeeded", 2)
    assert job["request"]["seed"] == 11
    assert len([name for name in split.files() if job_id in name]) == 2
    alike, other = (each.wait_for_job(each.submit(**body)) for each in (split, measured))
    assert pictures(split, job) == pictures(split, alike)
    assert pixels(split, job) == pixels(measured, other)


# Spread over two devices


def pictures(service: RunningService, job: dict) -> list[bytes]:
    images = job["result"]["images"]
    return [service.client.get(image["image_url"]).content for image in images]


def pixels(service: RunningService, job: dict) -> list[bytes]:
    """Without the texts in the files, which tell the service's settings."""
    files = pictures(service, job)
    return [Image.open(io.BytesIO(content)).tobytes() for content in files]


def test_split_over_two_devices_draws_the_bytes_of_one(
    split: RunningService, measured: RunningService
) -> None:
    assert [each["name"] for each in split.workers()] == ["cpu0+cpu1"]
    body = {**BODY, "negative_prompt": "blue", "true_cfg_scale": 2.0, "seed": 3, "num_images": 2}
    jobs = [each.wait_for_job(each.submit(**body)) for each in (split, measured)]
    assert [job["status"] for job in jobs] == ["succeeded"] * 2
    one, two = (pixels(*each) for each in zip((split, measured), jobs, strict=True))
    assert one == two
