"""The command line, run in this process or as the program that it is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.app import run
from config.settings import ROOT
from tests.operations.checkout import clean_environment
from tests.service import RunningService

PROGRAM = ROOT / "flux"


@dataclass(frozen=True, slots=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]


Flux = Callable[..., Done]


@pytest.fixture
def flux(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Flux:
    """Run a command here; it starts in an empty folder, with no settings of the caller's."""
    for name in [name for name in os.environ if name.startswith("FLUX_") or name.endswith("_PORT")]:
        monkeypatch.delenv(name)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("FLUX_DATA_DIR", str(tmp_path / "data"))

    def command(*arguments: str) -> Done:
        capsys.readouterr()
        status = run(arguments)
        said = capsys.readouterr()
        return Done(status, said.out, said.err)

    return command


@pytest.fixture
def at(flux: Flux, service: RunningService) -> Flux:
    """The same, asking the shared service on the embedded model."""

    def command(*arguments: str) -> Done:
        return flux(*arguments, "--url", service.url)

    return command


@pytest.fixture
def engine(flux: Flux, engine_service: RunningService) -> Flux:
    """The same, asking the shared service on the stand-in model."""

    def command(*arguments: str) -> Done:
        return flux(*arguments, "--url", engine_service.url)

    return command


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `./flux` itself; what still runs in the end is ended."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environ: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [PROGRAM, *arguments],
            cwd=tmp_path,
            env=clean_environment(**environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
