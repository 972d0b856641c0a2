"""Which replicas there are, as this process was told by Ray. Ray's router runs in a thread of its own.

Ray makes the router from a class and values that went through another process, so the two of one process
find each other here, by a name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# The same in every front door: with another one Ray would take replicas for changed, and end them.
BOARD = "fleet"

_boards: dict[str, Board] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A running replica: its id, the name of its actor, and the deployment it belongs to."""

    id: str
    actor: str
    deployment: str
    ray_node: str


class Board:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seats: dict[str, Mapping[str, Seat]] = {}
        self._on_change: Callable[[], None] = lambda: None

    def listen(self, on_change: Callable[[], None]) -> None:
        """`on_change` is called from any thread, now and after every change."""
        self._on_change = on_change
        on_change()

    def show(self, deployment: str, seats: Mapping[str, Seat]) -> None:
        """All running replicas of a deployment."""
        with self._lock:
            is_new = self._seats.get(deployment) != seats
            self._seats[deployment] = seats
        if is_new:
            self._on_change()

    def seats(self) -> dict[str, Seat]:
        with self._lock:
            return {id: seat for seats in self._seats.values() for id, seat in seats.items()}


def board_of(name: str) -> Board:
    """The board of that name in this process, made when it is first asked for."""
    return _boards.setdefault(name, Board())
