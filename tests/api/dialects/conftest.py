"""Services that the tests of all dialects share."""

from collections.abc import Iterator

import pytest

from tests.service import ENGINE_MAIN, RunningService

KEY = "0123456789abcdef-key"


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """On the stand-in model; its client sends no key."""
    running = RunningService(
        tmp_path_factory.mktemp("keyed"),
        main=ENGINE_MAIN,
        TEST_ENGINE="scripted",
        FLUX_API_KEYS=KEY,
        FLUX_ALLOW_DOWNLOAD="true",  # other models can be chosen; none is drawn with
    ).start()
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="session")
def anywhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service whose stand-in draws for every local model of the catalog."""
    running = RunningService(
        tmp_path_factory.mktemp("anywhere"),
        main=ENGINE_MAIN,
        TEST_ENGINE="scripted",
        TEST_ANYWHERE="1",
    ).start()
    try:
        running.wait_for_workers()
        yield running
    finally:
        running.close()
