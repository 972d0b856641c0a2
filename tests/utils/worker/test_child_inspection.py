"""What a worker does with a drawn picture that is flagged: the file it writes, the end it sends."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from config.catalog import load_catalog
from config.errors import JobFailed
from tests.models.flux1_drawing import REQUEST
from tests.safety_weights import classifier
from utils.worker import events
from utils.worker.child import Child
from utils.worker.config import WorkerConfig
from utils.worker.drawing import JobInHand

RED, BLUE = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
Save = Callable[[Image.Image], object]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("weights") / "judge")


@pytest.fixture
def save(weights: Path, tmp_path: Path) -> Iterator[Save]:
    """Has a worker that blocks save a picture; returns the end that it sends."""
    ours, theirs = socket.socketpair()
    config = WorkerConfig(
        socket_fd=theirs.fileno(), name="cpu", precision="bf16", loader="none:none",
        output_dir=tmp_path, models_dir=tmp_path, loras_dir=tmp_path, inputs_dir=tmp_path,
        allow_download=False, reserve_bytes=0, device="cpu", model_memory_gib=None, offload="auto",
        safety_checker="block", safety_model=str(weights), is_looked_at=False, engine="auto", fp8_weights="memory", compile="off",
        mflux_quantize=0, threads=0, devices=1, max_batch_size=0, default_model="embedded",
        log_level="info",
        default_model_reason="a test",
    )  # fmt: skip
    child = Child(config, theirs, load_catalog())
    child._device = type("Cpu", (), {"describe": lambda self: "cpu"})()

    def save(picture: Image.Image) -> object:
        child._save(JobInHand(id="a", request=REQUEST), 0, picture, "scripted")
        with ours.makefile("rb") as lines:
            while isinstance(event := events.decode(lines.readline()), events.Progress):
                pass
        return event

    with ours, theirs:
        yield save


def test_flagged_picture_is_not_written_and_its_job_fails_where_such_are_blocked(
    save: Save, tmp_path: Path
) -> None:
    end = save(RED)
    assert isinstance(end, events.Failed) and end.code == "nsfw_blocked"
    assert "FLUX_SAFETY_CHECKER is block" in end.message
    assert JobFailed(end.code, end.message).status == 422
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_other_picture_is_written_and_says_that_it_was_looked_at(
    save: Save, tmp_path: Path
) -> None:
    end = save(BLUE)
    assert isinstance(end, events.Finished)
    assert end.result["images"][0]["nsfw_flagged"] is False
    assert [path for path in tmp_path.rglob("*") if path.is_file()] != []
