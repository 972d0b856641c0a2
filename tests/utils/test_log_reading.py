"""Logs as they lie in their folder, and one that is followed while it is written and rotated."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.log_file import LogFile
from utils.log_reading import Tail, is_at_least, logs_in, newest_first, parsed


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogFile]:
    opened = LogFile(tmp_path, "bf16", max_bytes=100, keep=5)
    yield opened
    opened.close()


def say(log: LogFile, *texts: str) -> None:
    for text in texts:
        log.emit(logging.LogRecord("name", logging.INFO, "", 0, text, (), None))


def numbers(*values: int) -> list[str]:
    return [f"{value:029}" for value in values]  # three fill a file


def test_logs_in_finds_each_log_with_its_older_ones_newest_first(tmp_path) -> None:
    for name in ("bf16.log", "bf16.log.1", "bf16.log.10", "bf16.log.2", "bf16-2.log", "fp4.log.1"):
        (tmp_path / name).write_text("x")
    for name in ("page.out", "notes.log.txt", "bf16.log.old", ".bf16.log.lock"):
        (tmp_path / name).write_text("x")
    (tmp_path / "linked.log").symlink_to(tmp_path / "notes.log.txt")
    found = {log.path.name: [path.name for path in log.older] for log in logs_in(tmp_path)}
    assert found == {
        "bf16.log": ["bf16.log.1", "bf16.log.2", "bf16.log.10"],
        "bf16-2.log": [],
        "fp4.log": ["fp4.log.1"],
    }
    assert {log.path.name for log in logs_in(tmp_path, frozenset({"bf16"}))} == {
        "bf16.log",
        "bf16-2.log",
    }


def test_logs_in_a_folder_that_is_not_there_are_none(tmp_path) -> None:
    assert logs_in(tmp_path / "no") == []


@pytest.mark.parametrize(
    "line",
    ["", "text", "[]", "7", '{"time": "x"}', '{"half', "[" * 100_000],
    ids=lambda line: line[:9],
)
def test_parsed_what_no_service_wrote_is_none(line: str) -> None:
    assert parsed(line) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("time", 5), ("time", "soon"), ("level", ["error"]), ("service", None), ("message", 7)],
)
def test_parsed_of_a_line_that_is_not_as_a_service_writes_it_is_none(name: str, value) -> None:
    """Who shows it would fail on it."""
    line = {"time": "2026-01-31T12:00:00.000Z", "level": "error", "service": "bf16", "message": "m"}
    assert parsed(json.dumps(line)) == line
    assert parsed(json.dumps({**line, name: value})) is None


@pytest.mark.parametrize(
    ("level", "least", "shown"), [("info", "warning", False), ("error", "warning", True)]
)
def test_is_at_least_compares_levels(level: str, least: str, shown: bool) -> None:
    assert is_at_least({"level": level}, least) is shown


def test_newest_first_goes_back_into_the_older_files(tmp_path, log) -> None:
    say(log, *numbers(*range(8)))
    [found] = logs_in(tmp_path)
    assert list(newest_first(found)) == numbers(*reversed(range(8)))


def test_tail_begins_with_what_comes_next(tmp_path, log) -> None:
    say(log, "before")
    tail = Tail(tmp_path / "bf16.log", from_start=False)
    assert list(tail.lines()) == []
    say(log, "one", "two")
    assert list(tail.lines()) == ["one", "two"] and list(tail.lines()) == []
    tail.close()


def test_tail_line_that_is_half_there_is_waited_for(tmp_path) -> None:
    path = tmp_path / "bf16.log"
    tail = Tail(path, from_start=True)
    path.write_text("be")
    assert list(tail.lines()) == []
    path.write_text("begun\n")
    assert list(tail.lines()) == ["begun"]
    tail.close()


@given(bursts=st.lists(st.integers(0, 14), max_size=8))
@settings(max_examples=30, deadline=None)
def test_tail_tells_every_line_once_however_often_it_is_rotated(
    tmp_path_factory: pytest.TempPathFactory, bursts: list[int]
) -> None:
    """Up to fourteen lines are four rotations between two looks, of five files that are kept."""
    folder = tmp_path_factory.mktemp("logs")
    with (
        closing(LogFile(folder, "bf16", max_bytes=100, keep=5)) as log,
        closing(Tail(folder / "bf16.log", from_start=True)) as tail,
    ):
        told, said = list(tail.lines()), 0
        for burst in bursts:
            say(log, *numbers(*range(said, said + burst)))
            said += burst
            told += tail.lines()
    assert told == numbers(*range(said))


def test_tail_log_that_was_removed_goes_on_with_the_new_one(tmp_path, log) -> None:
    tail = Tail(tmp_path / "bf16.log", from_start=True)
    say(log, "one")
    assert list(tail.lines()) == ["one"]
    os.unlink(tmp_path / "bf16.log")
    assert list(tail.lines()) == []
    say(log, "two")
    assert list(tail.lines()) == ["two"]
    tail.close()


def test_tail_log_that_was_emptied_goes_on_from_its_start(tmp_path) -> None:
    path = tmp_path / "bf16.log"
    path.write_text("a long line of an earlier time\n")
    tail = Tail(path, from_start=True)
    assert len(list(tail.lines())) == 1
    path.write_text("new\n")
    assert list(tail.lines()) == ["new"]
    tail.close()
