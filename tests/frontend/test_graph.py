"""The graph, and what else of the page needs no browser, under Node.js."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from config.settings import ROOT

TESTS = sorted((Path(__file__).parent / "graph").glob("*.test.mjs"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name.removesuffix(".test.mjs"))
def test_graph_under_node_holds(path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node; scripts/test.sh installs it")
    ran = subprocess.run([node, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "# pass 0\n" not in ran.stdout and "ℹ pass 0\n" not in ran.stdout, "no test in it"
