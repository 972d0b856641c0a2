"""Who may ask the cloud next: first in, first out, also for those who were told to come back later."""

from __future__ import annotations

import asyncio
import bisect
import time
from collections.abc import Callable

Place = tuple[int, int]  # of a job, and of a picture of it


class CloudTurns:
    """Turns by place. At most `room` pictures are in the cloud at once."""

    def __init__(self, room: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._room = room
        self._monotonic = monotonic
        self._waiting: list[Place] = []  # sorted
        self._inside: set[Place] = set()
        self._not_before = 0.0
        self._moved = asyncio.Condition()

    def enter(self, place: Place) -> None:
        """A picture that the cloud has already: it waits for nobody."""
        self._inside.add(place)

    async def wait(self, place: Place) -> None:
        """Return when it is this picture's turn; it is inside from then on."""
        self._inside.discard(place)
        bisect.insort(self._waiting, place)
        try:
            while True:
                async with self._moved:
                    await self._moved.wait_for(
                        lambda: self._waiting[0] == place and len(self._inside) < self._room
                    )
                pause = self._not_before - self._monotonic()
                if pause <= 0:
                    break
                await asyncio.sleep(pause)
            self._inside.add(place)
        finally:
            self._waiting.remove(place)
            await self._tell()

    async def leave(self, place: Place) -> None:
        """The cloud has the picture no more, or never had it."""
        self._inside.discard(place)
        await self._tell()

    def hold(self, seconds: float) -> None:
        """Nobody asks for so long: the cloud wants it so."""
        self._not_before = max(self._not_before, self._monotonic() + seconds)

    async def _tell(self) -> None:
        async with self._moved:
            self._moved.notify_all()
