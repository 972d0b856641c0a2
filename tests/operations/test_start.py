"""start.sh with the real services, on free ports and from a copy of the checkout."""

import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import psutil
import pytest
from PIL import Image

from tests.operations.checkout import clean_environment, copy_checkout
from tests.service import free_port

UP_SECONDS = 120


class Started:
    """A running start.sh, as a terminal runs it: it leads the process group that Ctrl-C reaches."""

    def __init__(self, checkout: Path, **environ: str | int):
        self.checkout = checkout
        self.ports = {name: free_port() for name in ("BF16_PORT", "FP4_PORT", "PAGE_PORT")}
        settings = {"FLUX_GPUS": "none", "FLUX_MIN_FREE_MIB": 0, **self.ports, **environ}
        self.output = checkout / "output.txt"
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                [checkout / "start.sh"],
                env=clean_environment(**settings),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.output.read_text()

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + UP_SECONDS
        while "curl " not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def service(self) -> psutil.Process:
        return next(p for p in self.family() if "main_bf16.py" in p.cmdline())

    def ctrl_c(self) -> int:
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("all") / "flux", models=True)


@pytest.fixture
def start(checkout: Path) -> Iterator[Callable[..., Started]]:
    all_started: list[Started] = []

    def run(**environ: str | int) -> Started:
        all_started.append(Started(checkout, **environ))
        return all_started[-1]

    yield run
    for started in all_started:
        started.close()


def assert_all_gone(family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_start_draws_a_picture_by_its_curl_line_and_ctrl_c_ends_it_all(
    start: Callable[..., Started], checkout: Path, tmp_path: Path
) -> None:
    started = start()
    started.wait_until_up()
    said = started.said()
    assert "the FP4 service is not built yet" in said
    assert re.search(r"model +embedded: \S", said)
    assert httpx2.get(f"http://127.0.0.1:{started.ports['PAGE_PORT']}/").status_code == 200

    curl = shlex.split(
        next(line for line in said.splitlines() if line.lstrip().startswith("curl "))
    )
    assert str(started.ports["BF16_PORT"]) in curl[2]
    assert subprocess.run(curl, cwd=tmp_path, timeout=120).returncode == 0
    with Image.open(tmp_path / "picture.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (256, 256))

    family = started.family()
    assert len(family) >= 3, "the service, its worker and the page"
    assert started.ctrl_c() == 0
    assert_all_gone(family)


def test_start_lets_the_page_call_the_service(start: Callable[..., Started]) -> None:
    started = start()
    started.wait_until_up()
    page = f"http://127.0.0.1:{started.ports['PAGE_PORT']}"
    service = f"http://127.0.0.1:{started.ports['BF16_PORT']}"
    answer = httpx2.get(f"{service}/info", headers={"Origin": page})
    assert answer.headers["access-control-allow-origin"] == page


def test_start_replaces_an_earlier_one_on_its_ports(start: Callable[..., Started]) -> None:
    earlier = start()
    earlier.wait_until_up()
    family = earlier.family()
    later = start(**earlier.ports)
    later.wait_until_up()
    assert "ending the earlier instance" in later.said()
    assert earlier.process.wait(60) == 1
    assert_all_gone(family)
    later.service()
    assert later.process.poll() is None


def test_start_when_a_service_dies_shows_its_log_and_ends_the_rest(
    start: Callable[..., Started],
) -> None:
    started = start()
    started.wait_until_up()
    family = started.family()
    started.service().kill()
    assert started.process.wait(60) == 1
    said = started.said()
    assert "the BF16 service ended (exit status 137)" in said
    assert "the end of logs/bf16.log" in said
    assert "action=listening" in said
    assert_all_gone(family)


def test_start_when_the_service_refuses_says_why(start: Callable[..., Started]) -> None:
    started = start(FLUX_MODEL="no-such-model")
    assert started.process.wait(60) == 1
    assert "no-such-model" in started.said()
    assert "the BF16 service ended (exit status 78)" in started.said()


@pytest.mark.parametrize("name", ["BF16_PORT", "PAGE_PORT"])
def test_start_names_another_program_on_a_port_and_leaves_it(
    start: Callable[..., Started], name: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        started = start(**{name: other.getsockname()[1]})
        assert started.process.wait(60) == 3
        assert f"pid {os.getpid()}" in started.said()
        with socket.create_connection(other.getsockname()):
            pass


def test_start_with_a_wrong_page_port_names_it(start: Callable[..., Started]) -> None:
    started = start(PAGE_PORT="nine")
    assert started.process.wait(60) == 2
    assert "PAGE_PORT takes a port from 1 to 65535, not 'nine'" in started.said()
