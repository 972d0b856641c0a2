"""The line of jobs that wait, in which a job may be passed by later ones, but not without end.

Jobs with equal needs are of one kind and wait in the order in which they came. A card may take a job
whose model it has loaded before an older one that would need a load: that one is *passed*. Each kind
counts who passed its oldest job on a card that could have run it, and who was passed as often as is
allowed is next on any card that can run it. Younger jobs of a kind were passed by no more than its oldest.
How often that is grows with how many waited before a job when it came: by its place it knew it would wait.
"""

from __future__ import annotations

import bisect
import collections
from collections.abc import Callable, Iterator

from fleet.wanted import Wanted


class Kind:
    """Waiting jobs with equal needs."""

    def __init__(self, wanted: Wanted) -> None:
        self.example = wanted
        self.model = wanted.model
        self.seqs: list[int] = []  # sorted
        self._by_set: dict[str, list[int]] = {}  # the same by LoRA set
        self._passed_by: list[int] = []  # sorted; who is younger than the oldest and went before it

    def __len__(self) -> int:
        return len(self.seqs)

    @property
    def oldest(self) -> int:
        return self.seqs[0]

    @property
    def passed(self) -> int:
        """How often its oldest job was passed."""
        return len(self._passed_by)

    def oldest_with(self, lora_set: str) -> int | None:
        """The oldest with this LoRA set, None where there is none."""
        seqs = self._by_set.get(lora_set)
        return seqs[0] if seqs else None

    def add(self, wanted: Wanted) -> None:
        bisect.insort(self.seqs, wanted.seq)
        bisect.insort(self._by_set.setdefault(wanted.lora_set, []), wanted.seq)

    def remove(self, wanted: Wanted) -> None:
        _delete(self.seqs, wanted.seq)
        seqs = self._by_set[wanted.lora_set]
        _delete(seqs, wanted.seq)
        if not seqs:
            del self._by_set[wanted.lora_set]
        if self.seqs:
            del self._passed_by[: bisect.bisect_left(self._passed_by, self.oldest)]

    def count_pass(self, seq: int) -> None:
        """A job went before those of this kind that are older."""
        if seq > self.oldest:
            bisect.insort(self._passed_by, seq)


class Waiting:
    """All that wait."""

    def __init__(self) -> None:
        self.by_model: collections.Counter[str] = collections.Counter()
        self._jobs: dict[str, Wanted] = {}
        self._by_seq: dict[int, Wanted] = {}
        self._seqs: list[int] = []  # sorted
        self._came: dict[int, tuple[int, float]] = {}  # how many waited before it, and when it came
        self._kinds: dict[object, Kind] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: str) -> bool:
        return job in self._jobs

    def __iter__(self) -> Iterator[Wanted]:
        return (self._by_seq[seq] for seq in self._seqs)

    def kinds(self) -> Iterator[Kind]:
        return iter(self._kinds.values())

    def get(self, job: str) -> Wanted | None:
        return self._jobs.get(job)

    def at(self, seq: int) -> Wanted:
        return self._by_seq[seq]

    def position(self, job: str) -> int:
        """Place of a waiting job: 1 is the oldest."""
        return bisect.bisect_left(self._seqs, self._jobs[job].seq) + 1

    def ahead(self, seq: int) -> int:
        """How many waited before a job when it came."""
        return self._came[seq][0]

    def came_at(self, seq: int) -> float:
        return self._came[seq][1]

    def oldest_of(self, model: str) -> Wanted | None:
        """The oldest job of a model, whatever else it needs."""
        seqs = [kind.oldest for kind in self._kinds.values() if kind.model == model]
        return self._by_seq[min(seqs)] if seqs else None

    def add(self, wanted: Wanted, now: float) -> None:
        """A job at its place: the end for a new one, its old place for one that comes back."""
        other = self._by_seq.get(wanted.seq)
        if wanted.job in self._jobs or other is not None:
            raise ValueError(f"job {wanted.job}: it or another one waits at {wanted.seq}")
        self._jobs[wanted.job] = self._by_seq[wanted.seq] = wanted
        ahead = bisect.bisect_left(self._seqs, wanted.seq)
        self._seqs.insert(ahead, wanted.seq)
        self._came[wanted.seq] = (ahead, now)
        self.by_model[wanted.model] += 1
        self.kind_of(wanted).add(wanted)

    def kind_of(self, wanted: Wanted) -> Kind:
        kind = self._kinds.get(wanted.needs)
        if kind is None:
            kind = self._kinds[wanted.needs] = Kind(wanted)
        return kind

    def like(self, wanted: Wanted) -> Kind | None:
        """The kind of jobs with equal needs; None where none waits."""
        return self._kinds.get(wanted.needs)

    def remove(self, wanted: Wanted) -> None:
        """A job that waits no more, whatever became of it."""
        del self._jobs[wanted.job], self._by_seq[wanted.seq], self._came[wanted.seq]
        _delete(self._seqs, wanted.seq)
        self.by_model[wanted.model] -= 1
        kind = self._kinds[wanted.needs]
        kind.remove(wanted)
        if not kind:
            del self._kinds[wanted.needs]

    def start(self, wanted: Wanted, could_run: Callable[[Kind], bool]) -> None:
        """A job goes to a card; older ones that the card could have run were passed."""
        self.remove(wanted)
        for kind in self._kinds.values():
            if wanted.seq > kind.oldest and could_run(kind):
                kind.count_pass(wanted.seq)


def _delete(seqs: list[int], seq: int) -> None:
    del seqs[bisect.bisect_left(seqs, seq)]
