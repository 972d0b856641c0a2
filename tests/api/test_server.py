"""The process: how it starts or refuses to, how it ends, and what is left after it was killed."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi import FastAPI

from api import server
from config.settings import ROOT, Settings
from tests.operations.checkout import clean_environment
from tests.service import RunningService
from utils import sql

Start = Callable[..., RunningService]
Serve = Callable[..., tuple[int, str]]
Refuses = Callable[..., str]

EXIT_USAGE = 64
EXIT_NOT_BUILT = 69
EXIT_AGAIN = 75
EXIT_CONFIGURATION = 78
STOP_SECONDS = 60  # a limit, not a wait


# Runs main_bf16.py again and again, each time in a process of its own that has imported what it imports. A line are its
# settings and where stdout and stderr go; the answer is the exit status.
STARTER = """
import json, os, runpy, signal, sys
from api import server
sys.argv = ["main_bf16.py"]
for line in sys.stdin:
    environ, log = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        signal.alarm(60)  # one that does not refuse
        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
            os.dup2(1, 2)
            os.environ.update(environ)
            runpy.run_path("main_bf16.py", run_name="__main__")
        except SystemExit as end:
            status = end.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Starter:
    """Starts services that are to refuse, for a tenth of what Python and its imports take."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", STARTER], cwd=ROOT, text=True, env=clean_environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def start(self, environ: dict[str, str], log: Path) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps([environ, str(log)]), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    starter = Starter()
    yield starter
    starter.close()


@pytest.fixture
def serve(starter: Starter) -> Serve:
    """Run a service that is to refuse its start; returns exit status and what it said."""

    def run(folder: Path, **environ: str) -> tuple[int, str]:
        service = RunningService(folder, **environ)
        service.client.close()
        folder.mkdir(parents=True, exist_ok=True)
        status = starter.start(service._environ, service.log_path)
        return status, service.log_path.read_text()

    return run


@pytest.fixture
def refuses(serve: Serve) -> Refuses:
    """The words of a service that refuses its start: one sentence, no trace."""

    def run(folder: Path, **environ: str) -> str:
        status, text = serve(folder, **environ)
        assert status == EXIT_CONFIGURATION, text
        assert "Traceback" not in text
        (line,) = [line for line in text.splitlines() if line.startswith("flux-api-bf16: ")]
        return line

    return run


def test_main_file_with_an_argument_says_who_takes_it() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "main_bf16.py"), "--help"], capture_output=True, text=True
    )
    assert done.returncode == EXIT_USAGE
    assert "--help" in done.stderr and "start_bf16_api.sh" in done.stderr


def hold(service: RunningService) -> tuple[str, str]:
    gate = uuid.uuid4().hex
    job_id = service.submit(f"hold {gate}")
    service.wait_for_job(job_id, "running")
    return job_id, gate


# Killed


def test_service_killed_begins_again_where_it_was(start_engine: Start) -> None:
    service = start_engine()
    running, gate = hold(service)
    waiting = [service.submit(num_images=2) for _ in range(5)]
    cancelled = service.submit()
    service.client.post(f"/jobs/{cancelled}/cancel")
    staging = service.output_dir / ".staging"
    staging.mkdir(exist_ok=True)
    (staging / f"{running}-7.png").write_bytes(b"half a picture")
    service.kill()
    service.release(gate)
    service.start()
    jobs = [service.wait_for_job(job_id) for job_id in (running, *waiting)]
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert [job["attempts"] for job in jobs] == [2, 1, 1, 1, 1, 1]
    started = [job["started_at"] for job in jobs]
    assert started == sorted(started)
    assert service.job(cancelled)["status"] == "cancelled"
    expected = {image["filename"] for job in jobs for image in job["result"]["images"]}
    assert service.files() == expected and len(expected) == 11


def test_service_killed_keeps_every_job_it_answered(start_engine: Start) -> None:
    service = start_engine(wait_for_workers=False)
    answered = [service.submit() for _ in range(20)]
    service.kill()
    service.start()
    assert all(service.job(job_id)["status"] != "failed" for job_id in answered)
    listed = service.client.get("/jobs?limit=500").json()["jobs"]
    assert [job["id"] for job in listed] == answered[::-1]


def test_service_beside_another_leaves_its_staged_pictures_alone(
    engine_service: RunningService, start_engine: Start
) -> None:
    """Two services may share an output folder: by default the FP4 and the BF16 service do."""
    first = engine_service
    gate = uuid.uuid4().hex
    job_id = first.submit(f"hold-late {gate}", num_images=8)
    first.wait_until(lambda: any(job_id in name for name in first.files()))
    start_engine(FLUX_OUTPUT_DIR=str(first.output_dir), wait_for_workers=False)
    first.release(gate)
    assert first.wait_for_job(job_id)["status"] == "succeeded"


# Told to end


def test_sigterm_ends_the_running_job_and_keeps_the_others(start_engine: Start) -> None:
    service = start_engine(FLUX_DRAIN_SECONDS="60")
    with ThreadPoolExecutor(3) as pool:
        gate = uuid.uuid4().hex
        running = pool.submit(service.generate, prompt=f"hold {gate}")
        service.wait_until(lambda: service.client.get("/queue").json()["running"])
        waiting = [pool.submit(service.generate, seed=seed) for seed in (1, 2)]
        service.wait_until(lambda: service.client.get("/queue").json()["queued"] == 2)
        submitted = [service.submit() for _ in range(2)]
        service.process.send_signal(signal.SIGTERM)
        for future in waiting:
            answer = future.result()
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
        assert not running.done()
        service.release(gate)
        assert running.result().status_code == 200
        assert service.process.wait(STOP_SECONDS) == 0
    service.start()
    for job_id in submitted:
        job = service.wait_for_job(job_id)
        assert (job["status"], job["attempts"]) == ("succeeded", 1)


@pytest.mark.limit
def test_sigterm_puts_a_job_that_takes_too_long_back(start_engine: Start) -> None:
    service = start_engine(FLUX_DRAIN_SECONDS="0.5")
    job_id, gate = hold(service)
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 10
    service.release(gate)
    service.start()
    job = service.wait_for_job(job_id)
    assert (job["status"], job["attempts"]) == ("succeeded", 1)


@pytest.mark.limit
def test_sigterm_while_a_client_waits_takes_no_longer_than_the_drain(start_engine: Start) -> None:
    """`drain_seconds` is how long a stop waits for running jobs: once, not once per part."""
    service = start_engine(FLUX_DRAIN_SECONDS="6")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(service.generate, prompt=f"hold {uuid.uuid4().hex}")
        service.wait_until(lambda: service.client.get("/queue").json()["running"])
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 6 + 5
        assert waiting.result().status_code == 503


def test_sigterm_answers_who_is_still_sending(start_engine: Start) -> None:
    service = start_engine(wait_for_workers=False)
    head = f"PUT /loras/a.safetensors HTTP/1.1\r\nHost: 127.0.0.1:{service.port}\r\n"
    with socket.create_connection(("127.0.0.1", service.port)) as sender:
        start = (ROOT / "models" / "embedded-loras" / "sketch.safetensors").read_bytes()[:20_000]
        sender.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode() + start)
        service.wait_until(lambda: list(service.lora_dir.glob(".incoming/*")))
        service.process.send_signal(signal.SIGTERM)
        answer = sender.makefile("rb").read().decode()
    assert service.process.wait(STOP_SECONDS) == 0
    assert answer.startswith("HTTP/1.1 503 ") and "the service is stopping" in answer
    assert not list(service.lora_dir.glob(".incoming/*"))
    assert "Traceback" not in service.log()


@pytest.mark.limit
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_while_workers_start_exits_0(
    start_engine: Start, tmp_path: Path, signal_number: int
) -> None:
    service = start_engine(
        wait_for_workers=False, TEST_ENGINE="waits_at_start", TEST_GATE=str(tmp_path / "never")
    )
    began = time.monotonic()
    assert service.stop(signal_number) == 0
    assert time.monotonic() - began < 12


@pytest.mark.limit
def test_sigterm_while_a_worker_is_replaced_exits_0(start_engine: Start) -> None:
    service = start_engine()
    service.wait_for_job(service.submit("kill-once gate"), "queued", "succeeded")
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 12


# Refuses to start


def test_second_instance_on_the_same_data_refuses(
    engine_service: RunningService, refuses: Refuses, tmp_path: Path
) -> None:
    job_id = engine_service.submit()
    text = refuses(tmp_path, FLUX_DATA_DIR=str(engine_service.folder / "data"))
    assert "in use by another instance" in text and "FLUX_DATA_DIR" in text
    assert engine_service.wait_for_job(job_id)["status"] == "succeeded"


@pytest.mark.parametrize("damage", ["overwritten", "cut", "text", "head", "row"])
def test_damaged_database_refuses_and_is_left_as_it_is(
    tmp_path: Path, damage: str, refuses: Refuses
) -> None:
    path = tmp_path / "data" / "bf16.sqlite3"
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        schema = "".join(sql.migrations().values())
        db.executescript(f"{schema} PRAGMA user_version = {sql.schema_version()};")
        db.executemany(
            "INSERT INTO job (id, status, request, model, owner, created_at)"
            " VALUES (?, 'queued', ?, '', '', '')",
            [(str(i), "x" * 500) for i in range(200)],  # no JSON, as after a byte that has changed
        )
    db.close()
    whole = path.read_bytes()
    broken = {
        "overwritten": whole[:5000] + b"\xa5" * 20_000 + whole[25_000:],
        "cut": whole[: len(whole) // 2],
        "text": b"this is no database " * 500,
        "head": b"\xa5" * 100 + whole[100:],
        "row": whole,
    }[damage]
    path.write_bytes(broken)
    text = refuses(tmp_path)
    assert str(path) in text and "damaged" in text
    assert path.read_bytes() == broken


def test_database_of_a_newer_version_refuses_and_is_left_as_it_is(
    tmp_path: Path, refuses: Refuses
) -> None:
    path = tmp_path / "data" / "bf16.sqlite3"
    path.parent.mkdir()
    newer = sql.schema_version() + 1
    with sqlite3.connect(path) as db:
        schema = "".join(sql.migrations().values())
        db.executescript(f"{schema} PRAGMA user_version = {newer};")
    db.close()
    before = path.read_bytes()
    text = refuses(tmp_path)
    assert "newer version" in text and str(newer) in text
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["FLUX_DATA_DIR", "FLUX_OUTPUT_DIR", "FLUX_LOG_DIR"])
def test_folder_that_cannot_be_made_refuses(tmp_path: Path, name: str, refuses: Refuses) -> None:
    (tmp_path / "file").write_text("in the way")
    text = refuses(tmp_path, **{name: str(tmp_path / "file" / "folder")})
    assert str(tmp_path / "file") in text


def test_lora_folder_that_is_a_file_refuses(tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / "file").write_text("in the way")
    text = refuses(tmp_path, FLUX_LORA_DIR=str(tmp_path / "file"))
    assert str(tmp_path / "file") in text and "FLUX_LORA_DIR" in text


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({"FLUX_HOST": "0.0.0.0"}, "FLUX_API_KEYS"),
        ({"FLUX_MODEL": "no-such-model"}, "FLUX_MODEL"),
        ({"FLUX_GPUS": "0"}, "GPU 0"),
        ({"FLUX_PROT": "1"}, "FLUX_PORT"),
    ],
    ids=["exposed", "model", "GPU", "typo"],
)
def test_wrong_setting_refuses(
    tmp_path: Path, environ: dict[str, str], word: str, refuses: Refuses
) -> None:
    assert word in refuses(tmp_path, **environ)


def test_refusal_is_in_the_log_too(tmp_path: Path, serve: Serve) -> None:
    _, text = serve(tmp_path, FLUX_MODEL="no-such-model")
    [line] = [
        said
        for said in map(json.loads, (tmp_path / "logs" / "bf16.log").read_text().splitlines())
        if said.get("action") == "start_refused"
    ]
    assert line["level"] == "error" and "FLUX_MODEL" in line["message"]
    assert text.count(line["message"]) == 1  # on the console once


def test_port_in_use_refuses_and_says_so(tmp_path: Path, serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, text = serve(tmp_path, FLUX_PORT=str(port))
    assert status == EXIT_AGAIN, text  # whoever has it may end
    assert f"FLUX_PORT = {port} is in use" in text and "Traceback" not in text
    assert not (tmp_path / "data").exists()  # nothing had begun


@pytest.mark.parametrize(
    ("host", "words"),
    [("192.0.2.1", "no address of this machine"), ("draw.invalid", "has no address here")],
)
def test_address_that_is_not_here_refuses(
    tmp_path: Path, serve: Serve, host: str, words: str
) -> None:
    status, text = serve(tmp_path, FLUX_HOST=host, FLUX_API_KEYS="key-of-the-settings-0123456789")
    assert status == EXIT_AGAIN, text  # it may come with the network
    assert f"FLUX_HOST = {host!r}" in text and words in text and "Traceback" not in text


# Not built


def test_connection_at_rest_is_kept_longer_than_clients_and_load_balancers_keep_theirs() -> None:
    config = server.configured(FastAPI(), Settings())
    assert config.timeout_keep_alive > 60


def test_service_without_a_loader_exits_69_and_says_so(tmp_path: Path) -> None:
    code = (
        "import dataclasses, sys; from api import server; from models.precision import profile_of;"
        "bare = dataclasses.replace(profile_of('bf16'), loader=None, not_built='it is not built yet');"
        "server.profile_of = lambda name: bare; sys.exit(server.serve('bf16'))"
    )
    environ = {"FLUX_DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert done.returncode == EXIT_NOT_BUILT
    assert "not built yet" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


# Engines


def test_engine_that_nobody_has_refuses_and_names_those_there_are(
    tmp_path: Path, refuses: Refuses
) -> None:
    text = refuses(tmp_path, FLUX_ENGINE="turbo")
    assert "FLUX_ENGINE" in text and "turbo" in text
    assert all(name in text for name in ("auto", "diffusers", "nvfp4", "nunchaku"))


def test_engine_of_another_service_leaves_this_one_its_own(start_engine: Start) -> None:
    service = start_engine(FLUX_ENGINE="nvfp4", wait_for_workers=False)
    assert service.client.get("/health/live").status_code == 200
    assert "engine_of_another" in service.log()


def test_main_import_does_nothing(tmp_path: Path) -> None:
    """No settings are read: a wrong one shows when the application is built. The other main differs in a word."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import main_bf16"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"FLUX_PORT": "no"}, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(tmp_path.iterdir()) == []
