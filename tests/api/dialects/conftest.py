"""A service with a key, shared by the tests of all dialects."""

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
    ).start()
    try:
        yield running
    finally:
        running.close()
