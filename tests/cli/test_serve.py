"""`flux serve`: the start scripts with their options, in the place of this process."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from cli.failures import Status
from tests.operations.checkout import clean_environment, copy_checkout

# In place of a start script: says how it was called, and ends as it is told.
SCRIPT = '#!/bin/sh\necho "$0 $*$FLUX_API_KEY"\nexit 5\n'


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = copy_checkout(tmp_path_factory.mktemp("serve") / "flux")
    for name in ("start.sh", "start_fp4_api.sh", "start_bf16_api.sh"):
        (copy / name).write_text(SCRIPT)
    return copy


def serve(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "flux", "serve", *arguments],
        env=clean_environment(FLUX_API_KEY="flux_0123456789abcdef"),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        ((), "start.sh "),
        (("fp4",), "start_fp4_api.sh "),
        (("bf16", "-g", "0,1", "--port", "auto"), "start_bf16_api.sh -g 0,1 --port auto"),
    ],
)
def test_serve_becomes_the_start_script(checkout: Path, arguments, called: str) -> None:
    done = serve(checkout, *arguments)
    assert (done.returncode, done.stdout) == (5, f"{checkout}/{called}\n")


def test_serve_with_json_says_what_starts_and_keeps_the_rest_apart(checkout: Path) -> None:
    done = serve(checkout, "fp4", "--json", "--preload")
    assert json.loads(done.stdout)["starts"] == [f"{checkout}/start_fp4_api.sh", "--preload"]
    assert "start_fp4_api.sh --preload" in done.stderr


def test_serve_of_what_is_none_names_those_there_are(checkout: Path) -> None:
    done = serve(checkout, "int8")
    assert done.returncode == Status.USAGE and "all, bf16, fp4" in done.stderr
