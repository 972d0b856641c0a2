"""The words between a replica and the front door."""

from __future__ import annotations

import json

import pytest

from utils.fleet import messages
from utils.worker import events

EVERY = [
    messages.Hello(
        replica="a1", node="studio", slot="gpu0", precision="bf16", resources=["bf16"],
        models={"embedded": 1.0}, reasons={"flux-dev": "too large"}, memory_gib=8.0, pid=7,
    ),
    messages.Died(exit_text="killed by SIGKILL", code="poison", begun=["j"]),
    messages.Pulse(processors=0.5, cards=[{"error": "gone"}]),
    messages.Asleep(),
    messages.Kill(code="timeout", why="no step"),
    messages.Sleep(),
    messages.Wake(),
    events.Load(model="embedded"),
    events.Finished(job_id="j", model="embedded", result={"images": []}),
]  # fmt: skip


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_message_comes_back_as_it_was(message: object) -> None:
    line = messages.encode(message)
    assert line.count("\n") <= 1 and messages.decode(line) == message


@pytest.mark.parametrize(
    "line", ["{}", '{"fleet": "Nobody"}', '{"fleet": "Hello"}', '{"event": "Kill"}', "no JSON"]
)
def test_line_that_is_no_message_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        messages.decode(line)


def test_load_of_a_worker_is_no_word_of_the_fleets() -> None:
    assert "event" in json.loads(messages.encode(events.Load(model="embedded")))
