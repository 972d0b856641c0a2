"""What is asked for lately, by model."""

from __future__ import annotations

import math


class Demand:
    """Jobs a second of each model; what was long ago counts little."""

    def __init__(self, memory_seconds: float = 300.0) -> None:
        self.memory_seconds = memory_seconds
        self._by_model: dict[str, tuple[float, float]] = {}  # rate, as of when

    def add(self, model: str, now: float) -> None:
        """A job came."""
        self._by_model[model] = (self.of(model, now) + 1 / self.memory_seconds, now)

    def of(self, model: str, now: float) -> float:
        rate, then = self._by_model.get(model, (0.0, now))
        return rate * math.exp((then - now) / self.memory_seconds)

    def all(self, now: float) -> dict[str, float]:
        return {model: self.of(model, now) for model in self._by_model}
