"""Pictures as files: staged, published, removed, and never half of one."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from models.types import ImageFile, OutputFormat
from utils import images


def file(name: str) -> ImageFile:
    return ImageFile(filename=name, seed=1, width=1, height=1, size_bytes=1)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_stage_then_publish_moves_the_file(tmp_path: Path) -> None:
    images.stage(b"data", tmp_path, "a-0.png")
    assert names(tmp_path) == {".staging/a-0.png"}
    images.publish(tmp_path, (file("a-0.png"),))
    assert names(tmp_path) == {"a-0.png"}
    assert (tmp_path / "a-0.png").read_bytes() == b"data"


def test_stage_again_replaces_what_an_earlier_attempt_left(tmp_path: Path) -> None:
    for data in (b"first and longer", b"second"):
        images.stage(data, tmp_path, "a-0.png")
    assert (tmp_path / ".staging" / "a-0.png").read_bytes() == b"second"


def test_stage_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        images.stage(b"data", tmp_path, "a-0.png")
    assert names(tmp_path) == set()


def test_discard_staged_of_a_job_leaves_others(tmp_path: Path) -> None:
    for name in ("a-0.png", "a-1.png", "b-0.png"):
        images.stage(b"data", tmp_path, name)
    images.discard_staged(tmp_path, "a")
    assert names(tmp_path) == {".staging/b-0.png"}


def test_discard_staged_without_a_folder_does_nothing(tmp_path: Path) -> None:
    images.discard_staged(tmp_path, "a")
    assert images.staged_jobs(tmp_path) == set()
    assert list(tmp_path.iterdir()) == []


def test_staged_jobs_are_those_with_files_in_staging(tmp_path: Path) -> None:
    for name in ("a-0.png", "a-1.png", "b-0.jpg"):
        images.stage(b"data", tmp_path, name)
    assert images.staged_jobs(tmp_path) == {"a", "b"}


def test_discard_published_of_a_job_leaves_others(tmp_path: Path) -> None:
    for name in ("a-0.png", "a-1.png", "ab-0.png"):
        images.stage(b"data", tmp_path, name)
        images.publish(tmp_path, (file(name),))
    images.discard_published(tmp_path, "a")
    assert names(tmp_path) == {"ab-0.png"}


@pytest.mark.parametrize(
    ("output_format", "name"),
    [(OutputFormat.PNG, "x-2.png"), (OutputFormat.JPEG, "x-2.jpg"), (OutputFormat.WEBP, "x-2.webp")],
)  # fmt: skip
def test_filename_follows_from_job_and_index(output_format: OutputFormat, name: str) -> None:
    assert images.filename_of("x", 2, output_format) == name


def test_thumbnail_of_a_large_picture_is_small_and_keeps_its_shape(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1024, 512), "red").save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    with Image.open(images.thumbnail(tmp_path, "a.png")) as small:
        assert small.size == (256, 128)
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]


def test_thumbnail_opens_no_other_kind_of_file(tmp_path: Path) -> None:
    """Only what the service writes itself: fewer decoders, fewer holes."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", "TIFF")
    assert images.thumbnail(tmp_path, "a.png") is None


def test_remove_takes_picture_and_thumbnail_and_may_come_twice(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    images.thumbnail(tmp_path, "a.png")
    for _ in range(2):
        images.remove(tmp_path, "a.png")
    assert names(tmp_path) == set()
