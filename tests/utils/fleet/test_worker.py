"""A replica with a worker's face: its answers come from a stand-in for the way to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from config.catalog import DefaultModel
from config.settings import load_settings
from models.types import GenerationResult, ImageFile
from tests.utils.fleet.test_replica import REQUEST
from utils.fleet import messages
from utils.fleet import worker as module
from utils.fleet.link import ReplicaRefused
from utils.fleet.worker import FleetWorker
from utils.worker import events
from utils.worker.parent import Death, WorkerState

HELLO = messages.Hello(
    replica="r1", node="studio", slot="gpu0", precision="bf16", resources=["bf16"],
    models={"embedded": 1.0}, reasons={}, memory_gib=8.0,
)  # fmt: skip
JOBS = [(name, REQUEST.to_json()) for name in ("job1", "job2")]


class Link:
    """Says what it is given to say, or raises it, or waits for it."""

    def __init__(self) -> None:
        self.says: list[Any] = []
        self.asked: list[dict[str, Any]] = []

    async def run(self, requests: dict[str, Any]) -> AsyncIterator[Any]:
        self.asked.append(requests)
        for each in self.says:
            if isinstance(each, BaseException):
                raise each
            if isinstance(each, asyncio.Event):
                await each.wait()
            yield each

    async def tell(self, message: Any) -> None: ...


class Files:
    async def provide(self, *_: Any) -> None: ...


class Listener:
    def __init__(self) -> None:
        self.events: list[Any] = []
        self.refused: list[str] = []
        self.deaths: list[Death] = []

    async def on_event(self, worker: Any, event: Any) -> None:
        self.events.append(event)

    async def on_refused(self, worker: Any, job_id: str, why: str) -> None:
        self.refused.append(job_id)

    async def on_death(self, worker: Any, death: Death) -> None:
        self.deaths.append(death)

    async def on_gone(self, worker: Any) -> None: ...


class Here:
    """A worker that is up, and all around it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.link, self.listener = Link(), Listener()
        self.lines: asyncio.Queue[str] = asyncio.Queue()
        self.worker = FleetWorker(
            HELLO, self.link, self._heard(), Files(), load_settings("fleet"),
            DefaultModel("embedded", "a test"), self.listener, lambda: None, lambda: self.now,
        )  # type: ignore[arg-type]  # fmt: skip
        self.worker.state = WorkerState.IDLE
        self.worker.start()

    async def _heard(self) -> AsyncIterator[str]:
        while True:
            yield await self.lines.get()

    def hear(self, message: Any) -> None:
        self.lines.put_nowait(messages.encode(message))

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0)

    def ends(self) -> dict[str, str]:
        """How each job ended: the event, or a failure's code."""
        kinds = (events.Finished, events.Failed, events.WasCancelled)
        ended = [each for each in self.listener.events if isinstance(each, kinds)]
        return {each.job_id: getattr(each, "code", type(each).__name__) for each in ended}


def finished(job_id: str) -> events.Finished:
    picture = ImageFile(filename=f"{job_id}-0.png", seed=7, width=8, height=8, size_bytes=3)
    result = GenerationResult(
        images=(picture,), engine="e", precision="bf16", device="d", timings_ms={}
    )
    return events.Finished(job_id=job_id, model="embedded", result=result.to_json())


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Here], Coroutine[Any, Any, None]]], None]:
    (tmp_path / "pictures").mkdir()
    monkeypatch.setenv("FLUX_OUTPUT_DIR", str(tmp_path / "pictures"))
    monkeypatch.setenv("FLUX_DATA_DIR", str(tmp_path / "data"))

    def whole(test: Callable[[Here], Coroutine[Any, Any, None]]) -> None:
        async def inside() -> None:
            here = Here()
            try:
                await test(here)
            finally:
                await here.worker.stop()

        asyncio.run(inside())

    return whole


