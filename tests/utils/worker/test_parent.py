"""Workers that fail, die and never come up: the service answers, and the line goes on."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from config.catalog import DefaultModel
from config.settings import ROOT, load_settings
from models.precision import profile_of
from tests.engines import SECRET
from tests.service import ENGINE_MAIN, START_SECONDS, RunningService
from utils.gpu_manager import WorkerSlot
from utils.worker.parent import Death, Worker

Start = Callable[..., RunningService]


def health(service: RunningService) -> dict:
    return service.client.get("/health").json()


def kill_worker(service: RunningService) -> int:
    """`kill -9` of the one worker; returns the pid it had."""
    (worker,) = service.workers()
    os.kill(worker["pid"], signal.SIGKILL)
    return worker["pid"]


def wait_for_death(service: RunningService, number: int = 1) -> dict:
    service.wait_until(lambda: deaths(service) >= number)
    return health(service)["workers"][0]


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service on the stand-in model whose worker may be killed."""
    running = RunningService(
        tmp_path_factory.mktemp("mortal"), main=ENGINE_MAIN, TEST_ENGINE="scripted"
    ).start()
    yield running
    running.close()


def deaths(service: RunningService) -> int:
    return health(service)["workers"][0]["deaths_last_10_minutes"]


# A worker that dies


def test_worker_killed_while_idle_is_replaced(mortal: RunningService) -> None:
    mortal.wait_for_workers()
    before = deaths(mortal)
    pid = kill_worker(mortal)
    worker = wait_for_death(mortal, before + 1)
    assert worker["pid"] != pid
    assert "SIGKILL" in worker["last_death"]
    assert health(mortal)["status"] == "ok"
    mortal.wait_for_workers()
    assert mortal.workers()[0]["pid"] != pid
    assert mortal.generate().status_code == 200


def test_worker_killed_while_drawing_keeps_the_jobs_place(mortal: RunningService) -> None:
    first = mortal.submit("kill-once place")
    behind = [mortal.submit() for _ in range(3)]
    jobs = [mortal.wait_for_job(job_id) for job_id in (first, *behind)]
    assert [job["attempts"] for job in jobs] == [2, 1, 1, 1]
    started = [job["started_at"] for job in jobs]
    assert started == sorted(started)


def test_worker_that_loses_its_cuda_context_is_replaced(mortal: RunningService) -> None:
    """Exit status 70: no later call may see the error. The client that waits sees nothing of it."""
    answer = mortal.generate(prompt="cuda-once context", seed=4)
    assert (answer.status_code, answer.json()["seed"]) == (200, 4)
    assert mortal.job(answer.json()["id"])["attempts"] == 2
    assert "70" in health(mortal)["workers"][0]["last_death"]


def test_worker_that_died_thrice_and_draws_again_is_ready(mortal: RunningService) -> None:
    """`/health` is 200 while the service can serve, whatever was before."""
    mortal.wait_for_workers()
    while (before := deaths(mortal)) < 3:
        kill_worker(mortal)
        wait_for_death(mortal, before + 1)
        mortal.wait_for_workers()
    assert mortal.generate().status_code == 200
    for path in ("/health", "/health/ready"):
        assert mortal.client.get(path).status_code == 200


