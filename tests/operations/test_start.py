"""start.sh with the real services, on free ports and from a copy of the checkout."""

import os
import re
import secrets
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

from models.precision import known_precisions, profile_of
from tests.operations.checkout import clean_environment, copy_checkout, set_loader
from tests.service import free_port

UP_SECONDS = 120


class Started:
    """A running start.sh, as a terminal runs it: it leads the process group that Ctrl-C reaches."""

    def __init__(self, checkout: Path, **environ: str | int):
        self.checkout = checkout
        self.ports = {name: free_port() for name in ("BF16_PORT", "FP4_PORT", "PAGE_PORT")}
        settings = {"FLUX_GPUS": "none", "FLUX_MIN_FREE_MIB": 0, **self.ports, **environ}
        self.output = checkout / f"output-{secrets.token_hex(4)}.txt"  # several may write at once
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
        self.wait_until_said("curl ")

    def wait_until_said(self, text: str) -> None:
        deadline = time.monotonic() + UP_SECONDS
        while text not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def service(self, precision: str = "bf16") -> psutil.Process:
        return next(p for p in self.family() if f"main_{precision}.py" in p.cmdline())

    def ctrl_c(self) -> int:
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(120)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(120)


@pytest.fixture
def run() -> Iterator[Callable[..., Started]]:
    all_started: list[Started] = []

    def begin(checkout: Path, **environ: str | int) -> Started:
        all_started.append(Started(checkout, **environ))
        return all_started[-1]

    yield begin
    for started in all_started:
        started.close()


