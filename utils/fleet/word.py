"""What front doors of one database tell each other at once, by the database's own NOTIFY.

It makes things fast and nothing true: what is lost is found when a door compares its memory with the rows. So
nothing is told within a job's transaction, and nobody waits for it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

from utils.database.postgres import PostgresDatabase, PostgresReader

log = logging.getLogger(__name__)

CHANNEL = "flux_fleet"
GATHER_SECONDS = 0.02  # what is told meanwhile goes together
MAX_BYTES = 7000  # of one notification; the server takes 8000
LISTEN_SECONDS = 1.0  # between two looks whether to end
AGAIN_SECONDS = 1.0
KEPT = 20_000  # of messages while the database is away: what is not told is found

Message = dict[str, Any]


class Word:
    """`start` in the loop; `heard(message)` is called there for what other doors tell, `missed()` when something may be lost."""

    def __init__(
        self,
        database: PostgresDatabase,
        heard: Callable[[Message], None],
        missed: Callable[[], None],
    ) -> None:
        self._database = database
        self._reader = PostgresReader(database)
        self._heard = heard
        self._missed = missed
        self._told: list[Message] = []
        self._telling: asyncio.Task[None] | None = None
        self._is_closed = False
        self._listening: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening = threading.Thread(target=self._listen, name="doors' word", daemon=True)
        self._listening.start()

    async def close(self) -> None:
        """What was told is sent first, and wakes our own ear, too."""
        self._is_closed = True
        if self._telling is not None:
            await asyncio.gather(self._telling, return_exceptions=True)
        if self._listening is not None:
            await asyncio.to_thread(self._listening.join, LISTEN_SECONDS + AGAIN_SECONDS)

    def tell(self, message: Message) -> None:
        if self._is_closed or len(self._told) >= KEPT:
            return
        self._told.append(message)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._send_on(), name="doors' word")

    async def _send_on(self) -> None:
        while self._told:
            await asyncio.sleep(GATHER_SECONDS)
            told, self._told = self._told, []
            try:
                await asyncio.to_thread(self._send, told)
            except Exception as error:  # the others find it in the rows
                if not self._database.is_refusal(error):
                    raise
                log.warning(
                    "other doors were not told: %s",
                    self._database.in_words(error),
                    extra={"action": "word_lost"},
                )
                await asyncio.sleep(AGAIN_SECONDS)

    def _send(self, messages: list[Message]) -> None:
        self._reader.rows("notify", {"messages": json.dumps(packed(self._database.door, messages))})

    def _listen(self) -> None:
        """In a thread of its own, on a connection of its own."""
        while not self._is_closed:
            try:
                self._listen_on()
            except Exception as error:
                if self._is_closed:
                    return
                level = logging.WARNING if self._database.is_refusal(error) else logging.ERROR
                log.log(level, "other doors are not heard: %s", self._database.in_words(error),
                        extra={"action": "word_lost"})  # fmt: skip
                self._wait(AGAIN_SECONDS)

    def _listen_on(self) -> None:
        with self._database.engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.exec_driver_sql(f"LISTEN {CHANNEL}")
            driver = connection.connection.driver_connection
            assert driver is not None
            self._in_loop(self._missed)
            try:
                while not self._is_closed:
                    for notification in driver.notifies(timeout=LISTEN_SECONDS, stop_after=1):
                        self._take(notification.payload)
            finally:
                connection.invalidate()  # nobody else gets a connection that listens

    def _take(self, payload: str) -> None:
        try:
            door, messages = json.loads(payload)
        except ValueError:
            return  # not ours
        if door != self._database.door:
            for message in messages:
                self._in_loop(self._heard, message)

    def _in_loop(self, call: Callable[..., None], *values: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *values)

    def _wait(self, seconds: float) -> None:
        threading.Event().wait(seconds)


def packed(door: str, messages: list[Message]) -> list[str]:
    """The messages as payloads, as few as their size allows. One that is too long alone is left out."""
    payloads: list[str] = []
    texts: list[str] = []
    size = 0
    head = json.dumps(door)

    def close() -> None:
        if texts:
            payloads.append(f"[{head}, [{', '.join(texts)}]]")
            texts.clear()

    for message in messages:
        text = json.dumps(message)  # ASCII: its length is that of its bytes
        if size + len(text) > MAX_BYTES:
            close()
            size = 0
        if len(text) <= MAX_BYTES:
            texts.append(text)
            size += len(text) + 2
    close()
    return payloads
