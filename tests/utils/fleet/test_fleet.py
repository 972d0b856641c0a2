"""A fleet of real Ray processes: a Mac with two replicas beside the front door, and a machine of four bits that joins it.

One fleet for the whole file; every test leaves it whole.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from config.settings import ROOT
from tests import mflux_stand_in
from tests.api.dialects.test_fleet import PYTHON_EXAMPLE, node_runs
from tests.fleet_service import RunningFleet
from tests.operations.documents import documents
from tests.pictures import file_of, gradient
from utils.fleet.ray_processes import private_folder

HERE = ("first/cpu0", "first/cpu1")
ALL = (*HERE, "second/cpu0")
CURL_EXAMPLE = """curl --fail -s -o mflux_output.png http://localhost:11435/api/generate-image \\
-H "Content-Type: application/json" \\
-d '{
"model": "z-image-turbo",
"prompt": "a neon-lit Tokyo alley at midnight, cyberpunk aesthetic",
"width": 1024,
"height": 1024,
"steps": 4,
"quantize": 8
}'"""
UNBOUND = """
import asyncio, json, sys
import ray
from ray import serve
from tests.utils.fleet.test_replica import REQUEST

ray.init(address=sys.argv[1], namespace="flux", log_to_driver=False)
handle = serve.get_app_handle("flux-bf16").options(method_name="run", stream=True)

async def main():
    parts = [each async for each in handle.remote("unbound", json.dumps(REQUEST.to_json()))]
    print(parts[0], parts[1][1][1:4].decode())

asyncio.run(main())
"""
SIZE = {"width": 128, "height": 128, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    folder = tmp_path_factory.mktemp("fleet")
    mflux_stand_in.install(folder / "bin")
    running = RunningFleet(
        folder,
        TEST_ANYWHERE="1",
        TEST_MAC="first",
        PATH=f"{folder / 'bin'}:{os.environ['PATH']}",
        FLUX_MAX_QUEUE_SIZE="50",
    )
    running.start()
    try:
        running.join("second", precision="fp4")
        running.wait_for(*ALL)
        yield running
    finally:
        running.close()


@pytest.fixture
def whole(fleet: RunningFleet) -> Iterator[RunningFleet]:
    """The fleet with all of its replicas, before and after."""
    fleet.wait_for(*ALL)
    yield fleet
    fleet.wait_for(*ALL)


def holding(fleet: RunningFleet, name: str) -> dict:
    """A job that runs until its file is there, when it runs."""
    job_id = fleet.submit(f"hold {name}", seed=7)
    return fleet.wait_for_job(job_id, "running")


def replica_pid(fleet: RunningFleet, name: str) -> int:
    return next(worker["pid"] for worker in fleet.workers() if worker["name"] == name)


def test_picture_is_drawn_and_the_answer_names_its_machine(whole: RunningFleet) -> None:
    answer = whole.client.post("/generate?format=raw", json={"prompt": "a cat", **SIZE, "seed": 3})
    assert answer.status_code == 200, answer.text
    assert answer.content.startswith(b"\x89PNG")
    assert answer.headers["X-Fleet-Node"] in ("first", "second")
    assert answer.headers["X-Fleet-Retries"] == "0"


def test_same_request_has_the_same_bytes_on_every_replica(whole: RunningFleet) -> None:
    names = [f"same-{index}" for index in range(len(ALL))]
    held = [holding(whole, name) for name in names]
    assert {job["gpu"] for job in held} == set(ALL)  # so each has one
    for name in names:
        whole.release(name)
    pictures = set()
    for job in held:
        whole.wait_for_job(job["id"], "succeeded")
        pictures.add(whole.client.get(f"/jobs/{job['id']}/image").content[-2000:])
    assert len(held) == 3 and len({job["request"]["seed"] for job in held}) == 1


def test_cancelled_job_leaves_its_replica(whole: RunningFleet) -> None:
    job = holding(whole, "never-cancel")
    assert whole.client.post(f"/jobs/{job['id']}/cancel").json()["cancelled"] is True
    whole.wait_for(*ALL)
    assert whole.job(job["id"])["status"] == "cancelled"
    assert whole.files() == {name for name in whole.files() if job["id"] not in name}


def test_killed_replica_its_job_is_drawn_elsewhere_with_the_same_seed(whole: RunningFleet) -> None:
    job = holding(whole, "replica")
    os.kill(replica_pid(whole, job["gpu"]), signal.SIGKILL)
    whole.wait_until(lambda: whole.job(job["id"])["attempts"] == 2)
    whole.release("replica")
    done = whole.wait_for_job(job["id"])
    assert done["status"] == "succeeded"
    assert done["gpu"] != job["gpu"] and done["request"]["seed"] == job["request"]["seed"] == 7


def test_killed_worker_process_its_job_is_drawn_by_another_replica(whole: RunningFleet) -> None:
    job_id = whole.submit("kill-once worker-process", seed=7)
    done = whole.wait_for_job(job_id)
    assert (done["status"], done["attempts"]) == ("succeeded", 2)


def test_job_that_ends_two_workers_is_poison(whole: RunningFleet) -> None:
    done = whole.wait_for_job(whole.submit("kill always"))
    assert (done["status"], done["error"]["code"], done["attempts"]) == ("failed", "poison", 2)


def test_killed_machine_its_job_is_drawn_elsewhere(whole: RunningFleet) -> None:
    names = [f"machine-{index}" for index in range(len(ALL))]
    held = {job["gpu"]: job for job in (holding(whole, name) for name in names)}
    there = held["second/cpu0"]
    whole.kill_machine("second")
    whole.wait_until(lambda: "second/cpu0" not in whole.states())
    for name in names:
        whole.release(name)
    for job in held.values():
        assert whole.wait_for_job(job["id"])["status"] == "succeeded"
    assert whole.job(there["id"])["attempts"] == 2
    whole.join("second", precision="fp4")


def test_killed_front_door_every_job_ends_once_and_replicas_stay(whole: RunningFleet) -> None:
    before = {worker["name"]: worker["pid"] for worker in whole.workers()}
    names = [f"door-{index}" for index in range(len(ALL))]
    held = [holding(whole, name)["id"] for name in names]
    waiting = [whole.submit(f"a cat {index}", **SIZE) for index in range(5)]
    whole.kill_front_door()
    for name in names:
        whole.release(name)
    whole.start()
    waiting.append(whole.submit("a cat at once", **SIZE))  # before any replica is there again
    whole.wait_for(*ALL)
    ended = [whole.wait_for_job(job_id) for job_id in [*held, *waiting]]
    assert {job["status"] for job in ended} == {"succeeded"}
    assert {job["attempts"] for job in ended} == {1}
    assert {worker["name"]: worker["pid"] for worker in whole.workers()} == before
    staged = [name for name in whole.files() if name.startswith(".staging")]
    assert not staged
    assert all(f"{job['id']}-0.png" in whole.files() for job in ended)


def test_input_picture_reaches_a_machine_that_shares_no_folder(whole: RunningFleet) -> None:
    names = [f"input-{index}" for index in range(2)]
    held = [holding(whole, name) for name in names]
    picture = base64.b64encode(file_of(gradient(128, 128))).decode()
    done = whole.wait_for_job(whole.submit("a cat", image=picture, strength=0.5))
    assert done["status"] == "succeeded", done
    for name in names:
        whole.release(name)
    assert {job["gpu"] for job in [*held, done]} == set(ALL)


def test_drained_machine_begins_nothing_until_it_is_taken_back(whole: RunningFleet) -> None:
    command = next(
        block.text
        for document in documents()
        for block in document.blocks()
        if document.name == "docs/fleet.md" and "api/drain" in block.text
    )
    said = command.replace("8002", str(whole.port)).replace("studio", "second")
    subprocess.run(["bash", "-ec", said], check=True, timeout=60)
    try:
        names = [f"drain-{index}" for index in range(2)]
        held = [holding(whole, name) for name in names]
        waiting = whole.submit("a cat", **SIZE)
        fleet = whole.client.get("/dashboard/api/fleet").json()
        second = next(node for node in fleet["nodes"] if node["node_id"] == "second")
        assert (second["is_draining"], second["is_drained"]) == (True, True)
        assert {job["gpu"] for job in held} == set(HERE)
        assert whole.job(waiting)["status"] == "queued"
    finally:
        body = {"node": "second", "drain": False}
        assert whole.client.post("/dashboard/api/drain", json=body).status_code == 200
    assert whole.wait_for_job(waiting)["gpu"] == "second/cpu0"
    for name in names:
        whole.release(name)
    for job in held:
        whole.wait_for_job(job["id"], "succeeded")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "GET /dashboard/api/fleet lists"),
        ({"node": "third"}, 404, "there is: first, second"),
        ({"node": "second", "drain": "yes"}, 400, "must be true or false"),
    ],
)
def test_drain_of_what_is_not_there_is_refused(
    whole: RunningFleet, body: dict, status: int, words: str
) -> None:
    answer = whole.client.post("/dashboard/api/drain", json=body)
    assert answer.status_code == status and words in answer.json()["error"]


