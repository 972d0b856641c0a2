"""The programs that we are measured beside, in an environment of their own.

    python -m scripts.bench.rivals [PART...]

`.venv-rivals` has pip's packages below and takes everything else (torch, diffusers, FastAPI) from the environment
that this runs in, so that both sides compute with the same libraries and no requirement of ours names a rival.
`python -m scripts.bench` makes it when a part needs it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib.metadata import PathDistribution, distributions
from pathlib import Path

from config.settings import ROOT

HOME = ROOT / ".venv-rivals"
INSTALL_SECONDS = 300
PACKAGES: Mapping[str, Sequence[str]] = {
    "submits": ("huey==3.5.4", "celery==5.7.0", "redis==8.1.0"),
    "servers": ("litserve==0.2.19",),
    "fp4_quality": ("bitsandbytes==0.50.2",),
}
# What pip must not take another version of, whatever a rival asks for.
SHARED = ("torch", "diffusers", "transformers", "numpy", "fastapi", "starlette", "uvicorn", "pydantic")  # fmt: skip


class MissingRival(Exception):
    """A package is not there. The message names it and says how it comes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PACKAGES)}; all")
    parts = parser.parse_args().parts or list(PACKAGES)
    for part in parts:
        if part not in PACKAGES:
            parser.error(f"{part} needs no rival; the parts that do are {', '.join(PACKAGES)}")
        try:
            install(part)
        except MissingRival as error:
            raise SystemExit(str(error)) from None


def python(part: str, home: Path = HOME) -> str:
    """The Python that has the part's rivals. Raises MissingRival."""
    missing = _missing(part, home)
    if missing:
        raise MissingRival(
            f"{', '.join(missing)} not installed; python -m scripts.bench.rivals {part} does it"
        )
    return str(_python(home))


def install(part: str, home: Path = HOME) -> None:
    """Fetches what is missing of the part's packages. Raises MissingRival with pip's last words."""
    if not site(home).is_dir():  # none yet, or of another Python
        _make(home)
    _ours(home).write_text(_our_site() + "\n", encoding="utf-8")
    missing = _missing(part, home)
    if not missing:
        return
    limits = home / "shared.txt"
    limits.write_text("".join(f"{name}=={version}\n" for name, version in _shared()), "utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(_python(home)), "install", "--quiet"]
    pip += ["--disable-pip-version-check", "--constraint", str(limits), *missing]
    _run(pip, ", ".join(missing))


def version(package: str, home: Path = HOME) -> str:
    return _installed(home).get(package, "")


def _missing(part: str, home: Path) -> list[str]:
    have = _installed(home)
    return [pin for pin in PACKAGES[part] if have.get(pin.split("==")[0]) != pin.split("==")[1]]


def _installed(home: Path) -> dict[str, str]:
    if not _python(home).exists():
        return {}
    return {
        each.metadata["Name"].lower(): each.version
        for each in distributions(path=[str(site(home))])
        if isinstance(each, PathDistribution)
    }


def _make(home: Path) -> None:
    command = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(home)]
    _run(command, "a virtual environment")
    _ours(home).write_text(_our_site() + "\n", encoding="utf-8")


def _shared() -> list[tuple[str, str]]:
    return [(e.metadata["Name"], e.version) for e in distributions() if e.metadata["Name"].lower() in SHARED]  # fmt: skip


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise MissingRival(f"{what}: not there after {INSTALL_SECONDS} s") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise MissingRival(f"{what} could not be installed: {words[-1]}")


def _python(home: Path) -> Path:
    return home / "bin" / "python"


def site(home: Path = HOME) -> Path:
    """Where its packages are."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return home / "lib" / version / "site-packages"


def _ours(home: Path) -> Path:
    """The file that makes its Python find our packages, after its own."""
    return site(home) / "ours.pth"


def _our_site() -> str:
    return sysconfig.get_paths()["purelib"]


if __name__ == "__main__":
    main()
