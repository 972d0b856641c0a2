"""What holds for every shell script."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from config.settings import ROOT

SOURCED = {"lib.sh"}
SCRIPTS = sorted(
    [ROOT / "flux", *ROOT.glob("*.sh"), *ROOT.glob("scripts/**/*.sh"), ROOT / ".ci" / "run"]
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_script_is_shellcheck_clean(script: Path) -> None:
    shellcheck = shutil.which("shellcheck")
    assert shellcheck, "shellcheck is missing; scripts/test.sh installs it"
    checked = subprocess.run(
        [shellcheck, "--external-sources", str(script)], cwd=ROOT, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.name not in SOURCED], ids=name_of)
def test_script_can_be_run_and_is_strict(script: Path) -> None:
    text = script.read_text()
    assert os.access(script, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert text.rstrip().endswith('main "$@"')
