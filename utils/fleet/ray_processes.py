"""Ray's own processes on this machine: with a token, without statistics, in folders of ours.

Ray reads its environment when it is imported, so `environment` comes first. A first machine's processes live
on when the front door ends by accident, and the next start finds them by `head.json`; a stop ends them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil

from config.errors import ConfigurationError
from config.settings import ROOT, Settings
from utils.fleet.machine import Machine

START_SECONDS = 180.0
STOP_SECONDS = 20.0
OMP = "FLEET_OMP_NUM_THREADS"  # what the operator said, before Ray does
OWNER = "FLEET_OWNER"  # in the environment of all that was started by one start
MIB = 2**20
# Settings that no replica reads: with others the same replicas are kept, and their models.
FRONT_DOORS_OWN = {
    **dict.fromkeys(("server", "queue", "cloud", "cleanup"), True),
    "fleet": {
        "fleet_min_replicas",
        "fleet_max_replicas",
        "fleet_idle_seconds",
        "database_url",
        "fleet_join",
    },
}


def environment(settings: Settings) -> dict[str, str]:
    """This process' environment with what Ray's processes need. Makes the token where there is none.

    Raises ConfigurationError.
    """
    environ = dict(os.environ)
    paths = [str(ROOT), *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path(settings)),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A machine is drained by the front door, before; Ray would wait for replicas, which do not end by themselves.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # Replicas look at the cards themselves; Ray hides them from whom it gave none.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # What a replica logs stands in its file (FLUX_LOG_DIR), and in Ray's.
        "RAY_SERVE_LOG_TO_STDERR": "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        OMP: environ.get(OMP, environ.get("OMP_NUM_THREADS", "")),
    }
    environ.pop("RAY_AUTH_TOKEN", None)  # it would win over the path
    return environ


def fleet_folder(settings: Settings) -> Path:
    return settings.storage.data_dir / "fleet"


def token_path(settings: Settings) -> Path:
    """The file with the fleet's token, readable by its owner alone. Made, or written from FLUX_FLEET_TOKEN."""
    path = fleet_folder(settings) / "token"
    said = settings.fleet.fleet_token.get_secret_value().strip()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if said and (not path.exists() or path.read_text().strip() != said):
            path.unlink(missing_ok=True)
        if not path.exists():
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(handle, "w") as file:
                file.write(said or secrets.token_hex(32))
        path.chmod(0o600)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: the fleet's token cannot be kept: {error.strerror}; check FLUX_DATA_DIR"
        ) from error
    return path


def temporary_folder(folder: Path) -> Path:
    """For Ray's sockets, whose paths must be short: of this user and fleet's folder, and nobody else's.

    Raises ConfigurationError where somebody else's folder stands in its place.
    """
    path = private_folder(folder)
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigurationError(f"{path} is open to others, or theirs; move it away")
    return path / "ray"  # which Ray opens to everybody


def private_folder(folder: Path) -> Path:
    name = sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return Path("/tmp") / f"flux-fleet-{os.getuid()}-{name}"


def remove_temporary(folder: Path) -> None:
    """What Ray left in /tmp for the fleet of a folder; nothing of it may run any more."""
    shutil.rmtree(private_folder(folder), ignore_errors=True)


def _start_arguments(settings: Settings, resources: dict[str, int], folder: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "utils.fleet.ray_command",
        "start",
        "--block",
        "--num-cpus=1",
        "--num-gpus=0",  # a replica takes its card itself, see `machine.take_place`
        f"--resources={json.dumps(resources)}",
        f"--object-store-memory={settings.fleet.fleet_object_store_mib * MIB}",
        f"--dashboard-agent-listen-port={_free_port()}",
        f"--runtime-env-agent-port={_free_port()}",
        "--disable-usage-stats",
        "--include-log-monitor=false",  # what replicas log is in their own files
        f"--temp-dir={temporary_folder(folder)}",
    ]


def join_arguments(
    settings: Settings, resources: dict[str, int], folder: Path, address: str
) -> list[str]:
    """The command that makes this machine a part of the fleet at an address, in the foreground."""
    return [*_start_arguments(settings, resources, folder), f"--address={address}"]


