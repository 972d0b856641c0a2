"""docs/lora.md, followed line by line."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

from config.settings import ROOT, leaves
from models.lora import keys
from tests.lora_files import lora
from tests.service import RunningService

GUIDE = (ROOT / "docs" / "lora.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", GUIDE, flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


def test_guide_commands_do_what_it_says_in_their_order(
    engine_service: RunningService, tmp_path: Path
) -> None:
    (tmp_path / "my-style.safetensors").write_bytes(lora(7.0))
    answers = []
    for command in COMMANDS:
        command = command.replace("127.0.0.1:8001", f"127.0.0.1:{engine_service.port}")
        command = command.replace("curl ", "curl --fail-with-body ", 1)
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        answers.append(json.loads(done.stdout) if done.stdout else None)
    put, form, listed, one, renamed, drawn, submitted, applied, status, removed, deleted = answers
    assert put["name"] == "my-style" and form == one == put and put in listed["loras"]
    assert (renamed["name"], renamed["trigger_words"]) == ("ink", ["ink drawing"])
    assert drawn["status"] == "succeeded" and submitted["id"]
    assert status.items() <= applied.items() and status["loras"][0]["weight"] == 0.5
    assert (removed["applied"], removed["loras"], deleted) == (False, [], None)
    assert engine_service.wait_for_job(submitted["id"])["status"] == "succeeded"


def test_guide_commands_are_all_curl() -> None:
    assert COMMANDS and {shlex.split(command)[0] for command in COMMANDS} == {"curl"}


def test_guide_names_every_format_that_is_told_apart() -> None:
    table = GUIDE.partition("## Formats")[2]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}  # fmt: skip
    assert named == {*keys.Naming, "lokr", "loha"} - {keys.Naming.UNKNOWN}


def test_guide_names_settings_that_there_are() -> None:
    named = set(re.findall(r"FLUX_[A-Z_]+", GUIDE))
    assert named and named <= {name for _, _, name in leaves()}
