"""`flux queue`: jobs of services that run."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from cli.failures import Status
from tests.service import RunningService


@pytest.fixture
def held(engine_service: RunningService) -> str:
    """A job that runs until it is let go or cancelled."""
    job_id = engine_service.submit(f"hold {uuid.uuid4().hex}")
    engine_service.wait_for_job(job_id, "running")
    yield job_id
    engine_service.client.post(f"/jobs/{job_id}/cancel")
    engine_service.wait_for_job(job_id)


def test_list_shows_jobs_with_their_state(engine, held: str) -> None:
    done = engine("queue", "list")
    assert done.status == 0
    (line,) = [line for line in done.out.splitlines() if held in line]
    assert "running" in line and "hold" in line
    assert "waiting" in done.err


def test_list_of_a_state_has_no_others(engine, held: str) -> None:
    jobs = engine("queue", "list", "--status", "running", "--json").json["services"][0]["jobs"]
    assert held in [job["id"] for job in jobs]
    assert {job["status"] for job in jobs} == {"running"}


def test_list_of_a_state_that_is_none_names_those_there_are(engine) -> None:
    done = engine("queue", "list", "--status", "done")
    assert done.status == Status.REFUSED and "succeeded" in done.err


def test_prompt_cannot_write_to_the_terminal(engine, engine_service: RunningService) -> None:
    job_id = engine_service.submit("[red]bold[/red] \u202etext")
    engine_service.wait_for_job(job_id, "succeeded")
    done = engine("queue", "list")
    (line,) = [line for line in done.out.splitlines() if job_id in line]
    assert "[red]bold[/red]" in line and "\u202e" not in line


def test_show_tells_the_picture_of_a_job(engine, engine_service: RunningService) -> None:
    job_id = engine_service.submit("shown")
    engine_service.wait_for_job(job_id, "succeeded")
    done = engine("queue", "show", job_id)
    assert "shown" in done.out and f"{engine_service.url}/images/{job_id}-0" in done.out


def test_cancel_ends_jobs(engine, engine_service: RunningService, held: str) -> None:
    waiting = engine_service.submit("never drawn")
    done = engine("queue", "cancel", waiting, held)
    assert done.status == 0 and done.out.count("cancelled") == 2
    engine_service.wait_for_job(held, "cancelled")
    engine_service.wait_for_job(waiting, "cancelled")


def test_cancel_of_one_that_is_not_known_cancels_none(
    engine, engine_service: RunningService, held: str
) -> None:
    done = engine("queue", "cancel", held, "nonesuch", "--json")
    assert (done.status, done.error["code"]) == (Status.REFUSED, "not_found")
    assert engine_service.job(held)["status"] == "running"


def test_cancel_of_one_that_has_ended_says_so(engine, engine_service: RunningService) -> None:
    job_id = engine_service.submit("quick")
    engine_service.wait_for_job(job_id, "succeeded")
    done = engine("queue", "cancel", job_id)
    assert done.status == 0 and "had succeeded already" in done.out


def test_retry_makes_a_new_job(engine, engine_service: RunningService) -> None:
    job_id = engine_service.submit("once more")
    engine_service.wait_for_job(job_id, "succeeded")
    again = engine("queue", "retry", job_id, "--json").json["jobs"][0]["id"]
    assert again != job_id
    assert engine_service.wait_for_job(again, "succeeded")["request"]["prompt"] == "once more"


def test_fetch_writes_the_picture(engine, engine_service: RunningService) -> None:
    job_id = engine_service.submit("fetched")
    engine_service.wait_for_job(job_id, "succeeded")
    done = engine("queue", "fetch", job_id, "-o", "out.png")
    assert (done.status, done.out) == (0, "out.png\n")
    answer = engine_service.client.get(f"/jobs/{job_id}/image")
    assert Path("out.png").read_bytes() == answer.content


def test_fetch_of_one_that_runs_says_to_wait(engine, held: str) -> None:
    done = engine("queue", "fetch", held)
    assert done.status == Status.LATER and "queue watch" in done.err
    assert list(Path().iterdir()) == []


def test_watch_of_a_job_ends_with_it(engine, engine_service: RunningService) -> None:
    job_id = engine_service.submit("slow and watched", num_inference_steps=2)
    done = engine("queue", "watch", job_id, "--json")
    events = [json.loads(line) for line in done.out.splitlines()]
    assert done.status == 0
    assert (events[-1]["event"], events[-1]["id"]) == ("succeeded", job_id)


def test_watch_of_a_job_that_fails_has_its_status(engine, engine_service: RunningService) -> None:
    done = engine("queue", "watch", engine_service.submit("raise"), "--json")
    assert done.status == Status.FAILED
    assert json.loads(done.out.splitlines()[-1])["event"] == "failed"


def test_pause_and_resume(engine, engine_service: RunningService) -> None:
    assert engine("queue", "pause", "--json").json["services"][0]["paused"] is True
    try:
        waiting = engine_service.submit("waits")
        assert engine("queue", "clear", "--json").json["services"][0]["cleared"] >= 1
        engine_service.wait_for_job(waiting, "cancelled")
    finally:
        assert engine("queue", "resume", "--json").json["services"][0]["paused"] is False


def test_watch_of_everything_ends_with_the_service(start_engine, program) -> None:
    running = start_engine()
    watching = program("queue", "watch", "--json", FLUX_URL=running.url)
    assert json.loads(watching.stdout.readline())["event"] == "queue"
    running.stop()
    _, err = watching.communicate(timeout=180)
    assert watching.returncode == Status.UNREACHABLE and "stopping" in err
