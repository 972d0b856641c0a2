"""The Dockerfile and its context as data: what an image would hold, without an engine to build it."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from config.settings import ROOT

TARGETS = ("cpu", "cuda")


def instructions(target: str) -> list[tuple[str, str]]:
    """(word, rest) of a target and of the stages it is made FROM, in the order they take effect."""
    stages: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for word, rest in _all_instructions():
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            stages[name] = list(stages.get(parent, []))
        elif name:
            stages[name].append((word, rest))
    return stages[target]


def _all_instructions() -> Iterator[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.partition(" ")
        yield word, " ".join(rest.split())


def environment(target: str) -> dict[str, str]:
    """What ENV sets."""
    pairs = [
        found
        for word, rest in instructions(target)
        if word == "ENV"
        for found in re.findall(r'(\w+)=("[^"]*"|\S+)', rest)
    ]
    return {name: value.strip('"') for name, value in pairs}


def is_in_context(path: str) -> bool:
    """Whether .dockerignore lets a path through: the last pattern that matches it or a folder of it decides."""
    parts = path.split("/")
    folders = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    taken = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        again = pattern.startswith("!")
        if any(_regex(pattern.lstrip("!")).fullmatch(folder) for folder in folders):
            taken = again
    return taken


def _regex(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
    return re.compile(text)


def make_app_folder(to: Path) -> Path:
    """`/app` as an image has it but for weights: what COPY brings and mkdir makes. `.venv` is the tests' own."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        at = Path(folder).relative_to(ROOT)
        return {
            name
            for name in names
            if name.endswith(".safetensors") or not is_in_context(str(at / name))
        }

    shutil.copytree(ROOT, to, ignore=left_out)
    for folder in folders_of_the_services():
        (to / folder).mkdir(parents=True)
    (to / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    return to


def folders_of_the_services() -> list[str]:
    """What mkdir makes in the image, for the volumes."""
    (made,) = [
        found[1]
        for word, rest in instructions("cpu")
        if word == "RUN" and (found := re.search(r"mkdir -p ([\w/ ]+)", rest))
    ]
    return made.split()
