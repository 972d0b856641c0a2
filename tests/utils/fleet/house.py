"""Front doors of one fleet in one loop, over a real database: what Ray would carry between them and a replica is played here."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from config.catalog import DefaultModel
from config.settings import load_settings
from models.types import GenerationRequest, GenerationResult, ImageFile
from tests.pictures import file_of, gradient
from tests.utils.test_job_store import REQUEST
from utils.allowance import Allowance
from utils.clock import Chance
from utils.database.postgres import PostgresDatabase
from utils.fleet import doors as doors_module
from utils.fleet import lease as lease_module
from utils.fleet import messages, word
from utils.fleet.door_files import DoorFiles
from utils.fleet.doors import Doors
from utils.fleet.queue import FleetQueue
from utils.fleet.replica import ENDED, TAKEN
from utils.fleet.shared_files import INPUT, LORA, PICTURE, SharedFiles
from utils.fleet.usage import FleetUsage
from utils.fleet.worker import FleetWorker
from utils.input_pictures import InputPictures
from utils.job import Job, JobStatus
from utils.job_store import JobStore
from utils.keys import Limits
from utils.worker import events

PNG = file_of(gradient(8, 8), "PNG")
DEFAULT = DefaultModel(id="embedded", reason="a test")


class PlayedReplica:
    """One replica for all doors. A job whose prompt begins with `hold` is drawn when `gate` is set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.gate = asyncio.Event()
        self.drawn: list[tuple[str, int]] = []  # (id, seed) of every run that came to its end
        self.begun: list[str] = []
        self._watch: asyncio.Queue[str | None] | None = None
        self._listening: set[asyncio.Queue[str | None]] = set()

    async def watch(self, door: str) -> AsyncIterator[str]:
        if self._watch is not None:
            self._watch.put_nowait(None)
        lines = self._watch = asyncio.Queue()
        async for line in self._tell(lines):
            yield line

    async def listen(self) -> AsyncIterator[str]:
        lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._listening.add(lines)
        async for line in self._tell(lines):
            yield line

    async def _tell(self, lines: asyncio.Queue[str | None]) -> AsyncIterator[str]:
        lines.put_nowait(messages.encode(events.Ready(device="cpu", versions={}, safety=None)))
        while (line := await lines.get()) is not None:
            yield line

    async def run(self, requests: dict[str, dict[str, Any]]) -> AsyncIterator[Any]:
        yield TAKEN
        for job_id, values in requests.items():
            request = GenerationRequest.from_json(values)
            self.begun.append(job_id)
            self._say(events.Begun(job_ids=[job_id]))
            if request.prompt.startswith("hold"):
                await self.gate.wait()
            yield (f"{job_id}-0.png", PNG, True)
            self.drawn.append((job_id, request.seed))
            image = ImageFile(
                filename=f"{job_id}-0.png",
                seed=request.seed,
                width=8,
                height=8,
                size_bytes=len(PNG),
            )
            result = GenerationResult(
                images=(image,), engine="e", precision="bf16", device="cpu",
                timings_ms={"encode": 1.0, "denoise": 1.0, "decode": 1.0, "save": 1.0},
            )  # fmt: skip
            yield f"{ENDED} {job_id}"
            self._say(events.Finished(job_id=job_id, model="embedded", result=result.to_json()))

    async def tell(self, message: Any) -> None:
        if isinstance(message, events.Cancel):
            self._say(events.WasCancelled(job_id=message.job_id))

    async def missing(self, wanted: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return wanted

    async def send_file(self, kind: str, sha256: str, path: Path, read: Any) -> None:
        assert path.exists(), f"{kind} {sha256} is not at the door that sends it"

    def _say(self, message: Any) -> None:
        line = messages.encode(message)
        for lines in (self._watch, *self._listening):
            if lines is not None:
                lines.put_nowait(line)


class PlayedCrew:
    """A door's hands on the replicas."""

    def __init__(self, replicas: Iterable[PlayedReplica], settings: Any) -> None:
        self.replicas: list[FleetWorker] = []
        self.routes = True
        self.away: set[str] = set()
        self.on_away = lambda: None
        self._played = list(replicas)
        self._settings = settings
        self.queue: FleetQueue
        self.files: DoorFiles

    async def set_routes(self, routes: bool) -> None:
        self.routes = routes
        for worker in list(self.queue.replicas):
            await worker.leave()
        self.greet()

    def greet(self) -> None:
        for played in self._played:
            hello = messages.Hello(
                replica=f"{played.name} {secrets.token_hex(2)}", node="node", slot=played.name,
                precision="bf16", resources=["bf16"], models={"embedded": 1.0}, reasons={},
                memory_gib=8.0,
            )  # fmt: skip
            lines = played.watch("door") if self.routes else played.listen()
            worker = FleetWorker(
                hello, played, lines, self.files, self._settings, DEFAULT, self.queue,  # type: ignore[arg-type]
                end_process=lambda: None,
            )  # fmt: skip
            worker.is_ours = self.routes
            self.queue.add_worker(worker)

    def set_away(self, nodes: Iterable[str]) -> None:
        self.away = set(nodes)
        for worker in self.queue.replicas:
            worker.is_draining = worker.node in self.away


class PlayedLoras:
    """What a door's library is told of the defaults."""

    stored: str | None = None

    def set_defaults(self, stored: str | None) -> None:
        self.stored = stored


class Door:
    """A front door with folders of its own. `start`; then `stop`, or `die` as by a kill.

    Everybody who submits has `limits`, and a picture costs 25 cents.
    """

    def __init__(
        self, house: House, name: str, limits: Limits | None = None, **settings: str
    ) -> None:
        self.name = name
        self.limits = limits or Limits()
        self.folder = house.folder / name
        self.settings = load_settings(
            "fleet",
            {
                "FLUX_OUTPUT_DIR": str(self.folder / "pictures"),
                "FLUX_DATA_DIR": str(self.folder / "data"),
                "FLUX_MIN_FREE_MIB": "0",
                "FLUX_DRAIN_SECONDS": "5",
                **settings,
            },
        )
        self.output_dir = self.settings.storage.output_dir
        self.inputs = InputPictures(self.folder / "inputs")
        self.database = PostgresDatabase(house.url, name)
        folders = {
            PICTURE: self.output_dir, INPUT: self.inputs.folder, LORA: self.folder / "pins",
        }  # fmt: skip
        self.files = SharedFiles(self.database, folders, lambda sha256: None)
        self.doors = Doors(self.database, self.files, name)
        self.crew = PlayedCrew(house.replicas, self.settings)
        self.queue: FleetQueue

    async def start(self) -> Door:
        store = await JobStore.of(self.database)
        self.queue = self.crew.queue = FleetQueue(
            store, lambda queue: [], lambda worker: ["embedded"], self.settings, Chance(), "embedded",
            inputs=self.inputs,
            allowance=Allowance(
                limits_of=lambda owner: self.limits, estimate=lambda request: request.num_images / 4,
                usage=FleetUsage(store),
            ),
        )  # fmt: skip
        self.crew.files = DoorFiles(self.folder / "pins", self.inputs.folder)
        self.loras = PlayedLoras()
        self.doors.share(self.queue, self.crew, self.loras)  # type: ignore[arg-type]
        await self.queue.start()
        self.crew.greet()
        listens, hurry_all = asyncio.Event(), self.doors._word._missed
        self.doors._word._missed = lambda: (hurry_all(), listens.set())  # type: ignore[func-returns-value]
        await self.doors.start()
        await listens.wait()  # what is told before that reaches it a second later, by the rows
        return self

    @property
    def routes(self) -> bool:
        return self.doors.routes

    async def submit(self, prompt: str = "a cat", **values: Any) -> Job:
        request = REQUEST.to_json() | {"prompt": prompt, "seed": 7, **values}
        return await self.queue.submit(GenerationRequest.from_json(request))

    async def status(self, job: Job) -> JobStatus:
        return (await self.queue.get(job.id)).status

    async def end_of(self, job: Job) -> Job:
        return await self.queue.wait(await self.queue.get(job.id))

    async def stop(self) -> None:
        await self.queue.stop()
        await self.doors.release()

    async def die(self) -> None:
        """Nothing of it goes on, and nobody is told."""
        for worker in self.queue.replicas:
            worker.is_ours = False  # so that its end changes no row
        tasks = [*self.doors._tasks, *self.queue.dispatcher._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in self.queue.replicas:
            await worker.leave()
        await self.inputs.stop()
        await self.doors._word.close()
        await self.queue.store.close()
        await asyncio.to_thread(self.doors._looker.shutdown)
        self.database.end()


class House:
    """`async with House(folder, url)`: times are short, but a door that stands still for two seconds keeps its lease."""

    def __init__(self, folder: Path, url: str, replicas: int = 1) -> None:
        self.folder, self.url = folder, url
        self.replicas = [PlayedReplica(f"r{index}") for index in range(replicas)]
        self.doors: list[Door] = []
        self._patches = [
            patch.object(lease_module, "LEASE_SECONDS", 3.0),
            patch.object(lease_module, "MARGIN_SECONDS", 0.5),
            patch.object(doors_module, "BEAT_SECONDS", 0.1),
            patch.object(doors_module, "GONE_SECONDS", 2.0),
            patch.object(word, "LISTEN_SECONDS", 0.1),
        ]

    async def __aenter__(self) -> House:
        for each in self._patches:
            each.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for door in self.doors:
            if not door.queue.is_draining:
                await door.stop()
        for each in self._patches:
            each.stop()

    async def open(self, name: str, limits: Limits | None = None, **settings: str) -> Door:
        door = await Door(self, name, limits, **settings).start()
        self.doors.append(door)
        return door

    async def kill(self, door: Door) -> None:
        self.doors.remove(door)
        await door.die()


async def until(condition: Any) -> None:
    """Wait for it; it may be a coroutine function."""
    while True:
        met = condition()
        if await met if asyncio.iscoroutine(met) else met:
            return
        await asyncio.sleep(0.01)
