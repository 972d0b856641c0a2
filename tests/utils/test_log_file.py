"""The log's file: its size, who has it, and what happens when it is taken away or cannot be written."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from config.errors import ConfigurationError
from utils.log_file import LogFile, is_in_use

Open = Callable[..., LogFile]


@pytest.fixture
def open_log(tmp_path: Path) -> Iterator[Open]:
    opened: list[LogFile] = []

    def open_one(*, max_bytes: int = 1000, keep: int = 3, folder: Path = tmp_path) -> LogFile:
        opened.append(LogFile(folder, "bf16", max_bytes, keep))
        return opened[-1]

    yield open_one
    for log in opened:
        log.close()


def say(log: LogFile, text: str) -> None:
    log.emit(logging.LogRecord("name", logging.INFO, "", 0, text, (), None))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_log_makes_its_folder(tmp_path: Path, open_log: Open) -> None:
    say(open_log(folder=tmp_path / "a" / "b"), "here")
    assert (tmp_path / "a" / "b" / "bf16.log").read_text() == "here\n"


def test_log_is_rotated_before_it_is_too_large_and_so_many_are_kept(tmp_path, open_log) -> None:
    log = open_log(max_bytes=100, keep=2)
    for number in range(20):
        say(log, f"{number:029}")  # 30 bytes with its end
    assert names(tmp_path) == {"bf16.log", "bf16.log.1", "bf16.log.2"}
    assert all(path.stat().st_size <= 100 for path in tmp_path.glob("bf16.log*"))
    assert (tmp_path / "bf16.log").read_text().endswith("19\n")
    assert (tmp_path / "bf16.log.1").read_text().endswith("17\n")


def test_log_line_larger_than_a_file_is_written_whole(tmp_path, open_log) -> None:
    log = open_log(max_bytes=100)
    say(log, "x" * 500)
    say(log, "y")
    assert (tmp_path / "bf16.log.1").read_text() == "x" * 500 + "\n"


def test_log_goes_on_in_the_file_of_an_earlier_start(tmp_path, open_log) -> None:
    first = open_log()
    say(first, "one")
    first.close()
    say(open_log(), "two")
    assert (tmp_path / "bf16.log").read_text() == "one\ntwo\n"


def test_log_of_two_processes_is_two_files_and_each_rotates_its_own(tmp_path, open_log) -> None:
    logs = [open_log(max_bytes=100, keep=5) for _ in range(2)]
    for number in range(10):
        for which, log in enumerate(logs):
            say(log, f"{which} {number:030}")
    assert {"bf16.log", "bf16.log.1", "bf16-2.log", "bf16-2.log.1"} <= names(tmp_path)
    for path in tmp_path.glob("bf16*.log*"):
        if "lock" not in path.name:
            which = "1" if path.name.startswith("bf16-2") else "0"
            assert {line[0] for line in path.read_text().splitlines()} == {which}


@pytest.mark.parametrize("take", [os.unlink, lambda path: os.rename(path, f"{path}-20260101")])
def test_log_that_was_taken_away_is_begun_anew(tmp_path, open_log, take) -> None:
    log = open_log()
    say(log, "one")
    take(tmp_path / "bf16.log")
    say(log, "two")
    assert (tmp_path / "bf16.log").read_text() == "two\n"


def test_log_that_cannot_be_written_is_said_once_and_goes_on_later(
    tmp_path, open_log, capsys, monkeypatch
) -> None:
    log = open_log()

    def full() -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(log, "flush", full)
        say(log, "one")
        say(log, "two")
    said = capsys.readouterr().err
    assert said.count("No space left") == 1 and "bf16.log cannot be written" in said
    say(log, "three")
    assert (tmp_path / "bf16.log").read_text().endswith("three\n")


def test_log_what_is_no_unicode_is_written_in_other_words(tmp_path, open_log) -> None:
    say(open_log(), "a\ud800b")
    assert (tmp_path / "bf16.log").read_text() == "a\\ud800b\n"


def test_log_in_use_is_known_as_such_until_it_is_closed(tmp_path, open_log) -> None:
    log = open_log()
    assert is_in_use(tmp_path / "bf16.log") and not is_in_use(tmp_path / "fp4.log")
    log.close()
    assert not is_in_use(tmp_path / "bf16.log")


def test_log_folder_that_cannot_be_made_is_named(tmp_path, open_log) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="FLUX_LOG_DIR"):
        open_log(folder=tmp_path / "file" / "logs")