def assert_all_gone(family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=120)
    assert not alive


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose services are real and whose workers have a stand-in model."""
    copy = copy_checkout(tmp_path_factory.mktemp("light") / "flux")
    for name in known_precisions():
        set_loader(copy, "tests.engines:scripted", name)
    return copy


@pytest.fixture(scope="module")
def up(light: Path) -> Iterator[Started]:
    """A start that is up, until the last of those who share it ends it."""
    started = Started(light)
    try:
        started.wait_until_up()
        yield started
    finally:
        started.close()


def test_start_says_where_all_is_and_draws_a_picture_by_its_curl_line(
    up: Started, tmp_path: Path
) -> None:
    """The README's test does the same with the models that ship."""
    said = up.said()
    for name in known_precisions():
        port = up.ports[f"{name.upper()}_PORT"]
        if profile_of(name).loader is None:
            assert profile_of(name).not_built in said
            continue
        assert re.search(rf"{profile_of(name).title} +http://127.0.0.1:{port} ", said)
        assert httpx2.get(f"http://127.0.0.1:{port}/info", timeout=120).json()["precision"] == name
    assert re.search(r"model +embedded: \S", said)
    assert httpx2.get(f"http://127.0.0.1:{up.ports['PAGE_PORT']}/", timeout=120).status_code == 200

    curl = shlex.split(
        next(line for line in said.splitlines() if line.lstrip().startswith("curl "))
    )
    assert str(up.ports["BF16_PORT"]) in curl[2]
    assert subprocess.run(curl, cwd=tmp_path, timeout=120).returncode == 0
    with Image.open(tmp_path / "picture.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (256, 256))


def test_start_lets_the_page_call_the_service(up: Started) -> None:
    page = f"http://127.0.0.1:{up.ports['PAGE_PORT']}"
    service = f"http://127.0.0.1:{up.ports['BF16_PORT']}"
    answer = httpx2.get(f"{service}/info", headers={"Origin": page}, timeout=120)
    assert answer.headers["access-control-allow-origin"] == page


def test_start_ends_all_of_it_at_ctrl_c(up: Started) -> None:
    family = up.family()
    assert len(family) >= 3, "a service, its worker and the page"
    assert up.ctrl_c() == 0
    assert_all_gone(family)


def test_start_when_the_service_refuses_says_why(run, light: Path) -> None:
    started = run(light, FLUX_MODEL="no-such-model")
    assert started.process.wait(120) == 1
    assert "no-such-model" in started.said()
    assert re.search(r"the (FP4|BF16) service ended \(exit status 78\)", started.said())


@pytest.mark.parametrize("name", ["BF16_PORT", "PAGE_PORT"])
def test_start_names_another_program_on_a_port_and_leaves_it(run, light: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        started = run(light, **{name: other.getsockname()[1]})
        assert started.process.wait(120) == 3
        assert f"pid {os.getpid()}" in started.said()
        with socket.create_connection(other.getsockname()):
            pass


def test_start_with_a_wrong_page_port_names_it(run, light: Path) -> None:
    started = run(light, PAGE_PORT="nine")
    assert started.process.wait(120) == 2
    assert "PAGE_PORT takes a port from 1 to 65535, not 'nine'" in started.said()


# With services that are made up, and FP4 built or not, whatever this version has of it.

STAND_IN = """
import json, os, signal, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = Path(sys.argv[0]).stem
        body = json.dumps({"default_model": name, "default_model_reason": "made up"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
if Path(sys.argv[0]).stem == os.environ.get("BROKEN"):
    sys.exit(1)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("made-up service", flush=True)
ThreadingHTTPServer(("127.0.0.1", int(os.environ["FLUX_PORT"])), Handler).serve_forever()
"""


def made_up(folder: Path, loader: str | None) -> Path:
    copy = copy_checkout(folder)
    for name in ("bf16", "fp4"):
        (copy / f"main_{name}.py").write_text(STAND_IN)
    set_loader(copy, loader)
    return copy


@pytest.fixture(scope="module")
def both_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up(tmp_path_factory.mktemp("both") / "flux", "models.bf16_flux_model:load")


@pytest.fixture(scope="module")
def bf16_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = made_up(tmp_path_factory.mktemp("one") / "flux", None)
    (copy / "main_fp4.py").write_text("print('FP4 is not built yet')\nraise SystemExit(69)\n")
    return copy


def test_start_with_both_services_keeps_one_when_the_other_dies(run, both_built: Path) -> None:
    started = run(both_built)
    started.wait_until_up()
    urls = {
        name: f"http://127.0.0.1:{started.ports[f'{name.upper()}_PORT']}"
        for name in ("bf16", "fp4")
    }
    for name, url in urls.items():
        assert re.search(rf"{name.upper()} +{url} ", started.said())
        assert f"main_{name}: made up" in started.said()
    family = started.family()

    started.service("fp4").kill()
    started.wait_until_said("going on without it: the BF16 service")
    said = started.said()
    assert "the FP4 service ended (exit status 137)" in said
    assert "the end of logs/fp4.out" in said
    assert "made-up service" in said
    assert httpx2.get(f"{urls['bf16']}/info", timeout=120).status_code == 200

    started.service("bf16").kill()
    assert started.process.wait(120) == 1
    assert "the BF16 service ended (exit status 137)" in started.said()
    assert_all_gone(family)


def test_start_goes_on_without_a_service_that_is_not_built_until_the_other_dies(
    run, bf16_built: Path
) -> None:
    started = run(bf16_built)
    started.wait_until_up()
    assert "FP4 is not built yet" in started.said()
    assert str(started.ports["FP4_PORT"]) not in started.said()
    family = started.family()
    started.service().kill()
    assert started.process.wait(120) == 1
    assert "the BF16 service ended (exit status 137)" in started.said()
    assert "the end of logs/bf16.out" in started.said()
    assert_all_gone(family)


def test_start_replaces_an_earlier_one_on_its_ports_and_ends_when_its_page_dies(
    run, both_built: Path
) -> None:
    earlier = run(both_built)
    earlier.wait_until_up()
    family = earlier.family()
    later = run(both_built, **earlier.ports)
    later.wait_until_up()
    assert "ending the earlier instance" in later.said()
    assert earlier.process.wait(120) == 1
    assert_all_gone(family)
    assert later.service("bf16").is_running() and later.service("fp4").is_running()
    assert later.process.poll() is None

    family = later.family()
    next(process for process in family if "http.server" in process.cmdline()).kill()
    assert later.process.wait(120) == 1
    assert "the page ended (exit status 137)" in later.said()
    assert_all_gone(family)


def test_start_when_a_service_fails_before_both_are_up_ends_the_rest(run, both_built: Path) -> None:
    started = run(both_built, BROKEN="main_fp4")
    assert started.process.wait(120) == 1
    assert "the FP4 service ended (exit status 1)" in started.said()
    assert "going on" not in started.said()


def test_start_refuses_one_port_for_two_services(run, both_built: Path) -> None:
    started = run(both_built, FLUX_PORT=free_port())
    assert started.process.wait(120) == 2
    assert "set BF16_PORT and FP4_PORT" in started.said()


@pytest.mark.parametrize("names", [("BF16_PORT", "FP4_PORT"), ("PAGE_PORT", "BF16_PORT")])
def test_start_refuses_one_port_that_is_given_twice(
    run, both_built: Path, names: tuple[str, str]
) -> None:
    started = run(both_built, **dict.fromkeys(names, free_port()))
    assert started.process.wait(120) == 2
    assert all(name in started.said() for name in names)
    assert "give each a port of its own" in started.said()
