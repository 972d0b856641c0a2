"""Which requests are told, and how often one that is refused again and again."""

from __future__ import annotations

import logging

import pytest

from api.access_log import REMEMBERED, REPEAT_SECONDS, AccessLog, shown_path


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture):
    """What was told at the level info: (method, path, status, times)."""
    caplog.set_level(logging.INFO, logger="api.access")

    def lines() -> list[tuple[str, str, int, int]]:
        return [
            (line.method, line.path, line.status, getattr(line, "times", 1))
            for line in caplog.records
        ]

    return lines


def note(log: AccessLog, method: str, path: str, status: int) -> None:
    log.note({"method": method, "path": path}, status, "id", 0.001)


def test_note_reading_is_not_told_and_changing_is(told) -> None:
    log = AccessLog()
    note(log, "GET", "/jobs", 200)
    note(log, "POST", "/jobs", 202)
    note(log, "POST", "/jobs", 202)
    assert told() == [("POST", "/jobs", 202, 1)] * 2


def test_note_repeated_refusal_of_a_question_is_told_once_a_minute_with_its_number(told) -> None:
    now = [0.0]
    log = AccessLog(lambda: now[0])
    for _ in range(5):
        note(log, "GET", "/jobs/x", 404)
    now[0] = REPEAT_SECONDS
    note(log, "GET", "/jobs/x", 404)
    assert told() == [("GET", "/jobs/x", 404, 1), ("GET", "/jobs/x", 404, 5)]


def test_note_refusals_of_different_kinds_are_told_each(told) -> None:
    log = AccessLog()
    for path, status in (("/a", 404), ("/a", 401), ("/b", 404)):
        note(log, "GET", path, status)
    assert [line[1:3] for line in told()] == [("/a", 404), ("/a", 401), ("/b", 404)]


def test_note_refusals_of_many_paths_are_not_remembered_for_ever() -> None:
    log = AccessLog()
    for number in range(3 * REMEMBERED):
        note(log, "GET", f"/{number}", 404)
    assert len(log._refusals) == REMEMBERED


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/delivery/9-secret/i/f.png", "/delivery/…"),
        ("/jobs", "/jobs"),
        ("/" + "x" * 300, "/" + "x" * 199),
    ],
)
def test_shown_path_has_nothing_that_opens_something(path: str, shown: str) -> None:
    assert shown_path({"path": path}) == shown
