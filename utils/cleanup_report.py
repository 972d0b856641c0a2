"""What a cleanup removed, what it left and why: as JSON and in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MIB = 2**20
MAX_NOTES = 20
# What is removed, and what it is called in words.
KINDS = {
    "outputs": "pictures",
    "thumbnails": "thumbnails",
    "staging": "unfinished pictures",
    "uploads": "unfinished uploads",
    "logs": "rotated logs",
    "jobs": "jobs",
    "usage": "rows of usage",
}


@dataclass(slots=True)
class Tally:
    count: int = 0
    bytes: int = 0

    def add(self, size_bytes: int = 0) -> None:
        self.count += 1
        self.bytes += size_bytes


@dataclass(slots=True, kw_only=True)
class Report:
    """`notes` say in words what was left although it might go, and why."""

    dry_run: bool
    started_at: str = ""
    began: float = 0.0  # the same in seconds since 1970
    seconds: float = 0.0
    tallies: dict[str, Tally] = field(default_factory=lambda: {kind: Tally() for kind in KINDS})
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes and len(self.notes) < MAX_NOTES:
            self.notes.append(text)

    @property
    def is_empty(self) -> bool:
        return not any(tally.count for tally in self.tallies.values())

    def to_json(self) -> dict[str, Any]:
        removed = {
            kind: {"count": tally.count, "bytes": tally.bytes}
            for kind, tally in self.tallies.items()
        }
        return {
            "dry_run": self.dry_run,
            "started_at": self.started_at,
            "seconds": round(self.seconds, 3),
            "removed": removed,
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        done = "would be removed" if self.dry_run else "removed"
        found = [
            f"{tally.count} {KINDS[kind]}" + (f" ({_size(tally.bytes)})" if tally.bytes else "")
            for kind, tally in self.tallies.items()
            if tally.count
        ]
        what = ", ".join(found) or "nothing"
        return "\n".join([f"{done}: {what}, in {self.seconds:.1f} s", *self.notes])


def _size(size_bytes: int) -> str:
    return f"{size_bytes / MIB:.1f} MiB" if size_bytes >= MIB / 10 else f"{size_bytes} bytes"
