"""What happens, told to everybody who listens, at no cost to the queue.

Events have ids that grow, also over a restart, and the last ones are kept, so that a listener who
comes back is told what it missed. A listener that reads slowly loses steps of the way, never an
end: only the newest progress of a job waits for it, and a listener that is too far behind is told
so (`is_behind`) and asks for the present state.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from utils.job import Job

KEPT_EVENTS = 4096
# What may wait for one listener. A job has five events that are kept: this is 200 jobs.
PENDING_EVENTS = 1024
# Ids begin at the time of the start in ms, times this: a million events a second, for years.
IDS_PER_MS = 1000

PROGRESS = "progress"
# The present state of the service: only the newest counts, and nobody is told an old one.
STATES = frozenset({"queue", "gpu"})
ENDS = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a job (`job_id`) of an `owner`, or to the service (None).

    `job` is there at the end of a job. `preview` is a JPEG; it is not kept for those who come back.
    """

    id: int
    name: str
    job_id: str | None = None
    owner: str | None = None
    job: Job | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    preview: str | None = None  # base64


class Subscription:
    """One listener's view: what waits for it. Made by `EventBus.subscribe`."""

    def __init__(self, job_id: str | None, owner: str | None = None) -> None:
        self.job_id = job_id
        self.owner = owner
        self.is_behind = False
        self.is_closed = False
        self._pending: collections.deque[Event] = collections.deque()
        self._something = asyncio.Event()

    async def wait(self, timeout_seconds: float) -> None:
        """Return when something waits, the bus was closed, or the time is over."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._something.wait()
        except TimeoutError:
            return

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._pending

    def take(self) -> list[Event]:
        """Everything that waits, oldest first."""
        taken = list(self._pending)
        self._pending.clear()
        if not self.is_closed:
            self._something.clear()
        return taken

    def nudge(self) -> None:
        """Wake the listener without an event: something it derives from the queue has changed."""
        self._something.set()

    def may_hear(self, event: Event) -> bool:
        """Whether the event is of the service, or of a job of the listener's; without an owner it hears all."""
        return self.owner is None or event.job_id is None or event.owner == self.owner

    def put(self, event: Event) -> None:
        if not self.may_hear(event):
            return
        if event.name == PROGRESS:
            preview = self._forget_progress(event.job_id)
            if event.preview is None and preview is not None:
                # Few steps have one, and it was not told yet.
                event = replace(event, preview=preview)
        elif event.name in STATES:
            self._forget_state(event.name)
        self._pending.append(event)
        if len(self._pending) > PENDING_EVENTS:
            self._pending.clear()
            self.is_behind = True
        self._something.set()

    def close(self) -> None:
        self.is_closed = True
        self._something.set()

    def _forget_progress(self, job_id: str | None) -> str | None:
        """Of the job's newest event, where it is one; returns the preview that it came with."""
        for index in range(len(self._pending) - 1, -1, -1):
            earlier = self._pending[index]
            if earlier.job_id == job_id:
                if earlier.name != PROGRESS:
                    return None
                del self._pending[index]
                return earlier.preview
        return None

    def _forget_state(self, name: str) -> None:
        for index, earlier in enumerate(self._pending):
            if earlier.name == name:
                del self._pending[index]
                return


class EventBus:
    """Publishes events to subscriptions. All calls from the event loop's thread."""

    def __init__(self, start_ms: int) -> None:
        self._ids = itertools.count(start_ms * IDS_PER_MS)
        self._first_id = self._last_id = next(self._ids)
        self._kept: collections.deque[Event] = collections.deque(maxlen=KEPT_EVENTS)
        self._everything: set[Subscription] = set()
        self._by_job: dict[str, set[Subscription]] = {}
        self._kept_open: frozenset[str] | None = None  # None: not closing
        # Of a job that has not ended.
        self.owner_of: Callable[[str], str | None] = lambda job_id: None
        self.listeners_elsewhere = 0  # at other front doors of the same line

    @property
    def listeners_here(self) -> int:
        """How many listen, to one job or to all."""
        return len(self._everything) + sum(map(len, self._by_job.values()))

    @property
    def listeners(self) -> int:
        return self.listeners_here + self.listeners_elsewhere

    @property
    def hears_everything(self) -> bool:
        """Whether somebody listens to the whole service."""
        return bool(self._everything)

    def listens_to(self, job_id: str) -> bool:
        return bool(self._everything) or job_id in self._by_job

    def publish(
        self,
        name: str,
        job_id: str | None = None,
        *,
        job: Job | None = None,
        data: Mapping[str, Any] | None = None,
        preview: str | None = None,
    ) -> None:
        """Tell everybody who listens to the job, or to everything."""
        if job is not None:
            owner: str | None = job.owner
        else:
            owner = None if job_id is None else self.owner_of(job_id)
        kept = Event(
            id=self.next_id(), name=name, job_id=job_id, owner=owner, job=job, data=data or {}
        )
        if name not in STATES:
            self._kept.append(kept)
        told = kept
        if preview is not None:
            told = replace(kept, preview=preview)
        for subscription in self._everything:
            subscription.put(told)
        for subscription in self._by_job.get(job_id or "", ()):
            subscription.put(told)

    def next_id(self) -> int:
        """A new id, larger than every earlier one."""
        self._last_id = next(self._ids)
        return self._last_id

    def subscribe(self, job_id: str | None, owner: str | None = None) -> Subscription:
        """Listen to one job, or to everything (None), of one owner or of all (None). End with `unsubscribe`."""
        subscription = Subscription(job_id, owner)
        listeners = self._everything if job_id is None else self._by_job.setdefault(job_id, set())
        listeners.add(subscription)
        if self._kept_open is not None and job_id not in self._kept_open:
            subscription.close()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        if subscription.job_id is None:
            self._everything.discard(subscription)
            return
        listeners = self._by_job.get(subscription.job_id, set())
        listeners.discard(subscription)
        if not listeners:
            self._by_job.pop(subscription.job_id, None)

    @contextmanager
    def listening(self, job_id: str | None, owner: str | None = None) -> Iterator[Subscription]:
        """A subscription while the block lasts."""
        subscription = self.subscribe(job_id, owner)
        try:
            yield subscription
        finally:
            self.unsubscribe(subscription)

    def since(self, last_id: int, job_id: str | None) -> list[Event] | None:
        """What was published after `last_id`; None when that is no longer known.

        Of a job's progress only the newest is among it.
        """
        oldest = self._kept[0].id if len(self._kept) == KEPT_EVENTS else self._first_id
        if not oldest <= last_id + 1 <= self._last_id + 1:
            return None
        found: dict[Any, Event] = {}
        for event in self._kept:
            if event.id > last_id and job_id in (None, event.job_id):
                key = (PROGRESS, event.job_id) if event.name == PROGRESS else event.id
                found.pop(key, None)  # the newest stands where it happened
                found[key] = event
        return list(found.values())

    def nudge(self) -> None:
        """Wake those who listen to single jobs: the line has moved."""
        for subscriptions in self._by_job.values():
            for subscription in subscriptions:
                subscription.nudge()

    def close(self, *, keep: frozenset[str] = frozenset()) -> None:
        """End every subscription but those of the jobs in `keep`, which end by themselves; new ones end at once."""
        self._kept_open = keep
        for subscription in list(self._everything):
            subscription.close()
        for job_id, subscriptions in list(self._by_job.items()):
            if job_id not in keep:
                for subscription in subscriptions:
                    subscription.close()
