"""The port guard, against real processes that listen."""

import contextlib
import getpass
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.operations.checkout import clean_environment, copy_checkout
from tests.service import free_port
from utils import port_guard
from utils.port_guard import PortUnavailable

# A stand-in service: listens, has a child, and treats SIGTERM and its child as it is told.
LISTENER = """
import signal, socket, subprocess, sys, time
port, how = int(sys.argv[1]), sys.argv[2]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
def stop(*_):
    if how == "orderly":
        child.kill()
    if how != "stubborn":
        sys.exit(0)
signal.signal(signal.SIGTERM, stop)
with socket.create_server(("127.0.0.1", port)):
    print(child.pid, flush=True)
    while True:
        time.sleep(600)
"""

Listen = Callable[..., tuple[subprocess.Popen[str], psutil.Process]]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = copy_checkout(tmp_path_factory.mktemp("guard") / "flux")
    (copy / "main_bf16.py").write_text(LISTENER)
    return copy


@pytest.fixture
def listen(checkout: Path) -> Iterator[Listen]:
    """Start `script` as a listener; gives its process and its child's. Nothing of it stays."""
    with contextlib.ExitStack() as stack:

        def start(port: int, *, how: str = "orderly", script: str = "main_bf16.py", cwd=checkout):
            started = subprocess.Popen(
                [sys.executable, "-u", script, str(port), how],
                cwd=cwd,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(_end, started)
            child = psutil.Process(int(started.stdout.readline()))
            return started, child

        yield start


def _end(started: subprocess.Popen[str]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(started.pid).children(recursive=True):
            child.kill()
    started.kill()
    started.communicate()


def guard(checkout: Path, port: int | str, *more: str) -> subprocess.CompletedProcess[str]:
    service = () if "--page" in more else ("--script", "main_bf16.py")
    return subprocess.run(
        [sys.executable, "-m", "utils.port_guard", *service, "--port", str(port), *more],
        cwd=checkout,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def wait_until_gone(process: psutil.Process) -> bool:
    deadline = time.monotonic() + 60
    while not port_guard._is_gone(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    return port_guard._is_gone(process)


def test_free_port_is_given_as_it_is(checkout: Path) -> None:
    port = free_port()
    done = guard(checkout, port)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{port}\n", "")


@pytest.mark.parametrize("absolute", [True, False])
def test_earlier_instance_is_ended_with_its_children(
    checkout: Path, listen: Listen, absolute: bool
) -> None:
    port = free_port()
    if absolute:
        started, child = listen(port, script=str(checkout / "main_bf16.py"), cwd="/")
    else:
        started, child = listen(port)
    done = guard(checkout, port)
    assert (done.returncode, done.stdout) == (0, f"{port}\n")
    assert f"pid {started.pid}" in done.stderr
    assert started.wait(120) == 0
    assert wait_until_gone(child)


def test_instance_of_another_checkout_is_left_alone(
    checkout: Path, listen: Listen, tmp_path: Path
) -> None:
    port = free_port()
    (tmp_path / "main_bf16.py").write_text(LISTENER)
    started, _ = listen(port, cwd=tmp_path)
    done = guard(checkout, port)
    assert (done.returncode, done.stdout) == (port_guard.EXIT_HELD, "")
    assert started.poll() is None


def test_other_program_is_named_and_left_alone(checkout: Path, listen: Listen) -> None:
    port = free_port()
    (checkout / "other.py").write_text(LISTENER)
    started, _ = listen(port, script="other.py")
    done = guard(checkout, port)
    assert (done.returncode, done.stdout) == (port_guard.EXIT_HELD, "")
    for word in (str(port), f"pid {started.pid}", getpass.getuser(), "other.py"):
        assert word in done.stderr
    assert started.poll() is None


def test_pid_that_a_file_names_is_not_believed(checkout: Path, listen: Listen) -> None:
    """Files outlive their processes; who listens is asked of the system."""
    port = free_port()
    (checkout / "other.py").write_text(LISTENER)
    stranger, _ = listen(free_port(), script="other.py")
    for name in ("bf16.pid", "main_bf16.pid"):
        for folder in (checkout / "logs", checkout / "data"):
            folder.mkdir(exist_ok=True)
            (folder / name).write_text(f"{stranger.pid}\n")
    started, _ = listen(port)
    assert guard(checkout, port).returncode == 0
    assert started.wait(120) == 0 and stranger.poll() is None


def test_end_of_a_pid_that_another_program_has_by_now_ends_nothing(listen: Listen) -> None:
    """Between the look and the signal an instance may end and its number be given away."""
    stranger, _ = listen(free_port())
    earlier = psutil.Process(stranger.pid)
    earlier._ident = (stranger.pid, earlier.create_time() - 100)  # what psutil knows a process by
    earlier._gone = earlier._pid_reused = False
    port_guard.end(earlier, stop_seconds=0.1)
    assert stranger.poll() is None


def test_other_service_of_this_checkout_is_left_alone(checkout: Path, listen: Listen) -> None:
    port = free_port()
    started, _ = listen(port)
    done = guard(checkout, port, "--page", "frontend")
    assert done.returncode == port_guard.EXIT_HELD
    assert started.poll() is None


def test_page_server_of_this_checkout_is_ended(checkout: Path) -> None:
    port = free_port()
    server = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with subprocess.Popen(
        [*server, "--directory", "frontend"],
        cwd=checkout,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as page:
        while port_guard.can_listen("127.0.0.1", port):
            assert page.poll() is None
            time.sleep(0.02)
        assert guard(checkout, port, "--page", "frontend").returncode == 0
        assert page.wait(120) == -signal.SIGTERM


def test_instance_that_ignores_sigterm_is_killed(checkout: Path, listen: Listen, capsys) -> None:
    port = free_port()
    started, child = listen(port, how="stubborn")
    is_ours = port_guard.runs_script(checkout / "main_bf16.py")
    assert port_guard.take_port("127.0.0.1", port, is_ours, stop_seconds=0.3) == port
    assert started.wait(120) == -signal.SIGKILL
    assert wait_until_gone(child)
    assert "did not end in time" in capsys.readouterr().err


def test_child_that_an_instance_leaves_behind_is_killed(checkout: Path, listen: Listen) -> None:
    port = free_port()
    started, child = listen(port, how="careless")
    assert guard(checkout, port).returncode == 0
    assert started.wait(120) == 0
    assert wait_until_gone(child)


def test_holder_that_cannot_be_seen_is_another_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_guard, "can_listen", lambda host, port: False)
    monkeypatch.setattr(port_guard, "_listeners", lambda port: [("127.0.0.1", None)])
    with pytest.raises(PortUnavailable, match="held by a process of another user"):
        port_guard.take_port("127.0.0.1", 8001, lambda process: True)


def test_holder_that_cannot_be_inspected_is_another_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "cmdline", denied)
    me = psutil.Process()
    assert not port_guard.runs_script(Path("main_bf16.py"))(me)
    assert port_guard.describe(me) == f"a process of another user (pid {os.getpid()})"


def test_auto_passes_over_held_ports_and_ends_nothing(checkout: Path, listen: Listen) -> None:
    port = free_port()
    started, _ = listen(port)
    done = guard(checkout, "auto", "--start", str(port))
    assert done.returncode == 0
    assert port < int(done.stdout) <= port_guard.MAX_PORT
    assert started.poll() is None


@pytest.mark.parametrize("port", ["0", "65536", "-1", "8001a", ""])
def test_wrong_port_is_refused(checkout: Path, port: str) -> None:
    done = guard(checkout, port)
    assert done.returncode == 2
    assert "--port" in done.stderr


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_host_that_is_not_here_is_named(host: str) -> None:
    with pytest.raises(PortUnavailable, match=host):
        port_guard.can_listen(host, free_port())


def test_localhost_is_held_when_either_family_is(listen: Listen) -> None:
    port = free_port()
    listen(port)
    assert not port_guard.can_listen("localhost", port)
    assert not port_guard.can_listen("0.0.0.0", port)


@pytest.mark.parametrize(
    ("command", "script"),
    [
        (["python3", "main_bf16.py"], "main_bf16.py"),
        (
            ["/x/.venv/bin/python", "-u", "-X", "dev", "/a/main_bf16.py", "--flag"],
            "/a/main_bf16.py",
        ),
        (["python3", "-m", "main_bf16"], None),
        (["python3", "-c", "main_bf16.py"], None),
        (["python3"], None),
        (["vim", "main_bf16.py"], None),
        ([], None),
    ],
)
def test_script_argument_is_found_in_a_command_line(command: list[str], script: str | None) -> None:
    assert port_guard._script_argument(command) == script
