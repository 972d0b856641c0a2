"""What is asked for lately, by model."""

from __future__ import annotations


class Demand:
    """Shares of the last jobs: an older one counts less, half after about 0.7 times `horizon` more."""

    def __init__(self, horizon: int = 256) -> None:
        self._keep = 1 - 1 / horizon
        self._asked = 0
        self._by_model: dict[str, tuple[float, int]] = {}  # weight as of so many jobs

    def add(self, model: str) -> None:
        """A job came."""
        self._asked += 1
        self._by_model[model] = (self.of(model) + 1 - self._keep, self._asked)

    def of(self, model: str) -> float:
        """The share of the model, 0 to 1."""
        weight, asked = self._by_model.get(model, (0.0, self._asked))
        return weight * self._keep ** (self._asked - asked)
