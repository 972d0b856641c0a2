"""scripts/manage_logs.sh on logs as services write them."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import ROOT
from scripts import logbook
from utils.log_file import LogFile
from utils.log_forms import JsonFormatter

SCRIPT = ROOT / "scripts" / "manage_logs.sh"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogFile]:
    """The log of a service that runs."""
    opened = LogFile(tmp_path, "bf16", max_bytes=600, keep=5)
    opened.setFormatter(JsonFormatter("bf16"))
    yield opened
    opened.close()


def say(log: LogFile, *texts: str, level: int = logging.INFO) -> None:
    for text in texts:
        log.emit(logging.LogRecord("utils", level, "", 0, text, (), None))


def run(*arguments: str | Path) -> int:
    return logbook.main([str(argument) for argument in arguments])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_status_tells_files_sizes_and_the_last_errors(tmp_path, log, capsys) -> None:
    say(log, "old trouble", "older trouble", level=logging.ERROR)
    say(log, *(f"all is well {number}" for number in range(6)))
    (tmp_path / "fp4.log").write_text("")
    assert run("status", "--folder", tmp_path) == 0
    said = capsys.readouterr().out
    assert "bf16.log: in use, " in said and "older\n" in said and "fp4.log: not in use" in said
    assert said.index("old trouble") < said.index("older trouble") and "well" not in said


def test_status_of_a_level_tells_its_lines_too(tmp_path, log, capsys) -> None:
    say(log, "careful", level=logging.WARNING)
    run("status", "--folder", tmp_path, "--level", "warning")
    assert "bf16 WARNING careful" in capsys.readouterr().out


def test_status_without_logs_says_where_it_looked(tmp_path, capsys) -> None:
    assert run("status", "--folder", tmp_path) == 0
    assert str(tmp_path) in capsys.readouterr().err
    assert run("status", "--folder", tmp_path, "--service", "fp5") == 1
    assert "fp5" in capsys.readouterr().err


def test_status_of_logs_that_cannot_be_read_says_who_can(tmp_path, capsys, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(logbook, "logs_in", refuse)  # no mode keeps root from reading
    assert run("status", "--folder", tmp_path) == 77
    said = capsys.readouterr().err
    assert str(tmp_path) in said and "as root" in said


def test_clean_leaves_what_is_in_use_and_what_is_no_log(tmp_path, log, capsys) -> None:
    say(log, *(f"line {number}" for number in range(20)))
    for name in ("fp4.log", "fp4.log.1", "page.out", "mine.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "mine.log").symlink_to(tmp_path / "mine.txt")
    assert run("clean", "--folder", tmp_path) == 0
    assert names(tmp_path) == {"bf16.log", "page.out", "mine.txt", "mine.log"}
    assert "fp4.log.1" in capsys.readouterr().out
    say(log, "still here")
    assert "still here" in (tmp_path / "bf16.log").read_text()


def test_clean_dry_run_and_days_remove_less(tmp_path, capsys) -> None:
    for name in ("fp4.log.1", "fp4.log.2"):
        (tmp_path / name).write_text("x")
    os.utime(tmp_path / "fp4.log.2", (0, 0))
    run("clean", "--folder", tmp_path, "--dry-run")
    assert "would be removed: 2 files" in capsys.readouterr().out and len(names(tmp_path)) == 2
    run("clean", "--folder", tmp_path, "--days", "1", "--service", "flux-fp4")
    assert names(tmp_path) == {"fp4.log.1"}


@pytest.mark.parametrize("days", ["-1", "soon", "nan", "inf"])
def test_clean_wrong_number_of_days_is_refused(tmp_path, days: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("clean", "--folder", tmp_path, "--days", days)
    assert "--days" in capsys.readouterr().err


def test_script_follow_tells_old_and_new_lines_across_a_rotation(tmp_path, log) -> None:
    say(log, "before one", "before two")
    with subprocess.Popen(
        [SCRIPT, "follow", "--folder", tmp_path.name, "--level", "info", "-n", "1"],
        cwd=tmp_path.parent,
        stdout=subprocess.PIPE,
        text=True,
    ) as follows:
        told = [next(follows.stdout)]
        say(log, *(f"line {number}" for number in range(10)))  # three fill a file
        (tmp_path / "fp4.log").write_text(  # another service starts meanwhile
            json.dumps({"time": "2026-01-01T00:00:00.000Z", "level": "error", "service": "fp4",
                        "logger": "api", "message": "a\x1b[2J"}) + "\n"
        )  # fmt: skip
        (tmp_path / "other.log").write_text("of no service \x1b[2J\n")
        told += [next(follows.stdout) for _ in range(12)]
        follows.send_signal(signal.SIGINT)
        assert follows.wait(30) == 0
    words = [line.split(" bf16 INFO ")[-1].strip() for line in told]
    assert words[0] == "before two" and words.count("before one") == 0
    assert [word for word in words if word.startswith("line")] == [f"line {n}" for n in range(10)]
    assert any(word.endswith("fp4 ERROR a\\x1b[2J") for word in words)
    assert "of no service \\x1b[2J" in words


def test_script_status_where_the_terminal_lacks_a_letter_writes_it_in_others(tmp_path, log) -> None:
    log.handle(logging.makeLogRecord({"msg": "caf\xe9", "levelno": 40, "levelname": "ERROR"}))
    done = subprocess.run(
        [SCRIPT, "status", "--folder", tmp_path],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "ERROR caf\\xe9" in done.stdout, done.stderr


def test_script_follow_ends_when_nobody_reads_it(tmp_path, log) -> None:
    say(log, "one")
    with subprocess.Popen(
        [SCRIPT, "follow", "--folder", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as follows:
        next(follows.stdout)
        follows.stdout.close()
        deadline = time.monotonic() + 60
        while follows.poll() is None and time.monotonic() < deadline:
            say(log, "more")
            time.sleep(0.05)
        assert follows.poll() == 0 and follows.stderr.read() == ""


def test_script_wrong_setting_is_named() -> None:
    done = subprocess.run(
        [SCRIPT, "status"], env={**os.environ, "FLUX_LOG_KEEP": "0"}, capture_output=True, text=True
    )
    assert done.returncode == 78 and "FLUX_LOG_KEEP" in done.stderr
