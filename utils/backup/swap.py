"""Put new files in the place of old ones, all of them or none, also when the process is killed half-way.

What is to be done is written down and synced before the first file moves. Each step is a rename within one disk: the
old one aside, the new one in. Who finds the journal of a swap that was cut off can tell from what lies where how far
it came, and goes back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.backup.manifest import BackupError, sync_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`target` gets what is at `staged` (None: nothing), and what it was goes to `aside`, where there was something."""

    target: str
    staged: str | None
    aside: str
    had_before: bool

    def do(self) -> None:
        if self.had_before:
            Path(self.aside).parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.target, self.aside)
        if self.staged is not None:
            Path(self.target).parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.staged, self.target)

    def undo(self) -> None:
        """From wherever it was cut off."""
        if self.had_before:
            if os.path.lexists(self.aside):
                if os.path.lexists(self.target) and self.staged is not None:
                    os.rename(self.target, self.staged)
                os.rename(self.aside, self.target)
        elif self.staged is not None and not os.path.lexists(self.staged):
            if os.path.lexists(self.target):
                os.rename(self.target, self.staged)


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """`journals` are where it is written down: in every folder of data, whose services then do not start."""

    steps: Sequence[Step]
    journals: Sequence[str]
    staging: Sequence[str]  # folders and files that are removed in the end
    asides: Sequence[str]  # folders and files that stay, but for folders in which nothing lies

    def run(self) -> None:
        """All of it. What interrupts it undoes it."""
        self._write_down()
        try:
            for step in self.steps:
                step.do()
            self._sync(Path(step.target).parent for step in self.steps)
        except BaseException:
            self.undo()
            raise
        self._forget()

    def undo(self) -> None:
        for step in reversed(self.steps):
            step.undo()
        self._sync(Path(step.target).parent for step in self.steps)
        self._forget()

    def _forget(self) -> None:
        """The journals first: what is left of staging then is no more than litter."""
        for journal in self.journals:
            Path(journal).unlink(missing_ok=True)
        self._sync(Path(journal).parent for journal in self.journals)
        for path in self.staging:
            remove(Path(path))
        for folder in self.asides:
            for path, _, _ in os.walk(folder, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)

    def _write_down(self) -> None:
        text = json.dumps(asdict(self), indent=1)
        try:
            for journal in self.journals:
                temporary = Path(f"{journal}.part")
                with open(temporary, "w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, journal)
                sync_folder(Path(journal).parent)
        except BaseException:
            for journal in self.journals:
                for path in (Path(journal), Path(f"{journal}.part")):
                    path.unlink(missing_ok=True)
            raise

    def _sync(self, folders: Iterable[Path]) -> None:
        for folder in {folder for folder in folders if folder.is_dir()}:
            sync_folder(folder)


def read(journal: Path) -> Swap:
    """A swap that was cut off. Raises BackupError."""
    try:
        values = json.loads(journal.read_text(encoding="utf-8"))
        steps = tuple(Step(**step) for step in values.pop("steps"))
        return Swap(steps=steps, **values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BackupError(
            f"{journal} cannot be read ({error}), and says what a restore that was cut off had done"
        ) from error


def remove(path: Path) -> None:
    """A staged folder or file, as far as it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
