"""Services that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.handles import StartEngine
from tests.service import ENGINE_MAIN, RunningService


@pytest.fixture(scope="module")
def start_module_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartEngine]:
    """Start services on a stand-in model that the tests of a module share."""
    started: list[RunningService] = []

    def start(
        *, engine: str = "scripted", wait_for_workers: bool = True, **environ: str
    ) -> RunningService:
        folder = tmp_path_factory.mktemp("fault")
        running = RunningService(folder, main=ENGINE_MAIN, TEST_ENGINE=engine, **environ)
        started.append(running)
        running.start()
        if wait_for_workers:
            running.wait_for_workers()
        return running

    yield start
    for running in started:
        running.close()
