"""Which port a service gets, and what happens to whoever holds it.

    python -m utils.port_guard --script main_bf16.py --host 127.0.0.1 --port 8001
    python -m utils.port_guard --script main_bf16.py --host 127.0.0.1 --port auto --start 8001
    python -m utils.port_guard --page frontend --host 127.0.0.1 --port 9000

The port to use goes to stdout, words for people to stderr. A port that an earlier instance of the
same service *of this checkout* holds is freed: SIGTERM, time to finish, then SIGKILL. Anything
else on the port is named and left alone, and the exit status is 3. Whether a port is free is
decided by listening on it for a moment, not by a list of connections.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from utils import listening

ROOT = Path(__file__).resolve().parent.parent

EXIT_HELD = 3
STOP_SECONDS = 20.0  # a service that drains ends within this
KILL_SECONDS = 5.0
MAX_PORT = 65535

# Says whether a process is an earlier instance of what wants the port.
IsOurs = Callable[[psutil.Process], bool]


class PortUnavailable(Exception):
    """The port cannot be had; the message says why, and what to do."""


def take_port(host: str, port: int, is_ours: IsOurs, stop_seconds: float = STOP_SECONDS) -> int:
    """Free `port` if an earlier instance holds it. Raises PortUnavailable for any other holder."""
    if can_listen(host, port):
        return port
    ours: list[psutil.Process] = []
    foreign: list[str] = []
    for process in holders(host, port):
        if process is not None and is_ours(process):
            ours.append(process)
        else:
            foreign.append(describe(process))
    if foreign:
        raise PortUnavailable(
            f"port {port} on {host} is held by {'; '.join(foreign)}. "
            "It is left alone: end it yourself, or choose another port"
        )
    for process in ours:
        say(f"port {port}: ending the earlier instance (pid {process.pid})")
        end(process, stop_seconds)
    if not _wait_until(lambda: can_listen(host, port), KILL_SECONDS):
        raise PortUnavailable(
            f"port {port} on {host} is still taken, and no process shows as its holder"
        )
    return port


def next_free_port(host: str, start: int) -> int:
    """The first port from `start` up that can be listened on. Ends nothing."""
    for port in range(start, MAX_PORT + 1):
        if can_listen(host, port):
            return port
    raise PortUnavailable(f"no port from {start} up to {MAX_PORT} is free on {host}")


def can_listen(host: str, port: int) -> bool:
    """Whether a server could listen there now. Raises PortUnavailable when it never could."""
    try:
        error = listening.why_not(host, port)
    except socket.gaierror as unknown:
        raise PortUnavailable(
            f"{host!r} is no address of this machine: {unknown.strerror}"
        ) from unknown
    if error is None:
        return True
    if error.errno == errno.EADDRINUSE:
        return False
    if error.errno in listening.ABSENT:
        raise PortUnavailable(f"{host!r} is no address of this machine") from error
    if error.errno in (errno.EACCES, errno.EPERM):
        raise PortUnavailable(
            f"port {port} needs rights that this user lacks; choose one from 1024 up"
        ) from error
    raise PortUnavailable(f"port {port} on {host}: {error.strerror}") from error


def holders(host: str, port: int) -> list[psutil.Process | None]:
    """Who listens on `port` where it is in the way of `host`; None for another user's process."""
    wanted = {address[4][0] for address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    everywhere = {"0.0.0.0", "::"}
    found: dict[int | None, psutil.Process | None] = {}
    for ip, pid in _listeners(port):
        if not (ip in wanted or ip in everywhere or wanted & everywhere):
            continue
        try:
            found[pid] = None if pid is None else psutil.Process(pid)
        except psutil.NoSuchProcess:
            continue  # ended meanwhile
    return list(found.values())


def _listeners(port: int) -> Iterator[tuple[str, int | None]]:
    """(address, pid) of each socket that listens on `port`; the pid is None where it is hidden."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:  # some systems show only one's own processes to ordinary users
        yield from _own_listeners(port)
        return
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
            yield connection.laddr.ip, connection.pid


def _own_listeners(port: int) -> Iterator[tuple[str, int | None]]:
    for process in psutil.process_iter():
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                yield connection.laddr.ip, process.pid


def runs_script(script: Path) -> IsOurs:
    """Says whether a process is Python running exactly this file, from wherever it was started."""

    def is_ours(process: psutil.Process) -> bool:
        try:
            argument = _script_argument(process.cmdline())
            return argument is not None and _resolved(process, argument) == script.resolve()
        except psutil.Error:
            return False

    return is_ours


def serves_folder(folder: Path) -> IsOurs:
    """Says whether a process is `python -m http.server --directory` on exactly this folder."""

    def is_ours(process: psutil.Process) -> bool:
        try:
            command = process.cmdline()
            if not _is_python(command) or command[1:3] != ["-m", "http.server"]:
                return False
            served = command[command.index("--directory") + 1]
            return _resolved(process, served) == folder.resolve()
        except (psutil.Error, ValueError, IndexError):
            return False

    return is_ours


def _script_argument(command: Sequence[str]) -> str | None:
    """The file that a Python command line runs; None when it runs a module, a string, or is not Python."""
    if not _is_python(command):
        return None
    arguments = iter(command[1:])
    for argument in arguments:
        if argument in ("-X", "-W"):
            next(arguments, None)
        elif argument in ("-m", "-c"):
            return None
        elif not argument.startswith("-"):
            return argument
    return None


def _is_python(command: Sequence[str]) -> bool:
    return bool(command) and os.path.basename(command[0]).lower().startswith("python")


def _resolved(process: psutil.Process, path: str) -> Path:
    return (Path(path) if os.path.isabs(path) else Path(process.cwd()) / path).resolve()


def describe(process: psutil.Process | None) -> str:
    """Pid, command and user, as far as they can be seen."""
    if process is None:
        return "a process of another user"
    try:
        with process.oneshot():
            command = " ".join(process.cmdline()) or process.name()
            return f"pid {process.pid} of user {process.username()} ({_shortened(command)})"
    except psutil.AccessDenied:
        return f"a process of another user (pid {process.pid})"
    except psutil.NoSuchProcess:
        return f"pid {process.pid}, which has just ended"


def _shortened(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def end(process: psutil.Process, stop_seconds: float = STOP_SECONDS) -> None:
    """SIGTERM and time to finish, then SIGKILL; the children it leaves behind end too."""
    try:
        family = [process, *process.children(recursive=True)]
        process.terminate()
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied as error:
        raise PortUnavailable(f"no right to end {describe(process)}") from error
    _wait_until(lambda: _is_gone(process), stop_seconds)
    # Children normally end with their parent, a moment later.
    _wait_until(lambda: all(map(_is_gone, family[1:])), 2.0 if _is_gone(process) else 0.0)
    for member in family:
        if not _is_gone(member):
            say(f"pid {member.pid} did not end in time: killing it")
            try:
                member.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
    _wait_until(lambda: all(map(_is_gone, family)), KILL_SECONDS)


def _is_gone(process: psutil.Process) -> bool:
    """Ended; a zombie has ended too and only waits for its parent to look."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def port_number(text: str) -> int:
    """A TCP port from text. Raises ArgumentTypeError, which argparse reports with the flag's name."""
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; expected 1 to {MAX_PORT}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m utils.port_guard", description="Takes a port for a service."
    )
    service = parser.add_mutually_exclusive_group(required=True)
    service.add_argument("--script", help="the service's main file, in this checkout")
    service.add_argument("--page", help="the folder that a page server serves, in this checkout")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--port", required=True, help="a port, or `auto`: the next free one from --start up"
    )
    parser.add_argument("--start", type=port_number, help="where `auto` begins")
    options = parser.parse_args(arguments)
    try:
        if options.port == "auto":
            if options.start is None:
                parser.error("--port auto needs --start")
            print(next_free_port(options.host, options.start))
            return 0
        try:
            port = port_number(options.port)
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --port: {error}")
        is_ours = (
            runs_script(ROOT / options.script)
            if options.script
            else serves_folder(ROOT / options.page)
        )
        print(take_port(options.host, port, is_ours))
        return 0
    except PortUnavailable as error:
        say(str(error))
        return EXIT_HELD


if __name__ == "__main__":
    sys.exit(main())
