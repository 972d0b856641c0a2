"""A checker in a process of its own: what it says, how it ends, and that silence is never a "no"."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from config.errors import ModelUnavailable
from models.safety import Weights
from tests.safety_weights import classifier
from utils import checker_process
from utils.checker_process import CheckerProcess

PATIENCE_SECONDS = 120
ENVIRONMENT = {"PATH": os.environ["PATH"], "OMP_WAIT_POLICY": "PASSIVE"}
RED, BLUE = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (64, 48), "blue")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = classifier(tmp_path_factory.mktemp("weights") / "judge")
    return Weights(folder=folder, name="judge")


@pytest.fixture(scope="module")
def checker(weights: Weights) -> Iterator[CheckerProcess]:
    made = CheckerProcess(weights, ENVIRONMENT)
    yield made
    made.close()


def test_checker_says_of_each_picture_whether_it_is_flagged(checker: CheckerProcess) -> None:
    assert checker.is_flagged(RED) and not checker.is_flagged(BLUE)


def test_checker_sees_a_picture_of_many_bands_as_it_is(checker: CheckerProcess) -> None:
    tall = Image.new("RGB", (1500, 2000), "blue")
    assert not checker.is_flagged(tall)
    tall.paste("red", (0, 100, 1500, 2000))
    assert checker.is_flagged(tall)


def test_checker_is_told_of_by_many_threads_without_a_mixup(checker: CheckerProcess) -> None:
    said: list[bool] = []
    pictures = [RED, BLUE] * 8
    threads = [
        threading.Thread(
            target=lambda one=one: said.append(checker.is_flagged(one) == (one is RED))
        )
        for one in pictures
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert said == [True] * len(pictures)


def test_checker_process_has_no_key_and_no_gpu(checker: CheckerProcess) -> None:
    checker.prepare()
    environ = psutil.Process(checker.pid).environ()
    assert environ["CUDA_VISIBLE_DEVICES"] == "" and environ["HF_HUB_OFFLINE"] == "1"


# With a child that behaves badly

Child = Callable[[str], CheckerProcess]
READY = 'import os, sys, time, select; print("{}", flush=True);'
THERE = 'sys.stdin.buffer.readline(); print("{}", flush=True);'


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Child]:
    """A checker whose process runs some Python in place of ours."""
    made: list[CheckerProcess] = []

    def make(code: str) -> CheckerProcess:
        monkeypatch.setattr(checker_process, "COMMAND", (sys.executable, "-S", "-c", code))
        made.append(CheckerProcess(Weights(folder=tmp_path, name="judge"), ENVIRONMENT))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("", "ended with exit status 0"),
        ("import sys; sys.exit(3)", "ended with exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        (READY + "sys.exit(4)", "ended with exit status 4"),
        (READY + "sys.stdin.buffer.readline(); sys.exit(5)", "ended with exit status 5"),
        (READY + 'print("{}", flush=True); time.sleep(60)', "nobody understands"),
        (READY + "print('{\"is_flagged\": 0}', flush=True); time.sleep(60)", "nobody understands"),
        (READY + 'print("[]", flush=True); time.sleep(60)', "nobody understands"),
        (READY + 'print("no JSON", flush=True); time.sleep(60)', "nobody understands"),
        (READY + 'print(\'{"fault": "of its own"}\', flush=True); time.sleep(60)', "of its own"),
    ],
)
def test_child_that_does_not_say_yes_or_no_is_an_error(child: Child, code: str, said: str) -> None:
    checker = child(code)
    with pytest.raises(ModelUnavailable, match=said):
        checker.is_flagged(BLUE)
    until(lambda: checker.pid is None)


@pytest.mark.parametrize(
    ("name", "code"),
    [("LOAD_SECONDS", "import time; time.sleep(60)"), ("LOOK_SECONDS", READY + "time.sleep(60)")],
)
def test_child_that_is_silent_is_ended_and_not_tried_again(
    child: Child, monkeypatch: pytest.MonkeyPatch, name: str, code: str
) -> None:
    monkeypatch.setattr(checker_process, name, 0.3)
    checker = child(code)
    started: list[int] = []
    start = checker._started

    def counting() -> subprocess.Popen[bytes]:
        started.append(1)
        return start()

    monkeypatch.setattr(checker, "_started", counting)
    with pytest.raises(ModelUnavailable, match="said nothing for 0.3 s"):
        checker.is_flagged(Image.new("RGB", (2000, 2000)))  # more than a pipe holds
    assert started == [1]


def test_answer_that_nobody_asked_for_is_not_taken_for_the_next_picture(child: Child) -> None:
    two = "\nsys.stdin.buffer.readline(); print('no JSON\\n{\"is_flagged\": false}', flush=True);"
    checker = child(READY + two + "time.sleep(60)")
    for _ in range(3):
        with pytest.raises(ModelUnavailable, match="nobody understands"):
            checker.is_flagged(BLUE)


def test_picture_that_breaks_off_on_its_way_is_not_part_of_the_next(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rest would be filled up with the next one's pixels, and the answer be about neither."""
    by_red = (
        "\nwhile line := sys.stdin.buffer.readline():"
        "\n size = eval(line); data = sys.stdin.buffer.read(size['width'] * size['height'] * 3)"
        "\n print('{\"is_flagged\": %s}' % str(data[-3] > 99).lower(), flush=True)"
    )
    checker, pieces = child(READY + by_red), checker_process._pieces

    def breaking(picture: Image.Image) -> Iterator[bytes]:
        yield next(iter(pieces(picture)))
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(checker_process, "_pieces", breaking)
        with pytest.raises(MemoryError):
            checker.is_flagged(BLUE)
    assert checker.is_flagged(RED) and not checker.is_flagged(BLUE)