def test_worker_refused_jobs_go_back_and_it_is_left_alone_for_longer_each_time(run: Any) -> None:
    async def test(here: Here) -> None:
        here.link.says = [ReplicaRefused("its calls are taken")]
        for pause in (module.REFUSED_SECONDS, 2 * module.REFUSED_SECONDS):
            here.listener.refused.clear()
            await here.worker.run(JOBS, is_alone=False)
            await here.until(lambda: here.listener.refused == ["job1", "job2"])
            assert here.worker.state is WorkerState.IDLE and not here.worker.jobs
            here.now += pause - 0.01
            assert here.worker.stats().is_draining
            here.now += 0.02
            assert not here.worker.stats().is_draining

    run(test)


def test_worker_that_takes_a_job_again_is_left_alone_no_longer_than_at_first(run: Any) -> None:
    async def test(here: Here) -> None:
        async def drawn(*says: Any) -> None:
            here.link.says = list(says)
            await here.worker.run(JOBS[:1], is_alone=False)
            if "taken" in says:
                here.hear(finished("job1"))
            await here.until(lambda: not here.worker.jobs)

        for _ in range(3):
            await drawn(ReplicaRefused("its calls are taken"))
        await drawn("taken", "ended job1")
        await drawn(ReplicaRefused("its calls are taken"))
        here.now += module.REFUSED_SECONDS
        assert not here.worker.stats().is_draining

    run(test)


def test_worker_jobs_that_are_drawn_together_end_as_their_pictures_come(
    run: Any, tmp_path: Path
) -> None:
    async def test(here: Here) -> None:
        here.link.says = [
            "taken", ("job2-0.png", b"two", True), "ended job2",
            ("job1-0.png", b"o", False), ("job1-0.png", b"ne", True), "ended job1",
        ]  # fmt: skip
        await here.worker.run(JOBS, is_alone=False)
        assert [list(asked) for asked in here.link.asked] in ([], [["job1", "job2"]])
        for job_id in ("job1", "job2"):
            here.hear(finished(job_id))
        await here.until(lambda: len(here.ends()) == 2)
        assert set(here.ends().values()) == {"Finished"}
        staged = tmp_path / "pictures" / ".staging"
        assert (staged / "job1-0.png").read_bytes() == b"one"
        assert (staged / "job2-0.png").read_bytes() == b"two"

    run(test)


def test_worker_picture_that_cannot_be_written_fails_its_job_alone(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = module.images.stage

    def full(data: bytes, folder: Path, name: str) -> None:
        if name.startswith("job1"):
            raise OSError(28, "No space left on device")
        stage(data, folder, name)

    monkeypatch.setattr(module.images, "stage", full)

    async def test(here: Here) -> None:
        here.link.says = ["taken"]
        for job_id in ("job1", "job2"):
            here.link.says += [(f"{job_id}-0.png", b"x", True), f"ended {job_id}"]
        await here.worker.run(JOBS, is_alone=False)
        for job_id in ("job1", "job2"):
            here.hear(finished(job_id))
        await here.until(lambda: len(here.ends()) == 2)
        assert here.ends() == {"job1": "storage", "job2": "Finished"}

    run(test)


def test_worker_fault_that_nobody_expected_ends_its_jobs(run: Any) -> None:
    async def test(here: Here) -> None:
        here.link.says = ["taken", KeyError("a secret")]
        await here.worker.run(JOBS, is_alone=False)
        await here.until(lambda: len(here.ends()) == 2)
        assert set(here.ends().values()) == {"internal"}
        assert "a secret" not in json.dumps([str(each) for each in here.listener.events])

    run(test)


def test_worker_that_is_lost_gives_its_jobs_back(run: Any) -> None:
    async def test(here: Here) -> None:
        here.link.says = ["taken", asyncio.Event()]
        await here.worker.run(JOBS, is_alone=False)
        await here.until(lambda: here.link.asked)
        await here.worker.lose("Ray has ended")
        (death,) = here.listener.deaths
        assert [job.id for job in death.jobs] == ["job1", "job2"]
        assert (death.code, death.exit_text) == ("worker_lost", "Ray has ended")

    run(test)
