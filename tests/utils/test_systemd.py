"""What systemd is told, over a real socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from config.settings import ROOT
from tests.service import ENGINE_MAIN, RunningService
from utils import systemd

FEED_SECONDS = 0.1


@dataclass(frozen=True)
class Blockable:
    """A service that systemd watches, and the file that holds its event loop up."""

    service: RunningService
    channel: socket.socket
    block: Path

    def hear(self, message: bytes) -> None:
        """Until it is told."""
        while self.channel.recv(100) != message:
            pass


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The other end: a datagram socket as systemd's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(120)
        yield channel


def test_notify_without_systemd_sends_nothing() -> None:
    assert systemd.notify(systemd.READY, environ={}) is False


def test_notify_sends_one_datagram(manager: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": manager.getsockname()}
    assert systemd.notify(systemd.READY, "STATUS=here", environ=environ)
    assert manager.recv(100) == b"READY=1\nSTATUS=here"


def test_notify_knows_the_abstract_namespace() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(f"\0flux-test-{os.getpid()}")
        environ = {"NOTIFY_SOCKET": f"@flux-test-{os.getpid()}"}
        assert systemd.notify(systemd.READY, environ=environ)
        assert channel.recv(100) == b"READY=1"


def test_notify_to_a_socket_that_is_gone_is_no_failure(tmp_path: Path) -> None:
    assert systemd.notify(systemd.READY, environ={"NOTIFY_SOCKET": str(tmp_path / "no")}) is False


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_is_asked_for_by_the_environment(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert systemd.watchdog_seconds(environ) == seconds


def test_watchdog_is_fed_only_while_all_is_well(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    answers = iter([True, False, False, True])

    async def scenario() -> None:
        asked = []

        def is_well() -> bool:
            asked.append(next(answers, None))
            if asked[-1] is None:
                raise asyncio.CancelledError
            return asked[-1]

        with pytest.raises(asyncio.CancelledError):
            await systemd.feed_watchdog(is_well)

    asyncio.run(scenario())
    manager.setblocking(False)
    assert [manager.recv(100) for _ in range(2)] == [b"WATCHDOG=1"] * 2
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_service_tells_systemd_when_it_is_ready_and_when_it_stops(
    manager: socket.socket, start_service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    service = start_service(main=ENGINE_MAIN, TEST_ENGINE="scripted", wait_for_workers=False)
    told = {manager.recv(100)}
    while b"READY=1" not in told or b"WATCHDOG=1" not in told:
        told.add(manager.recv(100))
    assert not any(message.startswith(b"STOPPING=1") for message in told)
    assert service.stop() == 0
    while not (message := manager.recv(100)).startswith(b"STOPPING=1"):
        pass
    # FLUX_DRAIN_SECONDS is ten, and ending takes its time beside.
    assert message == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=70000000"


@pytest.fixture(scope="module")
def blockable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Blockable]:
    folder = tmp_path_factory.mktemp("blocked")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
        pytest.MonkeyPatch.context() as patch,
    ):
        channel.bind(str(folder / "notify"))
        channel.settimeout(120)
        patch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        patch.setenv("WATCHDOG_USEC", str(int(FEED_SECONDS * 2_000_000)))
        patch.setenv("TEST_ENGINE", "scripted")
        patch.setenv("TEST_BLOCK", str(folder / "block"))
        service = RunningService(folder, main=ROOT / "tests" / "main_blocked.py")
        service.start(wait=False)
        try:
            yield Blockable(service, channel, folder / "block")
        finally:
            service.process.kill()
            service.process.wait()
            service.client.close()


def test_service_answers_when_systemd_is_told_that_it_is_ready(blockable: Blockable) -> None:
    blockable.hear(b"READY=1")
    assert blockable.service.client.get("/health").status_code in (200, 503)


def test_service_whose_loop_stands_still_is_not_vouched_for(blockable: Blockable) -> None:
    blockable.hear(b"WATCHDOG=1")
    blockable.block.touch()
    blockable.service.wait_until(blockable.block.with_name("block.blocked").exists)
    blockable.channel.setblocking(False)
    with pytest.raises(BlockingIOError):  # what was said before
        while True:
            blockable.channel.recv(100)
    blockable.channel.settimeout(5 * FEED_SECONDS)
    with pytest.raises(TimeoutError):
        blockable.channel.recv(100)
    blockable.block.unlink()
    blockable.channel.settimeout(120)
    blockable.hear(b"WATCHDOG=1")