def test_child_that_has_ended_for_want_of_pictures_is_started_anew(child: Child) -> None:
    idle = READY + (
        "\nif sys.stdin.buffer.readline(): print('{\"is_flagged\": false}', flush=True)"
    )
    checker = child(idle)
    assert checker.is_flagged(Image.new("RGB", (1, 1))) is False
    until(lambda: checker.pid is None)
    assert checker.is_flagged(Image.new("RGB", (1, 1))) is False


def test_child_that_was_killed_is_started_once_more(child: Child) -> None:
    always = "\nwhile sys.stdin.buffer.readline(): print('{\"is_flagged\": true}', flush=True)"
    checker = child(READY + always)
    checker.prepare()
    first = checker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert checker.is_flagged(Image.new("RGB", (1, 1))) is True and checker.pid != first


def test_child_that_does_not_answer_any_more_is_noticed_before_there_is_a_picture(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = child(READY + THERE + "time.sleep(60)")
    checker.prepare()
    monkeypatch.setattr(checker_process, "LOOK_SECONDS", 0.3)
    with pytest.raises(ModelUnavailable, match="said nothing for 0.3 s"):
        checker.prepare()


def test_child_that_was_killed_this_moment_is_noticed_before_there_is_a_picture(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = child(READY + THERE + "time.sleep(60)")
    checker.prepare()
    monkeypatch.setattr(checker_process, "COMMAND", (sys.executable, "-S", "-c", ""))
    assert checker.pid is not None
    os.kill(checker.pid, signal.SIGKILL)
    with pytest.raises(ModelUnavailable, match="ended with exit status 0"):
        checker.prepare()


def test_close_ends_a_look_in_another_thread(child: Child) -> None:
    checker = child(READY + THERE + "sys.stdin.buffer.read()")
    checker.prepare()
    failed: list[str] = []

    def look() -> None:
        try:
            checker.is_flagged(BLUE)
        except ModelUnavailable as error:
            failed.append(error.message)

    thread = threading.Thread(target=look)
    thread.start()
    until(checker._lock.locked)
    checker.close()
    thread.join(PATIENCE_SECONDS)
    assert len(failed) == 1 and "the service stops" in failed[0]
    with pytest.raises(ModelUnavailable, match="the service stops"):
        checker.prepare()
    assert checker.pid is None


def test_process_that_cannot_be_started_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checker_process, "COMMAND", (str(tmp_path / "nothing"),))
    checker = CheckerProcess(Weights(folder=tmp_path, name="judge"), ENVIRONMENT)
    with pytest.raises(ModelUnavailable, match="could not be started: No such file"):
        checker.is_flagged(BLUE)
