"""The worker's process by itself: how it ends with the service that has the other end of its socket."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import ROOT
from utils.worker.config import WorkerConfig

END_SECONDS = 60  # a limit, not a wait


def config(folder: Path, socket_fd: int) -> WorkerConfig:
    return WorkerConfig(
        socket_fd=socket_fd,
        name="cpu",
        precision="bf16",
        loader="tests.engines:scripted",
        output_dir=folder,
        models_dir=folder,
        loras_dir=folder,
        inputs_dir=folder,
        allow_download=False,
        reserve_bytes=0,
        device="cpu",
        model_memory_gib=None,
        offload="auto",
        safety_checker="off",
        safety_model="auto",
        is_looked_at=False,
        engine="auto",
        fp8_weights="memory",
        compile="off",
        mflux_quantize=0,
        threads=0,
        devices=1,
        log_level="info",
        max_batch_size=0,
        default_model="embedded",
        default_model_reason="no GPU",
    )


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """A worker that has said it is ready, of which nothing was read."""
    ours, theirs = socket.socketpair()
    with theirs:
        argument = config(tmp_path, theirs.fileno()).to_argument()
        process = subprocess.Popen(
            [sys.executable, "-m", "utils.worker.child", argument],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
        )
    with ours, process:
        assert ours.recv(1, socket.MSG_PEEK)
        yield ours, process
        process.kill()


def test_child_ends_when_the_service_is_gone(started) -> None:
    ours, process = started
    ours.makefile("rb").readline()
    ours.close()
    assert process.wait(END_SECONDS) == 0


def test_child_ends_also_when_the_service_was_gone_before_it_read_everything(started) -> None:
    """The system tells that in another way: as a connection that was reset."""
    ours, process = started
    ours.close()
    assert process.wait(END_SECONDS) == 0


def test_child_that_cannot_read_what_it_is_told_ends(started) -> None:
    ours, process = started
    ours.sendall(b"no command\n")
    assert process.wait(END_SECONDS) == 1
