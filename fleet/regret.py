"""How long jobs waited of late beside an idle card, for want of their model there."""

from __future__ import annotations

import math
from collections.abc import Mapping

MEMORY_SECONDS = 300.0


class Regret:
    """Job seconds by model since it was last loaded; what was long ago counts little."""

    def __init__(self) -> None:
        self._by_model: dict[str, tuple[float, float, int]] = {}  # seconds, as of when, who waits

    def of(self, model: str, now: float) -> float:
        seconds, then, count = self._by_model.get(model, (0.0, now, 0))
        return seconds * math.exp((then - now) / MEMORY_SECONDS) + count * (now - then)

    def watch(self, waiting: Mapping[str, int], now: float) -> None:
        """From now on so many wait of each model; nobody of those that are not named."""
        for model, (_, _, count) in list(self._by_model.items()):
            if count and model not in waiting:
                self._by_model[model] = (self.of(model, now), now, 0)
        for model, count in waiting.items():
            self._by_model[model] = (self.of(model, now), now, count)

    def forget(self, model: str, now: float) -> None:
        """It is loaded once more."""
        self._by_model[model] = (0.0, now, 0)
