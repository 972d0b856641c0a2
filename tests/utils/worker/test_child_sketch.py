"""What a worker does with a picture that is still to be decoded: its file, or the end of its job."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from config.catalog import load_catalog
from config.errors import FluxError
from models.types import OutOfMemory
from tests.models.flux1_drawing import REQUEST
from tests.utils.worker.test_child import config
from utils.worker import events
from utils.worker.child import Child
from utils.worker.drawing import JobInHand, Sketch

PICTURE = Image.new("RGB", (128, 160), "red")


class Bench:
    """A worker's saving side, of which one end is read."""

    def __init__(self, folder: Path, ours: socket.socket, theirs: socket.socket) -> None:
        self.child = Child(config(folder, theirs.fileno()), theirs, load_catalog())
        self.child._device = type("Cpu", (), {"describe": lambda self: "cpu"})()
        self._lines = ours.makefile("rb")

    def save(self, develop: Callable[..., Any], job: JobInHand | None = None) -> Any:
        self.child._save(job or JobInHand(id="a", request=REQUEST), 0, Sketch(develop=develop), "x")
        while isinstance(event := events.decode(self._lines.readline()), events.Progress):
            pass
        return event


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(60)
        yield Bench(tmp_path, ours, theirs)


def written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_sketch_is_decoded_written_and_timed(bench: Bench, tmp_path: Path) -> None:
    end = bench.save(lambda frugal=False: PICTURE)
    assert isinstance(end, events.Finished)
    assert end.result["timings_ms"]["decode"] >= 0 and len(written(tmp_path)) == 1


def test_sketch_without_room_is_decoded_in_tiles(bench: Bench) -> None:
    asked = []

    def develop(frugal: bool = False) -> Image.Image:
        asked.append(frugal)
        if not frugal:
            raise OutOfMemory
        return PICTURE

    assert isinstance(bench.save(develop), events.Finished)
    assert asked == [False, True]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OutOfMemory(), "oom", "128x160 px does not fit"),
        (FluxError("no picture came out"), FluxError.code, "no picture came out"),
        (RuntimeError("words of a library"), "internal", "decoding failed with RuntimeError"),
    ],
)
def test_sketch_that_cannot_be_decoded_is_the_end_of_its_job(
    bench: Bench, tmp_path: Path, error: Exception, code: str, words: str
) -> None:
    def develop(frugal: bool = False) -> Image.Image:
        raise error

    end = bench.save(develop)
    assert isinstance(end, events.Failed)
    assert end.code == code and words in end.message and "library" not in end.message
    assert written(tmp_path) == []


def test_sketch_of_a_job_that_was_cancelled_meanwhile_is_not_decoded(
    bench: Bench, tmp_path: Path
) -> None:
    bench.child._cancelled.add("a")
    end = bench.save(lambda frugal=False: pytest.fail("decoded"))
    assert end == events.WasCancelled(job_id="a")
    assert written(tmp_path) == [] and not bench.child.is_cancelled("a")


def test_job_ends_once_whoever_comes_first() -> None:
    job = JobInHand(id="a", request=REQUEST)
    assert job.end() and not job.end() and job.is_over
