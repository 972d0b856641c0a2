"""The line in memory: who waits, in order, so that a position costs no query.

It mirrors the rows whose status is `queued`. The queue manager changes it after each commit. Jobs
of the cloud and jobs of this machine wait for different things, so each have a lane of their own.
"""

from __future__ import annotations

import bisect
import collections
import heapq
import itertools
from collections.abc import Iterable
from enum import StrEnum

from config.catalog import CLOUD_BACKEND


class Lane(StrEnum):
    LOCAL = "local"  # waits for a worker of this machine
    CLOUD = "cloud"  # waits for the cloud, and holds no worker

    @classmethod
    def of(cls, backend: str) -> Lane:
        """The lane of jobs of a backend."""
        return cls.CLOUD if backend == CLOUD_BACKEND else cls.LOCAL


class Line:
    """Waiting jobs by `seq`, their place in line, which never changes."""

    def __init__(self) -> None:
        self._seqs: dict[Lane, list[int]] = {lane: [] for lane in Lane}  # sorted
        self._jobs: dict[int, tuple[str, str, Lane]] = {}  # seq: (job id, owner, lane)
        self._by_owner: collections.Counter[str] = collections.Counter()
        self.sum_of_places = 0  # what two lines are compared by

    def __len__(self) -> int:
        return len(self._jobs)

    def count(self, lane: Lane) -> int:
        """How many jobs wait in one lane."""
        return len(self._seqs[lane])

    def fill(self, rows: Iterable[tuple[int, str, str]]) -> None:
        """Begin with (seq, job id, owner) of every waiting job."""
        for seq, job_id, owner in rows:
            self.add(seq, job_id, owner)

    def add(self, seq: int, job_id: str, owner: str, lane: Lane = Lane.LOCAL) -> None:
        """A job at its place: the end for a new one, its old place for one that comes back."""
        if seq not in self._jobs:
            bisect.insort(self._seqs[lane], seq)
            self._jobs[seq] = (job_id, owner, lane)
            self.sum_of_places += seq
            self._by_owner[owner] += 1

    def remove(self, seq: int) -> None:
        """A job that waits no more; nothing happens for one that does not wait."""
        if seq in self._jobs:
            _, owner, lane = self._jobs.pop(seq)
            self.sum_of_places -= seq
            seqs = self._seqs[lane]
            del seqs[bisect.bisect_left(seqs, seq)]
            self._by_owner[owner] -= 1

    def oldest(self, limit: int, owner: str | None = None) -> list[tuple[int, str]]:
        """(seq, job id) of those that wait, oldest first, of all lanes; of one owner where it is named."""
        merged = heapq.merge(*self._seqs.values())
        jobs = ((seq, *self._jobs[seq][:2]) for seq in merged)
        seen = ((seq, job_id) for seq, job_id, whose in jobs if owner in (None, whose))
        return list(itertools.islice(seen, limit))

    def position(self, seq: int) -> int:
        """Place of a waiting job in its lane: 1 is next."""
        _, _, lane = self._jobs.get(seq, ("", "", Lane.LOCAL))
        return bisect.bisect_left(self._seqs[lane], seq) + 1

    def count_of(self, owner: str) -> int:
        """How many jobs of one owner wait."""
        return self._by_owner[owner]
