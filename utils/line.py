"""The line in memory: who waits, in order, so that a position costs no query.

It mirrors the rows whose status is `queued`. The queue manager changes it after each commit.
"""

from __future__ import annotations

import bisect
import collections
from collections.abc import Iterable


class Line:
    """Waiting jobs by `seq`, their place in line, which never changes."""

    def __init__(self) -> None:
        self._seqs: list[int] = []  # sorted
        self._jobs: dict[int, tuple[str, str]] = {}  # seq: (job id, owner)
        self._by_owner: collections.Counter[str] = collections.Counter()

    def __len__(self) -> int:
        return len(self._seqs)

    def fill(self, rows: Iterable[tuple[int, str, str]]) -> None:
        """Begin with (seq, job id, owner) of every waiting job."""
        for seq, job_id, owner in rows:
            self.add(seq, job_id, owner)

    def add(self, seq: int, job_id: str, owner: str) -> None:
        """A job at its place: the end for a new one, its old place for one that comes back."""
        if seq not in self._jobs:
            bisect.insort(self._seqs, seq)
            self._jobs[seq] = (job_id, owner)
            self._by_owner[owner] += 1

    def remove(self, seq: int) -> None:
        """A job that waits no more; nothing happens for one that does not wait."""
        if seq in self._jobs:
            del self._seqs[bisect.bisect_left(self._seqs, seq)]
            _, owner = self._jobs.pop(seq)
            self._by_owner[owner] -= 1

    def position(self, seq: int) -> int:
        """Place of a waiting job: 1 is next."""
        return bisect.bisect_left(self._seqs, seq) + 1

    def count_of(self, owner: str) -> int:
        """How many jobs of one owner wait."""
        return self._by_owner[owner]
