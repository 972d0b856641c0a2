"""A fleet of real Ray processes: two replicas beside the front door and one on a machine that joins it.

One fleet for the whole file; every test leaves it whole.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from tests.fleet_service import RunningFleet

HERE = ("first/cpu0", "first/cpu1")
ALL = (*HERE, "second/cpu0")
SIZE = {"width": 128, "height": 128, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    running = RunningFleet(
        tmp_path_factory.mktemp("fleet"), TEST_ANYWHERE="1", FLUX_MAX_QUEUE_SIZE="50"
    )
    running.start()
    try:
        running.join("second")
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
    whole.join("second")


def test_killed_front_door_every_job_ends_once_and_replicas_stay(whole: RunningFleet) -> None:
    before = {worker["name"]: worker["pid"] for worker in whole.workers()}
    names = [f"door-{index}" for index in range(len(ALL))]
    held = [holding(whole, name)["id"] for name in names]
    waiting = [whole.submit(f"a cat {index}", **SIZE) for index in range(5)]
    whole.kill_front_door()
    for name in names:
        whole.release(name)
    whole.start()
    whole.wait_for(*ALL)
    ended = [whole.wait_for_job(job_id) for job_id in [*held, *waiting]]
    assert {job["status"] for job in ended} == {"succeeded"}
    assert {job["attempts"] for job in ended} == {1}
    assert {worker["name"]: worker["pid"] for worker in whole.workers()} == before
    staged = [name for name in whole.files() if name.startswith(".staging")]
    assert not staged
    assert all(f"{job['id']}-0.png" in whole.files() for job in ended)


def test_input_picture_reaches_a_machine_that_shares_no_folder(whole: RunningFleet) -> None:
    import base64

    from tests.pictures import file_of, gradient

    names = [f"input-{index}" for index in range(2)]
    held = [holding(whole, name) for name in names]
    picture = base64.b64encode(file_of(gradient(128, 128))).decode()
    done = whole.wait_for_job(whole.submit("a cat", image=picture, strength=0.5))
    assert done["status"] == "succeeded", done
    for name in names:
        whole.release(name)
    assert {job["gpu"] for job in [*held, done]} == set(ALL)


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
