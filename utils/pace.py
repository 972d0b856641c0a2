"""How long things take here, measured: what is promised to those who wait."""

from __future__ import annotations

import collections
from collections.abc import Hashable

# Before any job was measured: what one is thought to take.
FIRST_GUESS_SECONDS = 5.0
MEASURED_JOBS = 20
# How fast a measured mean follows a change: each new value counts this much.
WEIGHT = 0.3
# A batch that did not pay is tried again after this many jobs: machines and loads change.
TRY_AGAIN_AFTER = 50
# A batch must win by this much, or its jobs are better off alone: they end one after the other.
GAIN = 1.05


class Mean:
    """A mean that follows: the newest value counts `WEIGHT`."""

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, value: float) -> None:
        self.value = value if self.value is None else self.value + WEIGHT * (value - self.value)


class Pace:
    """Seconds of jobs, and milliseconds of steps by kind (model and size)."""

    def __init__(self) -> None:
        self._jobs: collections.deque[float] = collections.deque(maxlen=MEASURED_JOBS)
        self._steps: collections.defaultdict[Hashable, Mean] = collections.defaultdict(Mean)
        self._rest: collections.defaultdict[Hashable, Mean] = collections.defaultdict(Mean)
        self._alone: collections.defaultdict[Hashable, Mean] = collections.defaultdict(Mean)
        self._together: collections.defaultdict[Hashable, Mean] = collections.defaultdict(Mean)
        self._refused: collections.Counter[Hashable] = collections.Counter()

    def job_took(self, seconds: float) -> None:
        """A job ended this long after it began."""
        self._jobs.append(seconds)

    @property
    def job_seconds(self) -> float | None:
        """Mean seconds of the last jobs; None before the first."""
        return sum(self._jobs) / len(self._jobs) if self._jobs else None

    def wait_seconds(self, jobs_before: int, workers: int) -> float:
        """How long that many jobs are thought to take on that many workers."""
        mean = self.job_seconds
        return (FIRST_GUESS_SECONDS if mean is None else mean) * jobs_before / workers

    def step_took(self, kind: Hashable, milliseconds: float) -> None:
        """One step of the sampler took this long."""
        self._steps[kind].add(milliseconds)

    def rest_took(self, kind: Hashable, milliseconds: float) -> None:
        """Decoding and saving a picture took this long."""
        self._rest[kind].add(milliseconds)

    def eta_ms(self, kind: Hashable, steps_left: int, pictures_left: int) -> float | None:
        """Milliseconds until a running job is thought to end; None before a step was measured."""
        step = self._steps[kind].value
        if step is None:
            return None
        return steps_left * step + pictures_left * (self._rest[kind].value or 0.0)

    def batch_took(self, kind: Hashable, pictures: int, milliseconds: float) -> None:
        """`pictures` were drawn together in this time."""
        means = self._alone if pictures == 1 else self._together
        means[kind].add(milliseconds / pictures)

    def batch_pays(self, kind: Hashable) -> bool:
        """Whether pictures of a kind are drawn faster together, as far as was measured."""
        alone, together = self._alone[kind].value, self._together[kind].value
        if alone is None:
            return False  # one alone first, to have something to compare with
        if together is None or alone >= GAIN * together:
            return True
        self._refused[kind] += 1
        return self._refused[kind] % TRY_AGAIN_AFTER == 0