def test_dashboard_tells_of_every_machine(whole: RunningFleet) -> None:
    generated = whole.client.post(
        "/generate", json={"prompt": "a cat", **SIZE, "metadata": {"tags": ["of-a-fleet"]}}
    )
    assert generated.status_code == 200
    stats = whole.client.get("/dashboard/api/image-stats").json()
    assert stats["by_tag"]["of-a-fleet"] == 1
    assert set(stats["by_node"]) <= {"first", "second"}
    assert sum(stats["by_node"].values()) == stats["total"]
    settings = whole.client.get("/dashboard/api/settings").json()
    assert {node["node_id"] for node in settings["nodes"]} == {"first", "second"}
    assert whole.client.get("/dashboard/api/health").json()["vitals"]["nodes_online"] == 2
    answer = whole.client.get("/dashboard")
    assert answer.headers["Location"] == "/ui/dashboard.html"
    assert whole.client.get("/ui/dashboard.html").status_code == 200


def test_clients_of_a_fleet_router_run_unchanged(whole: RunningFleet, tmp_path: Path) -> None:
    namespace: dict = {"httpx": httpx2}
    exec(PYTHON_EXAMPLE.replace("11435", str(whole.port)), namespace)
    path = tmp_path / "out.png"
    namespace["mflux_generate_image"]("an alley", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    call = 'process.stdout.write((await mfluxGenerateImage("an alley")).subarray(1, 4).toString());'
    assert node_runs(whole, call).stdout == "PNG"
    said = subprocess.run(["bash", "-ec", CURL_EXAMPLE.replace("11435", str(whole.port))], cwd=tmp_path, timeout=60)  # fmt: skip
    assert said.returncode == 0
    assert (tmp_path / "mflux_output.png").read_bytes().startswith(b"\x89PNG")


def test_call_that_names_no_replica_goes_to_the_best_by_their_reports(whole: RunningFleet) -> None:
    """What another application in the cluster does, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", UNBOUND, f"127.0.0.1:{whole.fleet_port}"],
        cwd=ROOT,
        env={
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(whole.folder / "data" / "fleet" / "token"),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    # Ray may tell there of what has died before.
    assert "taken PNG" in done.stdout.splitlines(), done.stderr[-2000:]


def test_machine_with_a_wrong_token_does_not_join(whole: RunningFleet, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "utils.fleet.join", f"127.0.0.1:{whole.fleet_port}"],
        cwd=ROOT,
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith("FLUX_")},
            "FLUX_DATA_DIR": str(tmp_path),
            "FLUX_FLEET_NODE": "stranger",
            "FLUX_FLEET_TOKEN": "0" * 64,
            "FLUX_FAKE_GPUS": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 78
    assert "has another token than this machine" in done.stderr
    assert "Traceback" not in done.stderr
    assert set(whole.states()) == set(ALL)


def test_full_queue_is_429(whole: RunningFleet) -> None:
    whole.client.post("/queue/pause")
    try:
        answers = [whole.client.post("/jobs", json={"prompt": "a cat", **SIZE}) for _ in range(51)]
        assert [answer.status_code for answer in answers] == [202] * 50 + [429]
        assert answers[-1].json()["code"] == "queue_full" and answers[-1].headers["Retry-After"]
    finally:
        whole.client.post("/queue/clear")
        whole.client.post("/queue/resume")


def test_stopped_fleet_leaves_no_process(fleet: RunningFleet) -> None:
    """Last in the file."""
    token = fleet.token
    assert len(token) == 64 and token not in fleet.log()
    mode = (fleet.folder / "data" / "fleet" / "token").stat().st_mode
    assert mode & 0o077 == 0
    fleet.close()
    ours = str(fleet.fleet_port)
    left = [p.info for p in psutil.process_iter(["cmdline"]) if ours in str(p.info["cmdline"])]
    assert left == []
    folders = [fleet.folder / "data" / "fleet", fleet.folder / "second" / "data" / "fleet"]
    assert not [folder for folder in folders if private_folder(folder).exists()]
