"""Fixtures for every test: one real service that is shared, and a way to start others."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, time, timedelta
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import hypothesis
import pytest

from config.settings import ROOT
from tests.postgres import PostgresServer
from tests.service import ENGINE_MAIN, KeyedService, RunningService

# Before torch is imported: threads that wait for each other sleep, as a worker's do. Two tests at once
# would spend most of their time turning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # and those of two have a core each

# A shell starts what it runs in the background deaf to Ctrl-C, and so would be all that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The same examples every time, and no limit of time for one: a machine may be busy.
hypothesis.settings.load_profile("ci")

# A test that counts by days takes less, however busy the machine is.
DAY_LEFT_SECONDS = 90

# Whatever is imported while tests are collected stays: looking for garbage among it takes seconds.
gc.disable()


# Files that take long, longest first: begun with, so that at the end nobody waits for one of them.
LONG_FILES = (
    "utils/fleet/test_fleet.py",
    "operations/test_readme.py",
    "frontend/test_page.py",
    "utils/fleet/test_several_doors.py",
    "models/test_loras_in_use.py",
    "models/test_embedded_model.py",
    "operations/test_start.py",
    "utils/soak/test_soak.py",
    "faults/test_worker_faults.py",
    "api/test_document.py",
    "frontend/test_results.py",
    "faults/test_lora_uploads.py",
    "utils/worker/test_parent.py",
    "api/routes/test_loras.py",
    "models/test_every_yes.py",
    "faults/test_embedded_worker.py",
    "faults/test_deadlines.py",
    "frontend/test_comfort.py",
    "operations/test_start_service.py",
    "frontend/test_canvas.py",
    "frontend/test_drops.py",
    "operations/test_first_use.py",
    "scripts/test_doctor.py",
    "api/test_schemas.py",
    "models/fp4/test_quantize.py",
    "models/test_flux1_ways.py",
    "models/test_precision.py",
    "operations/test_setup_env.py",
)
_RANK = {ROOT / "tests" / name: rank for rank, name in enumerate(LONG_FILES)}


def pytest_collection(session: pytest.Session) -> None:
    """Processes that share the tests import the same files, and rewriting their assertions takes as long as the rest of
    collecting. Where nothing is compiled yet, each begins elsewhere, and comes to what the others have done.
    """
    if session.config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    first = len(paths) * number // count
    for path in [*paths[first:], *paths[:first]] if count > 1 else []:
        try:
            _ = pytest.Module.from_parent(session, path=path).obj
        except (Exception, pytest.skip.Exception):
            # Half of a module. What is wrong with it is told when it is collected.
            for name in [n for n, m in sys.modules.items() if _file(m) == str(path)]:
                del sys.modules[name]


def _file(module: object) -> str | None:
    return getattr(module, "__file__", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _RANK.get(item.path, len(LONG_FILES)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Random weights and inputs are the same whichever tests came before."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A BF16 service on the embedded model, shared by tests that leave it as it was."""
    running = RunningService(tmp_path_factory.mktemp("service")).start()
    try:
        running.wait_for_workers()
        yield running
    finally:
        running.close()


@pytest.fixture(scope="session")
def engine_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service on the scripted stand-in model, shared by tests that leave no job behind and kill no worker."""
    running = RunningService(
        tmp_path_factory.mktemp("engine"), main=ENGINE_MAIN, TEST_ENGINE="scripted"
    ).start()
    try:
        running.wait_for_workers()
        yield running
    finally:
        running.close()


@pytest.fixture(scope="session")
def keyed_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedService]:
    """The same with a key in its settings, which `client` sends; tests make the others that they need."""
    running = KeyedService(tmp_path_factory.mktemp("keyed"))
    running.start()
    try:
        running.wait_for_workers()
        yield running
    finally:
        running.close()


@pytest.fixture(scope="session")
def stand_in() -> Iterator[Any]:
    """The stand-in for BFL's cloud, running; tests take `cloud`."""
    from tests.cloud import StandIn  # it brings a server: only for those who ask for it

    running = StandIn().start()
    yield running
    running.close()


@pytest.fixture
def cloud(stand_in: Any) -> Any:
    """The stand-in for BFL's cloud as it is when it was just started."""
    stand_in.reset()
    return stand_in


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., RunningService]]:
    """Start services of one's own; all are stopped at the end."""
    started: list[RunningService] = []

    def start(
        *, folder: Path | None = None, wait_for_workers: bool = True, **options
    ) -> RunningService:
        running = RunningService(folder or tmp_path / f"service{len(started)}", **options)
        started.append(running)
        running.start()
        if wait_for_workers:
            running.wait_for_workers()
        return running

    yield start
    for running in started:
        running.close()


@pytest.fixture
def start_engine(start_service: Callable[..., RunningService]) -> Callable[..., RunningService]:
    """Start services of one's own on a stand-in model of `tests/engines.py`."""
    return partial(start_service, main=ENGINE_MAIN, TEST_ENGINE="scripted")


@pytest.fixture
def one_day() -> None:
    """What is counted by the day (UTC) does not begin anew in the middle of the test."""
    now = datetime.now(UTC)
    midnight = datetime.combine(now.date() + timedelta(days=1), time.min, UTC)
    if midnight - now < timedelta(seconds=DAY_LEFT_SECONDS):
        sleep((midnight - now).total_seconds())


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; its `database()` is an empty one."""
    server = PostgresServer()
    try:
        yield server
    finally:
        server.close()
