"""A replica by itself, without Ray: its worker is real, with the stand-in model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleet.replica import Profile, ReplicaStats
from fleet.wanted import Wanted
from models.types import GenerationRequest, OutputFormat
from tests.fleet_replica import ScriptedReplica
from tests.service import START_SECONDS
from utils.fleet import messages
from utils.worker import events

REQUEST = GenerationRequest(
    prompt="a cat", negative_prompt=None, model="embedded", backend="flux", width=128, height=128,
    num_inference_steps=2, guidance_scale=0.0, true_cfg_scale=1.0, seed=7, num_images=2,
    output_format=OutputFormat.PNG, output_quality=95, tags=(),
)  # fmt: skip


class Alone(ScriptedReplica):
    """One that no Ray knows of."""

    def _own_id(self) -> str:
        return "alone"

    async def end(self) -> None:
        await self._sleep()
        if self._worker is not None:
            await self._worker.stop()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in {
        "DATA_DIR": tmp_path / "data", "MODELS_DIR": tmp_path / "models", "FAKE_GPUS": 2,
        "FLEET_NODE": "studio", "MIN_FREE_MIB": 0, "ALLOW_DOWNLOAD": "false",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"FLUX_{name}", str(value))
    return monkeypatch


def json_of(request: GenerationRequest) -> str:
    return json.dumps(request.to_json())


class Watch:
    """A front door that listens."""

    def __init__(self, replica: Alone, door: str = "door") -> None:
        self._lines: AsyncIterator[str] = replica.watch(door, to="alone")

    async def next(self) -> Any:
        return messages.decode(await anext(self._lines))

    async def until(self, kind: type) -> Any:
        while not isinstance(message := await self.next(), kind):
            pass
        return message

    async def close(self) -> None:
        await self._lines.aclose()


def run(test: Callable[[Alone, Watch], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        replica = Alone("bf16")
        watch = Watch(replica)
        try:
            async with asyncio.timeout(START_SECONDS):
                await test(replica, watch)
        finally:
            await watch.close()
            for job in replica._jobs.values():
                job.end()
            await replica.end()

    asyncio.run(whole())


def test_replica_says_first_what_it_is(settings: Any) -> None:
    async def test(replica: Alone, watch: Watch) -> None:
        hello = await watch.next()
        assert isinstance(hello, messages.Hello)
        assert (hello.replica, hello.node, hello.slot) == ("alone", "studio", "cpu0")
        assert hello.precision == "bf16" and hello.resources == ["bf16"]
        assert "embedded" in hello.models and hello.models["embedded"] <= hello.memory_gib
        assert "GPU" in hello.reasons["flux-dev"]
        await watch.until(events.Ready)

    run(test)


def test_replica_gives_the_pictures_of_a_job_and_keeps_none(settings: Any, tmp_path: Path) -> None:
    async def test(replica: Alone, watch: Watch) -> None:
        await watch.until(events.Ready)
        said = [each async for each in replica.run("job1", json_of(REQUEST))]
        finished = await watch.until(events.Finished)
        names = [image["filename"] for image in finished.result["images"]]
        assert said[0] == "taken"
        assert [(name, is_last) for name, _, is_last in said[1:]] == [(n, True) for n in names]
        assert all(part.startswith(b"\x89PNG") for _, part, _ in said[1:])
        staging = tmp_path / "data" / "fleet" / "studio" / "pictures" / ".staging"
        assert list(staging.iterdir()) == []

    run(test)


def test_replica_that_sleeps_has_no_worker_until_it_is_woken(settings: Any) -> None:
    async def test(replica: Alone, watch: Watch) -> None:
        await watch.until(events.Ready)
        await replica.tell(messages.encode(messages.Sleep()), to="alone")
        await watch.until(messages.Asleep)
        said = [each async for each in replica.run("job1", json_of(REQUEST))]
        assert said == ["refused: the worker is asleep"]
        await replica.tell(messages.encode(messages.Wake()), to="alone")
        await watch.until(events.Ready)

    run(test)


def test_replica_with_a_job_does_not_fall_asleep(settings: Any, tmp_path: Path) -> None:
    async def test(replica: Alone, watch: Watch) -> None:
        await watch.until(events.Ready)
        stream = replica.run("job1", json_of(replace(REQUEST, prompt="hold free")))
        assert await anext(stream) == "taken"
        await replica.tell(messages.encode(messages.Sleep()), to="alone")
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / "free").touch()
        assert len([each async for each in stream]) == 2

    run(test)


def test_replica_leaves_an_earlier_front_doors_job(settings: Any) -> None:
    async def test(replica: Alone, watch: Watch) -> None:
        await watch.until(events.Ready)
        stream = replica.run("job1", json_of(replace(REQUEST, prompt="hold never")))
        assert await anext(stream) == "taken"
        await watch.until(events.Progress)
        second = Watch(replica, "another door")
        assert isinstance(await second.next(), messages.Hello)
        assert [each async for each in stream] == []
        assert (await second.until(events.WasCancelled)).job_id == "job1"
        await second.close()

    run(test)


def test_replica_refuses_a_job_that_was_cancelled_on_its_way(settings: Any) -> None:
    async def test(replica: Alone, watch: Watch) -> None:
        await watch.until(events.Ready)
        await replica.tell(messages.encode(events.Cancel(job_id="job1")), to="alone")
        said = [each async for each in replica.run("job1", json_of(REQUEST))]
        assert said == ["refused: it was cancelled on its way"]

    run(test)


def test_replica_tells_of_its_worker_processs_death_and_has_another(settings: Any) -> None:
    async def test(replica: Alone, watch: Watch) -> None:
        await watch.until(events.Ready)
        said = [each async for each in replica.run("j", json_of(replace(REQUEST, prompt="kill")))]
        died = await watch.until(messages.Died)
        assert said == ["taken"] and (died.begun, died.code) == (["j"], "poison")
        await watch.until(events.Ready)

    run(test)


def test_replicas_of_a_machine_share_its_places(settings: Any) -> None:
    first, second = Alone("bf16"), Alone("bf16")
    assert (first._slot.name, second._slot.name) == ("cpu0", "cpu1")
    with pytest.raises(RuntimeError, match="every place of studio is taken: 2"):
        Alone("bf16")


def test_replica_of_another_precision_is_refused(settings: Any) -> None:
    with pytest.raises(RuntimeError, match="studio has bf16 replicas and was asked for fp4"):
        Alone("fp4")


def test_replica_can_run_every_model_that_it_names(settings: Any) -> None:
    """One with weights that wait in main memory takes all there is, to the last bit."""
    settings.setattr("utils.requests.RequestResolver.why_not_on", lambda self, slot, row: None)
    settings.setattr("utils.requests.RequestResolver.why_no_files", lambda self, row: None)

    async def test(replica: Alone, watch: Watch) -> None:
        hello = await watch.next()
        assert max(hello.models.values()) == hello.memory_gib
        stats = ReplicaStats(
            replica="r", node="n", model_gib=hello.models, memory_gib=hello.memory_gib
        )
        wanted = [Wanted(job=model, seq=0, model=model) for model in hello.models]
        assert all(Profile.of(stats).can_run(each) for each in wanted)
        await watch.until(events.Ready)

    run(test)


def test_replica_report_is_what_routing_reads(settings: Any) -> None:
    from utils.fleet.report import stats_of

    stats = stats_of(json.loads(json.dumps(Alone("bf16").record_routing_stats())))
    assert (stats.replica, stats.node, stats.is_draining) == ("alone", "studio", True)
    assert stats.resources == {"bf16"} and "embedded" in stats.model_gib
