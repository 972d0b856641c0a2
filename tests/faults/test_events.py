"""What listeners are told of a job and of everything, also those who come back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.handles import StartEngine, gate, held, hold, paused
from tests.faults.listener import ENDS, Listener, Told, is_in_order, listen
from tests.service import KeyedService, RunningService

# One job's way


@pytest.fixture(scope="module")
def told(engine_service: RunningService) -> tuple[str, list[Told]]:
    """A job from its place in line to its end."""
    ahead_name, name = gate(), gate()
    with held(engine_service):
        ahead = engine_service.submit(f"hold {ahead_name}")
        job_id = engine_service.submit(f"hold {name}", num_inference_steps=6)
        listener = listen(engine_service, job_id)
        listener.wait_for("queued", lambda data: data["position"] == 2)
    listener.wait_for("queued", lambda data: data["position"] == 1)
    engine_service.release(ahead_name)
    engine_service.wait_for_job(ahead)
    with listener:
        listener.wait_for("progress", lambda data: data["stage"] == "denoising")
        listener.wait_for("progress", lambda data: data["eta_ms"] is not None)
        engine_service.release(name)
        return job_id, listener.wait_for_end()


def test_events_of_a_job_come_in_the_order_of_its_way(told: tuple[str, list[Told]]) -> None:
    assert is_in_order([event.name for event in told[1]])


def stages(events: list[Told]) -> set[str]:
    return {event.data["stage"] for event in events if event.name == "progress"}


def test_events_of_a_job_name_every_stage(
    told: tuple[str, list[Told]], engine_service: RunningService
) -> None:
    names = {event.name for event in told[1]}
    assert {"queued", "started", "progress", "succeeded"} <= names
    heard = stages(told[1])
    assert "denoising" in heard
    for _ in range(50):  # only the newest progress is kept: a stage of a moment is not always heard
        if "saving" in heard:
            break
        with listen(engine_service, engine_service.submit("slow")) as listener:
            heard |= stages(listener.wait_for_end())
    assert "saving" in heard


def test_events_tell_each_new_position_while_a_job_waits(told: tuple[str, list[Told]]) -> None:
    positions = [event.data["position"] for event in told[1] if event.name == "queued"]
    assert positions == [2, 1]


def test_events_end_with_the_whole_job(
    told: tuple[str, list[Told]], engine_service: RunningService
) -> None:
    assert told[1][-1].data == engine_service.job(told[0])


def test_events_have_ids_that_grow(told: tuple[str, list[Told]]) -> None:
    ids = [event.id for event in told[1]]
    assert ids == sorted(set(ids))


def test_events_of_progress_count_the_steps(told: tuple[str, list[Told]]) -> None:
    steps = [event.data["step"] for event in told[1] if event.name == "progress"]
    assert steps == sorted(steps) and steps[-1] == 6
    assert {event.data["steps"] for event in told[1] if event.name == "progress"} == {6}


def test_events_of_progress_tell_when_the_end_is_thought_to_come(
    told: tuple[str, list[Told]],
) -> None:
    etas = [event.data["eta_ms"] for event in told[1] if event.name == "progress"]
    measured = [eta for eta in etas if eta is not None]
    assert measured and all(eta >= 0 for eta in measured)


def test_events_of_quick_jobs_are_in_order_whenever_one_begins_to_listen(
    engine_service: RunningService,
) -> None:
    """A job may begin, go on and end between any two lines of the route."""

    def hear(number: int) -> list[str]:
        job_id = engine_service.submit(gate(), num_inference_steps=number % 5 + 1)
        with listen(engine_service, job_id) as listener:
            return [event.name for event in listener.wait_for_end()]

    with ThreadPoolExecutor(4) as pool:
        wrong = [names for names in pool.map(hear, range(120)) if not is_in_order(names)]
    assert wrong == []


def test_events_of_a_job_tell_its_loading_to_whoever_comes_late(start_engine: StartEngine) -> None:
    service = start_engine(TEST_ENGINE="tells_while_loading")
    job_id = service.submit()
    with listen(service, job_id) as early:
        told = early.wait_for("loading", lambda data: data["fraction"] is not None)
    with listen(service, job_id) as late:
        assert late.wait_for("loading").data == told.data
        (service.folder / "models" / "weights").touch()
        assert is_in_order([event.name for event in late.wait_for_end()])
    assert told.data["what"] == "part 1 of 4" and told.data["fraction"] == 0.25


@pytest.mark.parametrize("prompt", ["raise", "oom"])
def test_events_of_a_job_that_fails_end_with_its_error(
    engine_service: RunningService, prompt: str
) -> None:
    with listen(engine_service, engine_service.submit(prompt, width=512)) as listener:
        end = listener.wait_for_end()[-1]
    assert end.name == "failed" and end.data["error"]["code"] in ("internal", "oom")


def test_events_of_a_job_that_is_cancelled_end_at_once(engine_service: RunningService) -> None:
    with held(engine_service):
        job_id = engine_service.submit()
        with listen(engine_service, job_id) as listener:
            listener.wait_for("queued")
            engine_service.client.post(f"/jobs/{job_id}/cancel")
            assert listener.wait_for_end()[-1].name == "cancelled"


def test_events_of_a_job_that_has_ended_are_its_end(engine_service: RunningService) -> None:
    job_id = engine_service.submit()
    engine_service.wait_for_job(job_id)
    with listen(engine_service, job_id) as listener:
        assert [event.name for event in listener.wait_for_end()] == ["succeeded"]


def test_events_of_an_unknown_job_are_404_before_the_stream_begins(
    engine_service: RunningService,
) -> None:
    with listen(engine_service, "nobody") as listener:
        assert (listener.status, listener.content_type) == (404, "application/problem+json")


def test_events_are_an_event_stream_that_nobody_keeps(engine_service: RunningService) -> None:
    with Listener(engine_service, "/events") as listener:
        listener.wait_for("queue")
        assert (listener.status, listener.content_type.partition(";")[0]) == (
            200,
            "text/event-stream",
        )


# Coming back


def test_last_id_resumes_after_the_event_it_names(engine_service: RunningService) -> None:
    job_id, name = hold(engine_service)
    with listen(engine_service, job_id) as first:
        last = first.wait_for("progress").id
    with listen(engine_service, job_id, last) as second:
        engine_service.release(name)
        events = second.wait_for_end()
    assert all(event.id > last for event in events)
    assert [event.name for event in events].count("succeeded") == 1


def test_last_id_after_the_end_tells_what_was_missed(engine_service: RunningService) -> None:
    job_id, name = hold(engine_service)
    with listen(engine_service, job_id) as first:
        last = first.wait_for("progress").id
    engine_service.release(name)
    engine_service.wait_for_job(job_id)
    with listen(engine_service, job_id, last) as second:
        assert second.wait_for_end()[-1].name == "succeeded"


def test_last_id_of_the_end_itself_tells_the_end(engine_service: RunningService) -> None:
    """Who asks again after the end gets an answer that ends, not a stream that stays open."""
    job_id = engine_service.submit()
    with listen(engine_service, job_id) as first:
        last = first.wait_for_end()[-1].id
    with listen(engine_service, job_id, last) as second:
        assert [event.name for event in second.wait_for_end()] == ["succeeded"]


@pytest.mark.parametrize("last_id", ["", "nonsense", "-1", "0", "9" * 19, "9" * 40, "١٢"])
def test_last_id_that_is_none_of_ours_tells_the_present_state_and_the_rest(
    engine_service: RunningService, last_id: str
) -> None:
    """Also one from the future, as after a clock that was set back."""
    with held(engine_service):
        job_id = engine_service.submit()
        with listen(engine_service, job_id, last_id.encode()) as listener:
            listener.wait_for("queued")
            engine_service.client.post(f"/jobs/{job_id}/cancel")
            assert listener.wait_for_end()[-1].name == "cancelled"


def test_last_id_from_the_future_misses_no_step_of_a_running_job(
    engine_service: RunningService,
) -> None:
    with held(engine_service) as job_id, listen(engine_service, job_id, "9" * 19) as listener:
        first = listener.wait_for("progress")
        listener.wait_for("progress", lambda data: True, after=listener.events.index(first) + 1)


def test_last_id_from_the_future_hears_everything_again(engine_service: RunningService) -> None:
    with Listener(engine_service, "/events", "9" * 19) as listener:
        listener.wait_for("queue")
        job_id = engine_service.submit()
        listener.wait_for("succeeded", lambda job: job["id"] == job_id)


def test_last_id_of_everything_tells_the_ends_that_were_missed(
    engine_service: RunningService,
) -> None:
    with Listener(engine_service, "/events") as first:
        last = first.wait_for("queue").id
    job_ids = [engine_service.submit() for _ in range(3)]
    for job_id in job_ids:
        engine_service.wait_for_job(job_id)
    with Listener(engine_service, "/events", last) as second:
        for job_id in job_ids:
            second.wait_for("succeeded", lambda job, job_id=job_id: job["id"] == job_id)
        assert [event.data["id"] for event in second.named("succeeded")] == job_ids


# Everything


@pytest.mark.parametrize("name", ["queue", "gpu"])
def test_everything_has_the_queue_and_the_gpus(engine_service: RunningService, name: str) -> None:
    with Listener(engine_service, "/events") as listener:
        data = listener.wait_for(name).data
    expected = {"queue": {"paused", "running", "queued", "workers"}, "gpu": {"gpus"}}
    assert expected[name] <= data.keys()


def test_everything_tells_the_queue_when_it_is_paused(engine_service: RunningService) -> None:
    with Listener(engine_service, "/events") as listener:
        listener.wait_for("queue", lambda queue: not queue["paused"])
        with paused(engine_service):
            listener.wait_for("queue", lambda queue: queue["paused"])


def test_everything_has_each_jobs_way(engine_service: RunningService) -> None:
    with Listener(engine_service, "/events") as listener:
        listener.wait_for("queue")
        job_id = engine_service.submit("slow", num_inference_steps=3)
        listener.wait_for("succeeded", lambda job: job["id"] == job_id)
        mine = [
            event.name
            for event in listener.events
            if event.data and job_id in (event.data.get("job_id"), event.data.get("id"))
        ]
    assert is_in_order(mine) and {"queued", "started", "progress"} <= set(mine)


# Keys


@pytest.mark.parametrize("path", ["/events", "/jobs/any/events"])
def test_events_need_a_key(keyed_service: KeyedService, path: str) -> None:
    with Listener(keyed_service, path) as listener:
        assert listener.status == 401


@pytest.mark.parametrize("header", ["X-API-Key", "x-key"])
def test_events_take_a_key(keyed_service: KeyedService, header: str) -> None:
    with Listener(keyed_service, "/events", **{header: keyed_service.key}) as listener:
        assert listener.status == 200
        listener.wait_for("queue")


# Over a restart


@pytest.fixture(scope="module")
def returned(start_module_engine: StartEngine) -> tuple[list[Told], list[Told], list[Told]]:
    """What was heard of a job before its service was killed, after, and of everything after."""
    service = start_module_engine()
    job_id, name = hold(service)
    with listen(service, job_id) as first:
        last = first.wait_for("progress").id
    service.kill()
    service.start()
    with Listener(service, "/events", last) as everything, listen(service, job_id, last) as second:
        second.wait_for("progress")
        service.release(name)
        second.wait_for_end()
        everything.wait_for("succeeded", lambda job: job["id"] == job_id)
    return first.events, second.events, everything.events


def test_restart_lets_a_listener_go_on_to_the_end(
    returned: tuple[list[Told], list[Told], list[Told]],
) -> None:
    assert [event.name for event in returned[1] if event.name in ENDS] == ["succeeded"]


def test_restart_goes_on_with_larger_ids(
    returned: tuple[list[Told], list[Told], list[Told]],
) -> None:
    before, after, _ = returned
    assert max(event.id for event in before) < min(event.id for event in after)


def test_restart_tells_those_who_hear_everything_to_ask_anew(
    returned: tuple[list[Told], list[Told], list[Told]],
) -> None:
    assert returned[2][0].name == "reset"
