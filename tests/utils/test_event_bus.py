"""Events: their ids, those who come back, those who read slowly, those who leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.utils.soak.bench import in_loop
from utils.event_bus import ENDS, KEPT_EVENTS, PENDING_EVENTS, PROGRESS, Event, EventBus

START_MS = 1_700_000_000_000
# Far fewer bytes than what a bus keeps; a guard against a hang, not a measure.
SOON_SECONDS = 30.0


def bus(start_ms: int = START_MS) -> EventBus:
    return EventBus(start_ms)


def names(events: list[Event] | None) -> list[tuple[str, str | None]]:
    assert events is not None
    return [(event.name, event.job_id) for event in events]


def last_id(published: EventBus) -> int:
    heard = published.subscribe(None)
    published.publish("queue")
    published.unsubscribe(heard)
    return heard.take()[-1].id


# Ids


def test_bus_ids_grow() -> None:
    published = bus()
    heard = published.subscribe(None)
    for number in range(50):
        published.publish("queued", f"{number}")
    ids = [event.id for event in heard.take()]
    assert ids == sorted(set(ids))


def test_bus_ids_grow_over_a_restart() -> None:
    before, after = bus(START_MS), bus(START_MS + 1)
    for _ in range(500):
        before.publish("queue")
    assert last_id(after) > last_id(before)


def test_bus_id_that_was_taken_is_not_used_again() -> None:
    published = bus()
    taken = published.next_id()
    assert last_id(published) > taken


def test_bus_ids_fit_into_a_browsers_numbers() -> None:
    in_the_year_2100 = 4_102_444_800_000
    assert last_id(bus(in_the_year_2100)) < 2**53


# Coming back


def test_bus_since_a_known_id_is_everything_after_it() -> None:
    published = bus()
    published.publish("queued", "a")
    known = last_id(published)
    published.publish("started", "a")
    published.publish("queued", "b")
    assert names(published.since(known, None)) == [("started", "a"), ("queued", "b")]


def test_bus_since_for_one_job_leaves_the_others_out() -> None:
    published = bus()
    known = last_id(published)
    for job_id in ("a", "b", "a"):
        published.publish("queued", job_id)
    assert names(published.since(known, "a")) == [("queued", "a")] * 2


def test_bus_since_the_newest_id_is_nothing() -> None:
    published = bus()
    assert published.since(last_id(published), None) == []


def test_bus_since_before_its_first_event_is_everything() -> None:
    published = bus()
    start = published._last_id
    published.publish("queued", "a")
    assert names(published.since(start, None)) == [("queued", "a")]


@pytest.mark.parametrize("far", [1, 10**9])
def test_bus_since_an_id_of_the_future_is_unknown(far: int) -> None:
    published = bus()
    assert published.since(last_id(published) + far, None) is None


def test_bus_since_an_id_of_an_earlier_start_is_unknown() -> None:
    earlier = last_id(bus(START_MS - 60_000))
    published = bus()
    published.publish("queued", "a")
    assert published.since(earlier, None) is None


@pytest.mark.parametrize("unknown", [0, -1])
def test_bus_since_an_id_that_never_was_is_unknown(unknown: int) -> None:
    assert bus().since(unknown, None) is None


def test_bus_since_an_id_that_is_no_longer_kept_is_unknown() -> None:
    published = bus()
    known = last_id(published)
    for _ in range(KEPT_EVENTS):
        published.publish("retrying", "a")
    assert len(published.since(known, None) or []) == KEPT_EVENTS
    published.publish("retrying", "a")
    assert published.since(known, None) is None
    assert published.since(known + 1, None) is not None


def test_bus_since_has_only_the_newest_progress_where_it_happened() -> None:
    published = bus()
    known = last_id(published)
    for step in range(3):
        published.publish(PROGRESS, "a", data={"step": step})
    published.publish("queued", "b")
    published.publish(PROGRESS, "a", data={"step": 3})
    found = published.since(known, None)
    assert names(found) == [("queued", "b"), (PROGRESS, "a")]
    assert found is not None and found[-1].data == {"step": 3}


def test_bus_since_comes_without_previews() -> None:
    published = bus()
    heard, known = published.subscribe("a"), last_id(published)
    published.publish(PROGRESS, "a", preview="jpeg")
    assert [event.preview for event in heard.take()] == ["jpeg"]
    assert [event.preview for event in published.since(known, None) or []] == [None]


@given(st.lists(st.sampled_from(("queued", PROGRESS, "succeeded")), max_size=40), st.data())
def test_bus_since_and_what_was_heard_before_are_everything(
    published_names: list[str], data: st.DataObject
) -> None:
    """Whoever leaves at any event and comes back misses nothing but older progress."""
    published = bus()
    heard = published.subscribe("a")
    known = published._last_id
    left_at = data.draw(st.integers(0, len(published_names)))
    for name in published_names[:left_at]:
        published.publish(name, "a")
        known = heard.take()[-1].id
    for name in published_names[left_at:]:
        published.publish(name, "a")
    missed = published.since(known, "a")
    assert missed is not None
    kept = [name for name in published_names[left_at:] if name != PROGRESS]
    assert [event.name for event in missed if event.name != PROGRESS] == kept
    assert sum(event.name == PROGRESS for event in missed) == (
        PROGRESS in published_names[left_at:]
    )


# Reading slowly


def test_bus_slow_listener_has_only_the_newest_progress() -> None:
    published = bus()
    heard = published.subscribe("a")
    for step in range(5000):
        published.publish(PROGRESS, "a", data={"step": step})
    waiting = heard.take()
    assert [event.data["step"] for event in waiting] == [4999]
    assert not heard.is_behind


def test_bus_slow_listener_has_the_newest_preview_too() -> None:
    """Not every step has one: what is told of the newest comes with it."""
    published = bus()
    heard = published.subscribe("a")
    for step, preview in enumerate(("first", None, "second", None, None)):
        published.publish(PROGRESS, "a", data={"step": step}, preview=preview)
    (waiting,) = heard.take()
    assert (waiting.data["step"], waiting.preview) == (4, "second")
    published.publish(PROGRESS, "a", data={"step": 5})
    assert [event.preview for event in heard.take()] == [None]


def test_bus_slow_listener_has_the_newest_progress_of_each_job() -> None:
    published = bus()
    heard = published.subscribe(None)
    for step in range(100):
        for job_id in ("a", "b"):
            published.publish(PROGRESS, job_id, data={"step": step})
    assert [(event.job_id, event.data["step"]) for event in heard.take()] == [("a", 99), ("b", 99)]


def test_bus_progress_before_another_event_stays_before_it() -> None:
    published = bus()
    heard = published.subscribe("a")
    published.publish(PROGRESS, "a", data={"step": 1})
    published.publish("retrying", "a")
    published.publish(PROGRESS, "a", data={"step": 0})
    assert [event.name for event in heard.take()] == [PROGRESS, "retrying", PROGRESS]


def test_bus_listener_too_far_behind_is_told_so() -> None:
    published = bus()
    heard = published.subscribe(None)
    for number in range(PENDING_EVENTS):
        published.publish("queued", f"{number}")
    assert not heard.is_behind
    published.publish("queued", "one more")
    assert heard.is_behind
    assert len(heard.take()) <= PENDING_EVENTS


def test_bus_listener_to_one_job_is_not_behind_for_others() -> None:
    published = bus()
    heard = published.subscribe("a")
    for number in range(2 * PENDING_EVENTS):
        published.publish("queued", f"{number}")
    published.publish("succeeded", "a")
    assert [event.name for event in heard.take()] == ["succeeded"] and not heard.is_behind


EVENTS = st.tuples(
    st.sampled_from(["queued", "started", PROGRESS, "take", *sorted(ENDS)]),
    st.integers(0, 3).map(str),
    st.integers(1, 700),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENTS, max_size=12))
def test_bus_end_is_heard_or_the_listener_is_behind(script: list[tuple[str, str, int]]) -> None:
    published = bus()
    heard = published.subscribe(None)
    ends: list[str | None] = []
    told: list[str | None] = []
    for name, job_id, times in script:
        if name == "take":
            told += [event.job_id for event in heard.take() if event.name in ENDS]
            continue
        for _ in range(times):
            published.publish(name, job_id)
            ends += [job_id] if name in ENDS else []
    told += [event.job_id for event in heard.take() if event.name in ENDS]
    assert heard.is_behind or told == ends
    assert len(heard.take()) == 0


@in_loop
async def test_bus_listener_that_waits_wakes_for_an_event() -> None:
    published = bus()
    heard = published.subscribe("a")
    waiting = asyncio.create_task(heard.wait(SOON_SECONDS))
    await asyncio.sleep(0)
    assert not waiting.done()
    published.publish("succeeded", "a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert waiting.done() and names(heard.take()) == [("succeeded", "a")]


@in_loop
async def test_bus_wait_without_an_event_ends_when_its_time_is_over() -> None:
    heard = bus().subscribe("a")
    await heard.wait(0.001)
    assert heard.take() == []


@in_loop
async def test_bus_listener_that_took_everything_waits_again() -> None:
    published = bus()
    heard = published.subscribe("a")
    published.publish("queued", "a")
    heard.take()
    waiting = asyncio.create_task(heard.wait(SOON_SECONDS))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


@in_loop
async def test_bus_nudge_wakes_those_of_single_jobs_without_an_event() -> None:
    published = bus()
    one, everything = published.subscribe("a"), published.subscribe(None)
    published.nudge()
    await one.wait(SOON_SECONDS)
    assert one._something.is_set() and one.take() == []
    assert not everything._something.is_set()


# Leaving


def test_bus_listeners_that_leave_leave_nothing() -> None:
    published = bus()
    listeners = [published.subscribe(job_id) for job_id in ("a", "a", "b", None)]
    assert published.listeners == 4 and published.listens_to("c")
    for heard in listeners:
        published.unsubscribe(heard)
        published.unsubscribe(heard)
    assert published.listeners == 0
    assert not published._by_job and not published._everything
    assert not published.listens_to("a") and not published.hears_everything


def test_bus_listener_that_left_hears_nothing() -> None:
    published = bus()
    heard = published.subscribe("a")
    published.unsubscribe(heard)
    published.publish("succeeded", "a")
    assert heard.take() == []


def test_bus_other_listener_of_the_same_job_stays() -> None:
    published = bus()
    leaves, stays = published.subscribe("a"), published.subscribe("a")
    published.unsubscribe(leaves)
    published.publish("succeeded", "a")
    assert names(stays.take()) == [("succeeded", "a")] and published.listens_to("a")


def test_bus_many_listeners_each_hear_their_own_end() -> None:
    published = bus()
    heard = {f"{number}": published.subscribe(f"{number}") for number in range(1000)}
    everything = published.subscribe(None)
    for job_id in heard:
        published.publish("succeeded", job_id)
    assert all(names(one.take()) == [("succeeded", job_id)] for job_id, one in heard.items())
    assert len(everything.take()) == 1000
    for one in (*heard.values(), everything):
        published.unsubscribe(one)
    assert published.listeners == 0 and not published._by_job


# Closing


def closed(
    *jobs: str, keep: frozenset[str] = frozenset()
) -> tuple[EventBus, Callable[[str], bool]]:
    """A bus with a listener for each job and for everything that was closed, and whether one's has ended."""
    published = bus()
    listeners = {job_id: published.subscribe(job_id) for job_id in jobs}
    listeners["*"] = published.subscribe(None)
    published.close(keep=keep)
    return published, lambda job_id: listeners[job_id].is_closed