class Head:
    """The first machine's processes: `start`, and `stop` when the fleet ends. One front door has them at a time."""

    def __init__(self, settings: Settings, machine: Machine) -> None:
        self._settings = settings
        self._machine = machine
        self._folder = fleet_folder(settings)
        self._note = self._folder / "head.json"
        self._lock: int | None = None
        self._process: psutil.Process | None = None
        self._owner = new_owner()
        self.log_path = self._folder / "ray.log"

    def start(self) -> str:
        """The address of the cluster's first machine, whose processes run. Raises ConfigurationError."""
        from ray.util import get_node_ip_address

        self._take_lock()
        port = self._settings.fleet.fleet_port
        address = f"{get_node_ip_address()}:{port}"
        given = self._given()
        if self._running() is not None:
            if self._read_note().get("given") == given and answers(address):
                self._process = self._running()
                return address
            self.stop()  # it was started with other settings, or does not answer
        if answers(address):
            raise ConfigurationError(
                f"FLUX_FLEET_PORT = {port}: another program answers there; choose another port"
            )
        arguments = [
            *_start_arguments(self._settings, self._machine.resources, self._folder),
            "--head",
            f"--port={port}",
            f"--ray-client-server-port={_free_port()}",
            f"--dashboard-port={_free_port()}",
            "--dashboard-host=127.0.0.1",
            "--include-dashboard=false",
            "--no-monitor",  # of machines that a cloud would give
        ]
        self._run(arguments, given, is_up=lambda: answers(address))
        return address

    def _run(self, arguments: list[str], given: str, is_up: Callable[[], bool]) -> None:
        """Start Ray's processes and wait until they are up. Raises ConfigurationError."""
        with open(self.log_path, "wb") as output:
            process = subprocess.Popen(
                arguments,
                cwd=ROOT,
                env=os.environ | {OWNER: self._owner},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches the front door alone, which ends it
            )
        born = psutil.Process(process.pid).create_time()
        note = {"pid": process.pid, "born": born, "given": given, "owner": self._owner}
        self._note.write_text(json.dumps(note))
        deadline = time.monotonic() + START_SECONDS
        while not is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                said = self.log_path.read_text(errors="replace").strip().splitlines()[-3:]
                raise ConfigurationError(
                    f"Ray did not start, {self.log_path} says: {' '.join(said) or 'nothing'}"
                )
            time.sleep(0.1)
        self._process = self._running()

    @property
    def is_up(self) -> bool:
        """Whether Ray's processes run, once they were started; they end together when one of them does."""
        process = self._process
        try:
            return process is not None and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def stop(self) -> None:
        """End what runs, and wait for it; nothing where it is another front door's."""
        if self._lock is None:
            return
        # One that a stop has caught being started is not in the note yet.
        end_all(self._folder, self._read_note().get("owner", self._owner), self._running())
        self._note.unlink(missing_ok=True)

    def _take_lock(self) -> None:
        """Ends with this process. Raises ConfigurationError where another front door has it."""
        path = fleet_folder(self._settings) / "front-door.lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ConfigurationError(
                f"another front door of a fleet runs with {fleet_folder(self._settings)}; end it first, or "
                "choose another FLUX_DATA_DIR"
            ) from None
        self._lock = lock

    def _given(self) -> str:
        """What replicas are started with, as a digest: they read this machine's settings once."""
        named = self._settings.model_dump(
            mode="json",
            exclude=FRONT_DOORS_OWN,
        )
        what = [named, self._machine.resources]
        return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def _read_note(self) -> dict[str, Any]:
        try:
            note = json.loads(self._note.read_text())
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def _running(self) -> psutil.Process | None:
        note = self._read_note()
        try:
            process = psutil.Process(note["pid"])
            is_same = abs(process.create_time() - note["born"]) < 1
            return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
        except (KeyError, TypeError, ValueError, psutil.Error):
            return None


def end_all(folder: Path, owner: str, first: psutil.Process | None = None) -> None:
    """See gone what was started for an owner, and what it left in /tmp. `first` is the process that ends the others."""
    started = first or next(iter(_of_owner(owner)), None)
    family = [] if started is None else [started, *_children_of(started)]
    if started is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            started.terminate()
    _end(family, after_seconds=STOP_SECONDS)
    _end(_of_owner(owner), after_seconds=0.0)  # started while they were told to end
    if not _is_in_use(folder):  # two machines of one host may share it
        remove_temporary(folder)


def _of_owner(owner: str) -> list[psutil.Process]:
    """Every process that was started for an owner, and theirs; the oldest first."""
    found = psutil.process_iter(["environ", "create_time"])
    ours = [each for each in found if (each.info["environ"] or {}).get(OWNER) == owner]
    return sorted(ours, key=lambda process: process.info["create_time"])


def _is_in_use(folder: Path) -> bool:
    named = str(private_folder(folder))
    found = psutil.process_iter(["cmdline"])
    return any(named in word for process in found for word in process.info["cmdline"] or ())


def new_owner() -> str:
    return secrets.token_hex(8)


def _children_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _end(processes: list[psutil.Process], after_seconds: float) -> None:
    """See them gone: those that are still there after a while are killed."""
    _, alive = psutil.wait_procs(processes, timeout=after_seconds)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_SECONDS)


def answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
