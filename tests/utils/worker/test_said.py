"""What a worker writes to its stdout and stderr, as the service logs it."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from utils import logs
from utils.worker import said


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    monkeypatch.setattr(logs, "relay", lambda line, worker: lines.append((line, worker)))
    return lines


def listened(*writes: bytes) -> str:
    """Listen to a pipe into which these are written, one after the other, until it is closed; returns its name in /proc."""

    async def listen_to() -> str:
        ours, theirs = os.pipe()
        name = f"pipe:[{os.fstat(ours).st_ino}]"
        listening = asyncio.create_task(said.listen(ours, "gpu0"))
        for data in writes:
            view = memoryview(data)
            while view:
                view = view[await asyncio.to_thread(os.write, theirs, view) :]
            await asyncio.sleep(0)
        os.close(theirs)
        await asyncio.wait_for(listening, 60)
        return name

    return asyncio.run(listen_to())


def test_listen_tells_each_line_with_its_worker(heard: list[tuple[str, str]]) -> None:
    listened(b"one\ntwo\n")
    assert heard == [("one", "gpu0"), ("two", "gpu0")]


@pytest.mark.parametrize(
    ("writes", "lines"),
    [
        ((b"be", b"gun\n"), ["begun"]),
        ((b"the last words",), ["the last words"]),
        ((b" 10%\r 20%", b"\r 30%\r", b" 100%\n"), ["100%"]),
        ((b"\r 10%\r 20%\r",), ["20%"]),
        ((b"of Windows\r", b"\nnext\r\n"), ["of Windows", "next"]),
        ((b"\n\n  \n",), []),
        ((b"\xff\xfe\n",), ["\ufffd\ufffd"]),
        ((), []),
    ],
    ids=[
        "in parts",
        "without an end",
        "a progress bar",
        "a bar that stops",
        "other ends",
        "nothing",
        "no text",
        "silence",
    ],
)
def test_listen_makes_lines_of_whatever_comes(
    heard: list[tuple[str, str]], writes: tuple[bytes, ...], lines: list[str]
) -> None:
    listened(*writes)
    assert [line for line, _ in heard] == lines


def test_listen_line_without_an_end_is_not_kept_for_ever(
    heard: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(said, "MAX_LINE_BYTES", 1000)
    listened(b"x" * 10_000, b"\nend\n")
    assert sum(len(line) for line, _ in heard[:-1]) == 10_000 and heard[-1][0] == "end"
    assert max(len(line) for line, _ in heard) <= 1000 + said.READ_BYTES


def test_listen_closes_the_pipe(heard: list[tuple[str, str]]) -> None:
    pipe, open_files = listened(b"one\n"), []
    for handle in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # another thread's, closed meanwhile
            open_files.append(os.readlink(f"/proc/self/fd/{handle}"))
    assert open_files and pipe not in open_files