def test_bus_closed_ends_everybody() -> None:
    _, is_closed = closed("a", "b")
    assert is_closed("a") and is_closed("b") and is_closed("*")


def test_bus_closed_but_for_a_job_keeps_its_listeners() -> None:
    published, is_closed = closed("a", "b", keep=frozenset({"a"}))
    assert not is_closed("a") and is_closed("b") and is_closed("*")
    published.close()
    assert is_closed("a")


def test_bus_closed_ends_those_who_come_at_once() -> None:
    published, _ = closed("a", keep=frozenset({"a"}))
    assert published.subscribe("b").is_closed and published.subscribe(None).is_closed
    assert not published.subscribe("a").is_closed


def test_bus_closed_listener_still_has_what_waited() -> None:
    published = bus()
    heard = published.subscribe("a")
    published.publish("succeeded", "a")
    published.close()
    assert names(heard.take()) == [("succeeded", "a")]


@in_loop
async def test_bus_closed_listener_never_waits_again() -> None:
    published = bus()
    heard = published.subscribe("a")
    published.close()
    for _ in range(3):
        heard.take()
        await asyncio.wait_for(heard.wait(SOON_SECONDS * 2), SOON_SECONDS)
    assert heard.is_closed


def test_bus_keeps_no_state_of_the_service_for_those_who_come_back() -> None:
    bus = EventBus(1)
    bus.publish("queued", "a")
    last = bus.next_id()
    for _ in range(5000):
        bus.publish("gpu")
    bus.publish("succeeded", "a")
    assert [event.name for event in bus.since(last, None) or ()] == ["succeeded"]


def test_slow_listener_is_told_the_newest_state_alone() -> None:
    bus = EventBus(1)
    listener = bus.subscribe(None)
    for number in range(3):
        bus.publish("queue")
        bus.publish("gpu", data={"number": number})
    assert [(event.name, event.data.get("number")) for event in listener.take()] == [
        ("queue", None),
        ("gpu", 2),
    ]
