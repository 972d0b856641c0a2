"""A real service in its own process, for tests: started, asked, killed."""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil

from config.settings import ROOT

# The service on a stand-in model; TEST_ENGINE names the loader in `tests/engines.py`.
ENGINE_MAIN = ROOT / "tests" / "main_engine.py"

# Limits, not waits: beside other work a worker's imports alone may take a minute.
START_SECONDS = 180
WAIT_SECONDS = 120
STOP_SECONDS = 40

# Below those that the system gives to clients (from 32768 on): one of these could have the port
# before the service binds it.
PORTS = range(20_000, 32_000)

# For clients of plain HTTP: those of the machine take 20 ms to read.
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _ports() -> Iterator[int]:
    """Those of this process, each in its turn: whoever is given one may bind it a while later. Of processes that share
    the tests each has its own; others begin elsewhere.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    mine = PORTS[number :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))]
    first = secrets.randbelow(len(mine))
    return itertools.cycle([*mine[first:], *mine[:first]])


_TURNS = _ports()


def free_port() -> int:
    """A port that nobody has, and that no test beside this one will be given."""
    for port in _TURNS:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("there are ports without end")


class RunningService:
    """`main_<precision>.py` on a free port with its own folders under `folder`.

    `environ` holds FLUX_* settings. `client` is an httpx2 client with the base address set.
    """

    def __init__(
        self, folder: Path, *, precision: str = "bf16", main: Path | None = None, **environ: str
    ):
        self.folder = folder
        self.port = int(environ.pop("FLUX_PORT", free_port()))
        self.url = f"http://127.0.0.1:{self.port}"
        self._main = main or ROOT / f"main_{precision}.py"
        self._environ = {
            "FLUX_PORT": str(self.port),
            "FLUX_OUTPUT_DIR": str(folder / "generated_images"),
            "FLUX_DATA_DIR": str(folder / "data"),
            "FLUX_LORA_DIR": str(folder / "loras"),
            "FLUX_LOG_DIR": str(folder / "logs"),
            "FLUX_GPUS": "none",
            "FLUX_MODELS_DIR": str(folder / "models"),
            "FLUX_ALLOW_DOWNLOAD": "false",
            "FLUX_MIN_FREE_MIB": "0",
            **environ,
        }
        self.log_path = folder / "service.log"
        self.process: subprocess.Popen[bytes]
        self.client = httpx2.Client(base_url=self.url, timeout=120, verify=NO_CERTIFICATES)

    @property
    def output_dir(self) -> Path:
        return Path(self._environ["FLUX_OUTPUT_DIR"])

    @property
    def lora_dir(self) -> Path:
        return Path(self._environ["FLUX_LORA_DIR"])

    def start(self, *, wait: bool = True) -> RunningService:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Nor the name of the test that starts it, which may hold what a test looks for.
        ours = ("FLUX_", "PYTEST_CURRENT_TEST")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(self._main)],
                cwd=ROOT,
                env={**inherited, **self._environ},
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait_until(lambda: self._answers(), START_SECONDS, "did not answer")
        return self

    def wait_for_workers(self) -> None:
        """Until every worker is up and idle."""
        self.wait_until(
            lambda: all(w["state"] == "idle" for w in self.workers()),
            START_SECONDS,
            "has no idle worker",
        )

    def workers(self) -> list[dict]:
        return self.client.get("/queue").json()["workers"]

    def wait_until(
        self,
        condition,
        seconds: float = WAIT_SECONDS,
        what: str = "condition not met",
        pause_seconds: float = 0.05,
    ) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the service ended: {self.log()}"
            assert time.monotonic() < deadline, f"the service {what}: {self.log()}"
            time.sleep(pause_seconds)

    def generate(self, **body) -> httpx2.Response:
        return self.client.post("/generate", json={"prompt": "a red balloon", **body})

    def submit(self, prompt: str = "a red balloon", **body) -> str:
        """Put a job into the queue; returns its id."""
        answer = self.client.post(
            "/jobs", json={"prompt": prompt, "width": 128, "height": 128, **body}
        )
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def job(self, job_id: str) -> dict:
        return self.client.get(f"/jobs/{job_id}").json()

    def wait_for_job(self, job_id: str, *statuses: str, seconds: float = WAIT_SECONDS) -> dict:
        """The job when it has one of the statuses; without any: when it has ended."""
        statuses = statuses or ("succeeded", "failed", "cancelled")
        self.wait_until(
            lambda: self.job(job_id)["status"] in statuses, seconds, f"has {job_id} not {statuses}"
        )
        return self.job(job_id)

    def wait_until_at_work(self, job_id: str) -> None:
        """Until a worker has the job: that it runs is written down a moment before."""
        self.wait_until(
            lambda: any(job_id in worker["job_ids"] for worker in self.workers()),
            what=f"has given {job_id} to no worker",
        )

    def wait_until_quiet(self) -> None:
        """Until nothing waits and nothing runs: what tests before have left has ended."""

        def is_quiet() -> bool:
            queue = self.client.get("/queue").json()
            return queue["queued"] == 0 and all(w["state"] == "idle" for w in queue["workers"])

        self.wait_until(is_quiet, what="does not come to rest")

    def release(self, name: str = "hold") -> None:
        """Let the jobs of `tests/engines.py` go on that wait for the file `name`."""
        folder = Path(self._environ["FLUX_MODELS_DIR"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()

    def files(self) -> set[str]:
        """What lies in the output folder, staging included, thumbnails not."""
        found = (path for path in self.output_dir.rglob("*") if path.is_file())
        names = {str(path.relative_to(self.output_dir)) for path in found}
        return {name for name in names if not name.startswith(".thumbnails/")}

    def kill(self) -> None:
        """`kill -9` of the service's own process; its workers must follow by themselves."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait(STOP_SECONDS)
        _, alive = psutil.wait_procs(children, timeout=STOP_SECONDS)
        assert not alive, f"children left behind: {alive}"

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Send the signal and wait; returns the exit status. No child may stay."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal_number)
        status = self.process.wait(STOP_SECONDS)
        _, alive = psutil.wait_procs(children, timeout=STOP_SECONDS)
        assert not alive, f"children left behind: {alive}"
        return status

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.stop()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")[-4000:]

    def _answers(self) -> bool:
        try:
            return self.client.get("/health/live").status_code == 200
        except httpx2.TransportError:
            return False


class KeyedService(RunningService):
    """A service on the scripted stand-in model that asks for keys; `client` sends the one of its settings."""

    key = "key-of-the-settings-0123456789"

    def __init__(self, folder: Path, **environ: str) -> None:
        super().__init__(
            folder,
            main=ENGINE_MAIN,
            TEST_ENGINE="scripted",
            FLUX_API_KEYS=self.key,
            **environ,
        )
        self.client.headers["X-API-Key"] = self.key

    @property
    def data_dir(self) -> Path:
        return Path(self._environ["FLUX_DATA_DIR"])

    def make_key(self, *scopes: str, **limits: object) -> str:
        """A new key's secret."""
        body = {"name": secrets.token_hex(8), "scopes": scopes or ("generate",), **limits}
        answer = self.client.post("/admin/keys", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()["key"]

    def as_key(self, key: str) -> httpx2.Client:
        """A client that sends another key. Close it."""
        return httpx2.Client(
            base_url=self.url,
            timeout=120,
            headers={"Authorization": f"Bearer {key}"},
            verify=NO_CERTIFICATES,
        )
