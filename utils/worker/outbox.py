"""What a worker does beside drawing: previews, and pictures into files.

Two threads, so that a PNG that takes long delays no report of the next job's steps. The drawing
thread only hands over; it waits when pictures come faster than they can be saved.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import partial

# Pictures that may wait to be saved: more would hold memory without making anything faster.
WAITING_PICTURES = 4


class Outbox:
    """Runs `report` and `save` calls in order, each kind in its own thread, and in the context that
    they were handed over in: what they log is about the same jobs.

    `on_error(error)` is called in the thread for a call that raises; it must not return normally
    if the worker cannot go on.
    """

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._reports: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._saves: queue.Queue[Callable[[], None]] = queue.Queue(WAITING_PICTURES)
        for name, calls in (("reports", self._reports), ("saves", self._saves)):
            threading.Thread(target=self._work, args=(calls,), name=name, daemon=True).start()

    def report(self, call: Callable[[], None]) -> None:
        self._reports.put(partial(copy_context().run, call))

    def save(self, call: Callable[[], None]) -> None:
        """Waits when WAITING_PICTURES wait already."""
        self._saves.put(partial(copy_context().run, call))

    def flush(self) -> None:
        """Wait until everything that was handed over is done."""
        for calls in (self._saves, self._reports):
            done = threading.Event()
            calls.put(done.set)
            done.wait()

    def _work(self, calls: queue.SimpleQueue[Callable[[], None]] | queue.Queue) -> None:
        while True:
            call = calls.get()
            try:
                call()
            except BaseException as error:
                self._on_error(error)
