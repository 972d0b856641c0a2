"""Two front doors of one real fleet over a real PostgreSQL: processes that are killed and told to stop.

One fleet for the whole file; every test leaves both doors up.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.fleet_service import AnotherDoor, RunningFleet
from tests.postgres import PASSWORD, PostgresServer
from tests.service import STOP_SECONDS

HERE = ("first/cpu0", "first/cpu1")
SIZE = {"width": 128, "height": 128, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def doors(
    tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer
) -> Iterator[tuple[RunningFleet, AnotherDoor]]:
    folder = tmp_path_factory.mktemp("doors")
    with postgres.database() as url:
        shared = {"TEST_ANYWHERE": "1", "FLUX_DATABASE_URL": url}
        first = RunningFleet(folder / "first", **shared)
        second: AnotherDoor | None = None
        try:
            first.start()
            first.wait_for(*HERE)
            second = AnotherDoor(first, folder / "second", **shared)
            second.start()
            both_are_up(first, second)
            yield first, second
        finally:
            if second is not None:
                second.close()
            first.close()


def both_are_up(*doors: RunningFleet | AnotherDoor) -> None:
    for door in doors:
        door.wait_until(lambda door=door: door.states() == dict.fromkeys(HERE, "idle"), 120)


def test_either_door_draws_and_gives_the_pictures_of_the_other(
    doors: tuple[RunningFleet, AnotherDoor],
) -> None:
    for here, there in (doors, doors[::-1]):
        answer = here.client.post("/generate", json={"prompt": "a cat", **SIZE, "seed": 3})
        assert answer.status_code == 200, answer.text
        job_id = answer.json()["id"]
        pictures = [door.client.get(f"/jobs/{job_id}/image").content for door in (here, there)]
        assert pictures[0] == pictures[1] and pictures[0].startswith(b"\x89PNG")
        assert there.job(job_id)["gpu"] in HERE


def test_either_door_shows_the_fleet(doors: tuple[RunningFleet, AnotherDoor]) -> None:
    for door in doors:
        fleet = door.client.get("/dashboard/api/fleet").json()
        assert [len(node["replicas"]) for node in fleet["nodes"]] == [2]
        assert fleet["held"] is None
        door.wait_until(lambda door=door: routing(door) == [False, True])


def routing(door: RunningFleet | AnotherDoor) -> list[bool]:
    """Of each door that is known there whether it routes."""
    there = door.client.get("/dashboard/api/fleet").json()["doors"]
    return sorted(each["routes"] for each in there)


def test_door_without_replicas_follows_a_job_and_cancels_it(
    doors: tuple[RunningFleet, AnotherDoor],
) -> None:
    first, second = doors
    job_id = first.submit("hold never")
    second.wait_for_job(job_id, "running")
    second.wait_until(lambda: job_id in second.client.get("/queue").json()["running"])
    assert second.client.post(f"/jobs/{job_id}/cancel").json()["cancelled"] is True
    both_are_up(*doors)
    assert first.job(job_id)["status"] == "cancelled"


def test_killed_router_is_followed_and_its_clients_find_their_jobs(
    doors: tuple[RunningFleet, AnotherDoor],
) -> None:
    first, second = doors
    held = [first.submit(f"hold kill{number}", seed=7) for number in range(3)]
    for job_id in held[:2]:
        second.wait_for_job(job_id, "running")
    first.kill_front_door()
    for number in range(3):
        second.release(f"kill{number}")
    for job_id in held:
        done = second.wait_for_job(job_id, seconds=120)
        assert (done["status"], done["attempts"], done["request"]["seed"]) == ("succeeded", 1, 7)
        assert second.client.get(f"/jobs/{job_id}/image").status_code == 200
    first.start()
    both_are_up(*doors)
    assert first.client.get(f"/jobs/{held[0]}/image").status_code == 200


def test_stopped_door_leaves_the_fleet_as_it_is(doors: tuple[RunningFleet, AnotherDoor]) -> None:
    """The second routes since the first was killed: the first goes on, with the same replicas."""
    first, second = doors
    pids = {worker["pid"] for worker in first.workers()}
    held = second.submit("hold stop")
    waiting = second.submit("after")
    first.wait_for_job(held, "running")
    second.process.send_signal(signal.SIGTERM)
    second.release("stop")
    assert second.process.wait(STOP_SECONDS) == 0, second.log()
    for job_id in (held, waiting):
        done = first.wait_for_job(job_id, seconds=120)
        assert (done["status"], done["attempts"]) == ("succeeded", 1)
    first.wait_for(*HERE)
    assert {worker["pid"] for worker in first.workers()} == pids
    second.start()
    both_are_up(*doors)


def test_password_of_the_database_is_nowhere(doors: tuple[RunningFleet, AnotherDoor]) -> None:
    first, second = doors
    shown = [
        door.client.get(path).text for door in doors for path in ("/info", "/health", "/metrics")
    ]
    shown += [door.log_path.read_text(errors="replace") for door in doors]
    shown += [path.read_text(errors="replace") for path in first.folder.rglob("*.log")]
    assert not any(PASSWORD in text or "s3cret" in text for text in shown)
