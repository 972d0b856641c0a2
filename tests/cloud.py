"""BFL's cloud for tests: the stand-in in a thread, and a queue whose only worker is the cloud."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from config.catalog import load_catalog
from config.settings import (
    CloudSettings,
    ModelSettings,
    QueueSettings,
    Settings,
    StorageSettings,
)
from models.bfl_prices import load_prices
from models.types import GenerationRequest, OutputFormat
from scripts import fake_bfl
from tests.service import NO_CERTIFICATES
from utils.clock import Chance
from utils.cloud_tasks import CloudTasks
from utils.cloud_worker import CloudWorker
from utils.job import Job
from utils.job_store import JobStore
from utils.queue_manager import QueueManager

KEY = "bfl_test_4711"
START_SECONDS = 120
CATALOG = load_catalog()
MODELS = [row.id for row in CATALOG if row.cloud is not None]


class StandIn:
    """`scripts.fake_bfl` on a free port of 127.0.0.1. `calls` is its ledger."""

    def __init__(self) -> None:
        self._sockets = [fake_bfl.listening(0), fake_bfl.listening(0)]
        self.port, second_port = (each.getsockname()[1] for each in self._sockets)
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            fake_bfl.create_app(draws_seconds=0.0, second_port=second_port),
            log_level="critical",
            lifespan="off",
            ws="none",
            timeout_keep_alive=75,  # longer than a client's: it never sends into what is being closed
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=(self._sockets,), name="stand-in", daemon=True
        )
        self.client = httpx2.Client(
            base_url=self.url, timeout=START_SECONDS, verify=NO_CERTIFICATES
        )

    def start(self) -> StandIn:
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            assert time.monotonic() < deadline, "the stand-in did not start"
            time.sleep(0.01)
        return self

    def close(self) -> None:
        self.client.close()
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(START_SECONDS)
        for each in self._sockets:
            each.close()

    def reset(self, credits: float = 1000.0) -> None:
        self.client.post("/__reset", params={"credits": credits})

    @property
    def calls(self) -> list[dict[str, Any]]:
        return self.client.get("/__calls").json()["calls"]

    @property
    def submits(self) -> list[dict[str, Any]]:
        """The requests for pictures, in their order."""
        return [call for call in self.calls if call["method"] == "POST"]

    @property
    def credits(self) -> float:
        return self.client.get("/__calls").json()["credits"]

    def settings(self, **values: Any) -> CloudSettings:
        given = {"bfl_api_key": KEY, "bfl_api_base": f"{self.url}/v1", "bfl_poll_interval": 0.02}
        return CloudSettings(**{**given, **values})

    @property
    def environ(self) -> dict[str, str]:
        """For a service."""
        return {
            "SD_BFL_API_KEY": KEY,
            "SD_BFL_API_BASE": f"{self.url}/v1",
            "SD_BFL_POLL_INTERVAL": "0.05",
        }


def cloud_request(prompt: str = "a red balloon", **values: Any) -> GenerationRequest:
    given = {
        "prompt": prompt,
        "negative_prompt": None,
        "model": "bfl/flux-2-klein-4b",
        "backend": "flux-api",
        "width": 64,
        "height": 64,
        "num_inference_steps": 1,
        "guidance_scale": 0.0,
        "true_cfg_scale": 1.0,
        "seed": 7,
        "num_images": 1,
        "output_format": OutputFormat.PNG,
        "output_quality": 95,
        "tags": (),
    }
    return GenerationRequest(**{**given, **values})


@asynccontextmanager
async def cloud_queue(
    cloud: StandIn,
    folder: Path,
    *,
    chance: Chance | None = None,
    models: ModelSettings | None = None,
    **values: Any,
) -> AsyncIterator[QueueManager]:
    """A running queue in `folder` with the cloud and nothing else; `values` are settings of the cloud.

    Where `models` says nothing else, nobody looks whether pictures are safe for work.
    """
    settings = Settings(
        cloud=cloud.settings(**values),
        models=models or ModelSettings(safety_checker="off"),
        queue=QueueSettings(),
        storage=StorageSettings(output_dir=folder / "out", data_dir=folder, min_free_mib=0),
    )
    chance = chance or Chance()
    store = await JobStore.open(folder / "jobs.sqlite3")
    tasks = CloudTasks(store, chance.now, settings.cloud.bfl_daily_budget_usd)
    prices = load_prices(CATALOG)
    queue = QueueManager(
        store,
        lambda queue: [CloudWorker(settings, CATALOG, prices, tasks, folder / "inputs", queue)],  # type: ignore[list-item]
        lambda worker: MODELS,
        settings,
        chance,
        "embedded",
    )
    try:
        await queue.start()
    except BaseException:
        await store.close()
        raise
    try:
        yield queue
    finally:
        await queue.stop()


async def ended(queue: QueueManager, request: GenerationRequest) -> Job:
    """The job of a request when it has ended."""
    return await queue.wait(await queue.submit(request))
