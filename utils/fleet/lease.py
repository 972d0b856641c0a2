"""Who of several front doors routes: the one that has the lease, a row with an end, renewed each second.

All ends go by the database's clock. The holder counts from before it asked, so it stops a moment before another
may begin; and should it think too long that it holds, every claim looks at the row again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from utils.database.postgres import PostgresDatabase, PostgresReader

log = logging.getLogger(__name__)

LEASE_SECONDS = 5.0
MARGIN_SECONDS = 1.0


class Lease:
    """Of one door. `look` blocks: for a thread, one call at a time."""

    def __init__(
        self, database: PostgresDatabase, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.epoch: int | None = None  # None: another door routes, or none
        self.holder: str | None = None  # the name of the door that routes, as of the last look
        self._database = database
        self._reader = PostgresReader(database)
        self._monotonic = monotonic
        self._sure_until = 0.0
        self._was_over = False

    @property
    def is_sure(self) -> bool:
        """Whether nobody else can have it now."""
        return self.epoch is not None and self._monotonic() < self._sure_until

    def look(self, *, may_take: bool = True) -> None:
        """Renew it, take it, or see who has it. Raises what the database raises."""
        began = self._monotonic()
        if self.epoch is not None:
            if self._reader.rows("renew_lease", {"seconds": LEASE_SECONDS}):
                self._sure_until = began + LEASE_SECONDS - MARGIN_SECONDS
                return
            log.warning("another front door routes now", extra={"action": "lease_lost"})
            self.epoch = None
        found = self._reader.rows("read_lease", {})
        is_over = not found or not found[0]["holds"]
        self.holder = None if is_over else found[0]["name"]
        # Seen twice: after an outage of the database the holder comes first, which has the replicas.
        if may_take and is_over and (self._was_over or not found):
            self._take(began)
        self._was_over = is_over

    def give_up(self) -> None:
        """For whoever comes next."""
        if self.epoch is not None:
            self.epoch = None
            self._reader.rows("release_lease", {})

    def _take(self, began: float) -> None:
        taken = self._reader.rows("take_lease", {"seconds": LEASE_SECONDS})
        if not taken:
            return  # another was faster
        self.epoch = self._database.epoch = taken[0]["epoch"]
        self._sure_until = began + LEASE_SECONDS - MARGIN_SECONDS
        log.info("this front door routes now", extra={"action": "lease_taken"})
