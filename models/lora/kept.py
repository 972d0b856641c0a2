"""Values kept by key while they fit; those used longest ago leave first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """Holds at most `max_bytes`. A value larger than that is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Value | None:
        """The value, which is then the one used last; None when it is not here."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: Hashable, value: Value, size_bytes: int) -> None:
        self._forget(key)
        if size_bytes > self._max_bytes:
            return
        self._entries[key] = value, size_bytes
        self.size_bytes += size_bytes
        while self.size_bytes > self._max_bytes:
            self._forget(next(iter(self._entries)))

    def clear(self) -> None:
        self._entries.clear()
        self.size_bytes = 0

    def _forget(self, key: Hashable) -> None:
        if key in self._entries:
            self.size_bytes -= self._entries.pop(key)[1]
