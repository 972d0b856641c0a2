"""The packages of an environment: those that are pinned, and those that are not what their name says."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version

from models.fp4 import nunchaku_support
from scripts.diagnosis.machine import ROOT, Finding, State

# Packages without which the services start and the embedded model draws, and what then does not work.
_DISPENSABLE = {
    "nvidia-ml-py": "no GPU is seen",
    "sentencepiece": "no T5 vocabulary is read that comes without a tokenizer.json",
    "protobuf": "no T5 vocabulary is read that comes without a tokenizer.json",
    "peft": "no LoRA is loaded",
    "httpx2": "the cloud models are not reached, and the command line reaches no service",
    "prometheus-client": "there are no metrics",
    "python-multipart": "no file is uploaded",
    "typer": "the command line has the doctor alone",
    "rich": "the command line has the doctor alone",
}
ANEW = "rm -rf .venv && scripts/setup_env.sh"


def look_at_packages() -> Finding:
    """The packages of pyproject.toml against what is installed, by name and version."""
    name = "packages"
    try:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        pinned = [text.split("==") for text in project["dependencies"]]
    except (OSError, ValueError, KeyError) as error:
        return Finding(name=name, state=State.NOTE, text=f"pyproject.toml cannot be read: {error}")
    missing, other = [], []
    for package, wanted in pinned:
        try:
            found = version(package).split("+")[0]
        except PackageNotFoundError:
            missing.append(package)
            continue
        if found != wanted:
            other.append(f"{package} {found} (wanted {wanted})")
    if missing:
        stops = [package for package in missing if package not in _DISPENSABLE]
        without = dict.fromkeys(_DISPENSABLE[p] for p in missing if p in _DISPENSABLE)
        means = "" if stops or not without else f"; without them {', '.join(without)}"
        return Finding(
            name=name,
            state=State.FAULT if stops else State.WRONG,
            text=f"missing in {sys.prefix}: {', '.join(missing)}{means}",
            fix=f"make the environment anew in {ROOT}: {ANEW}; and run this with {ROOT}/.venv/bin/python",
        )
    if other:
        return Finding(
            name=name,
            state=State.WRONG,
            text=f"{len(other)} of {len(pinned)} in {sys.prefix} are of another version: {', '.join(other)}",
            fix=f"make the environment anew with the versions that were tested: {ANEW}",
        )
    return Finding(name=name, state=State.OK, text=f"all {len(pinned)} as pinned, in {sys.prefix}")


def look_at_impostors() -> list[Finding]:
    """Packages that have the name of something that is needed, and are something else."""
    findings = []
    if pynvml := _version("pynvml"):
        findings.append(
            Finding(
                name="pynvml",
                state=State.WRONG,
                text=f"pynvml {pynvml} is installed in {sys.prefix}: an abandoned package that stands in "
                "the way of nvidia-ml-py, whose module has the same name",
                fix=f"{sys.executable} -m pip uninstall -y pynvml nvidia-ml-py && {ANEW}",
            )
        )
    wrong = nunchaku_support.why_wrong_package() if _version("nunchaku") else None
    if wrong:
        findings.append(
            Finding(
                name="nunchaku",
                state=State.WRONG,
                text=wrong,
                fix=f"{sys.executable} -m pip uninstall -y nunchaku",
            )
        )
    return findings


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
