"""Where what was compiled is kept, and that nothing depends on it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from utils.worker import compile_cache


def test_folder_that_can_be_written_is_made_and_stays_empty(tmp_path: Path) -> None:
    environ = {compile_cache.VARIABLE: str(tmp_path / "models" / "compiled")}
    compile_cache.require_usable(environ)
    assert environ == {compile_cache.VARIABLE: str(tmp_path / "models" / "compiled")}
    assert list((tmp_path / "models" / "compiled").iterdir()) == []


def test_folder_below_a_file_is_left_to_torch_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    environ = {compile_cache.VARIABLE: str(tmp_path / "file" / "compiled"), "HOME": "/"}
    compile_cache.require_usable(environ)
    assert environ == {"HOME": "/"}
    assert str(tmp_path / "file") in caplog.text and "FLUX_MODELS_DIR" in caplog.text


def test_folder_of_a_full_disk_is_left_to_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(compile_cache.tempfile, "TemporaryFile", full)
    environ = {compile_cache.VARIABLE: str(tmp_path)}
    compile_cache.require_usable(environ)
    assert environ == {}