@pytest.fixture(scope="module")
def dying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service whose worker ends whenever it starts, after the third death."""
    running = RunningService(
        tmp_path_factory.mktemp("dying"), main=ENGINE_MAIN, TEST_ENGINE="exits_at_start"
    ).start()
    running.wait_until(
        lambda: running.client.get("/health/ready").status_code == 503, START_SECONDS
    )
    yield running
    running.close()


def test_worker_that_never_comes_up_makes_the_service_unready(dying: RunningService) -> None:
    for path in ("/health/ready", "/health"):
        answer = dying.client.get(path)
        assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
        assert "exit status 3" in answer.json()["reason"]
        assert int(answer.headers["Retry-After"]) >= 1
    assert deaths(dying) >= 3
    assert dying.client.get("/health/live").status_code == 200
    assert dying.client.get("/images").json()["images"] == []
    job_id = dying.submit()
    assert dying.job(job_id)["status"] == "queued"
    assert dying.client.post("/load-model").status_code == 503


def test_generate_while_no_worker_comes_up_is_503(dying: RunningService) -> None:
    """Nobody can say when it would be drawn; a client must not wait for that."""
    answer = dying.client.post("/generate", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert int(answer.headers["Retry-After"]) >= 1


def test_worker_that_does_not_start_in_time_is_replaced(
    start_engine: Start, tmp_path: Path
) -> None:
    service = start_engine(
        wait_for_workers=False,
        TEST_ENGINE="waits_at_start",
        TEST_GATE=str(tmp_path / "never"),
        FLUX_START_TIMEOUT_SECONDS="0.1",
    )
    assert "SIGKILL" in wait_for_death(service)["last_death"]


class Ignores:
    """A listener that does nothing."""

    async def on_event(self, worker: Worker, event: Any) -> None: ...

    async def on_death(self, worker: Worker, death: Death) -> None: ...


def test_worker_stopped_while_its_process_is_made_stops() -> None:
    async def scenario() -> None:
        profile = replace(profile_of("bf16"), loader="tests.engines:scripted")
        slot = WorkerSlot(name="cpu")
        default = DefaultModel("embedded", "no GPU")
        worker = Worker(slot, profile, load_settings("bf16", {}), default, Ignores())
        worker.start()
        await asyncio.sleep(0)  # the supervisor begins to make the process
        try:
            async with asyncio.timeout(START_SECONDS):
                await worker.stop()
        finally:
            if worker.pid is not None and psutil.pid_exists(worker.pid):
                os.kill(worker.pid, signal.SIGKILL)

    asyncio.run(scenario())


# A job that fails, in a worker that lives on


def ended(service: RunningService, prompt: str, **body) -> dict:
    """The job when it has ended; the worker must be the same one, and at work again."""
    (before,) = service.workers()
    job = service.wait_for_job(service.submit(prompt, **body))
    assert service.generate(width=128, height=128).status_code == 200
    (after,) = service.workers()
    assert after["pid"] == before["pid"] and after["deaths_last_10_minutes"] == 0
    assert not [name for name in service.files() if job["id"] in name or ".staging" in name]
    return job


def test_job_out_of_memory_fails_as_oom(engine_service: RunningService) -> None:
    job = ended(engine_service, "oom", width=512, height=512)
    assert (job["status"], job["error"]["code"]) == ("failed", "oom")
    assert "512x512" in job["error"]["message"] and SECRET not in job["error"]["message"]


def test_job_after_out_of_memory_that_is_small_is_drawn(engine_service: RunningService) -> None:
    ended(engine_service, "oom", width=512)
    job_id = engine_service.submit("oom", width=128)
    assert engine_service.wait_for_job(job_id)["status"] == "succeeded"


def test_job_whose_engine_raises_fails_without_its_words(engine_service: RunningService) -> None:
    job = ended(engine_service, "raise")
    assert (job["status"], job["error"]["code"]) == ("failed", "internal")
    assert SECRET not in job["error"]["message"]
    assert SECRET in engine_service.log_path.read_text()


def test_job_whose_disk_is_full_fails_as_storage(engine_service: RunningService) -> None:
    job = ended(engine_service, "full")
    assert (job["status"], job["error"]["code"]) == ("failed", "storage")


def test_job_whose_second_picture_fails_leaves_nothing(engine_service: RunningService) -> None:
    job_id = engine_service.submit("raise-late", num_images=2)
    assert engine_service.wait_for_job(job_id)["status"] == "failed"
    assert not [name for name in engine_service.files() if job_id in name]


def test_job_whose_engine_raises_an_oserror_is_no_storage_fault(
    engine_service: RunningService,
) -> None:
    """Nothing was written yet: a model that fails is the model's failure."""
    job = ended(engine_service, "oserror")
    assert (job["status"], job["error"]["code"]) == ("failed", "internal")
    assert "None" not in job["error"]["message"]


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [("raise", 500, "internal"), ("oom", 500, "oom"), ("full", 503, "storage")],
)
def test_generate_of_a_failing_job_answers_its_code(
    engine_service: RunningService, prompt: str, status: int, code: str
) -> None:
    answer = engine_service.generate(prompt=prompt, width=256, height=256)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert SECRET not in answer.text and str(ROOT) not in answer.text
    assert "Traceback" not in answer.text


def test_worker_answers_after_every_failure_with_a_right_picture(
    engine_service: RunningService,
) -> None:
    before = engine_service.generate(seed=1).json()["image"]
    for prompt in ("raise", "oom", "full", "oserror"):
        engine_service.wait_for_job(engine_service.submit(prompt, width=256))
    after = engine_service.generate(seed=1).json()["image"]
    assert base64.b64decode(before) == base64.b64decode(after)
