"""The protocol between service and worker: every event there and back, and nothing else."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.worker import events

EVENTS = [value for value in vars(events).values() if is_dataclass(value)]
TEXT = "ä\n\"'\\ \u2028 🎈 {}"
SAMPLES: dict[str, Any] = {
    "str": TEXT,
    "int": 5,
    "bool": True,
    "str | None": TEXT,
    "list[tuple[str, dict[str, Any]]]": [[TEXT, {"prompt": TEXT}]],
    "list[tuple[str, float]]": [[TEXT, 0.5]],
    "list[str]": [TEXT, TEXT],
    "float": 1.5,
    "float | None": 0.5,
    "dict[str, Any]": {"prompt": TEXT, "seed": 2**53 - 1, "tags": [TEXT], "none": None},
    "dict[str, str]": {"torch": TEXT},
}


def sample(event: type) -> Any:
    """One of its kind; a field's type decides its value."""
    names = {
        field.name: getattr(field.type, "__name__", str(field.type)) for field in fields(event)
    }
    texts = {field.name: str(field.type) for field in fields(event)}
    return event(
        **{
            name: SAMPLES[kind] if kind in SAMPLES else SAMPLES[texts[name].replace("typing.", "")]
            for name, kind in names.items()
        }
    )


def test_events_are_all_of_the_protocol() -> None:
    assert {event.__name__ for event in EVENTS} == {
        "Load", "Unload", "Run", "Previews", "Cancel", "Shutdown", "Ready", "Loading", "Loaded",
        "LoadFailed", "Unloaded", "Holds", "Begun", "Progress", "Handover", "Drawn", "Finished", "Failed", "WasCancelled",
    }  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_event_comes_back_as_it_was_sent(event: type) -> None:
    sent = sample(event)
    assert events.decode(events.encode(sent)) == sent


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_event_is_one_line(event: type) -> None:
    line = events.encode(sample(event))
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert len(line.splitlines()) == 1


@settings(max_examples=50, deadline=None)
@given(text=st.text(), request=st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_event_with_any_text_is_one_line_and_comes_back(text: str, request: dict) -> None:
    sent = events.Run(jobs=[[text, request]])
    line = events.encode(sent)
    assert line.count(b"\n") == 1
    assert events.decode(line) == sent


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\n", b"{", b"null", b"1", b'"Run"', b"[]", b"{}", b'{"event": null}',
        b'{"event": "Nothing"}', b'{"event": ["Run"]}', b'{"event": "Run"}',
        b'{"event": "Run", "job_id": "a"}', b'{"event": "Cancel", "job_id": "a", "more": 1}',
        b'{"event": "Shutdown", "now": true}', b'{"event": "__class__"}', b'{"event": "encode"}',
        b"\xff\xfe", b"\x80\x04cos\nsystem\n", b'{"event": "Cancel", "job_id": "a"} {}',
    ],
)  # fmt: skip
def test_decode_refuses_what_is_no_event(line: bytes) -> None:
    with pytest.raises(ValueError):
        events.decode(line)


def test_protocol_carries_plain_json_only() -> None:
    for event in EVENTS:
        data = json.loads(events.encode(sample(event)))
        assert data["event"] == event.__name__
