"""A line for each request that changes something or is refused. Reading is no news: pages and clients ask
several times a second, and one that is refused each time asks no less often.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import Scope

from api.auth import SAFE_METHODS

log = logging.getLogger("api.access")

REPEAT_SECONDS = 60.0  # the same refusal of the same question is told as often
REMEMBERED = 256
# What follows is as good as a key.
LINKS = "/delivery/"


class AccessLog:
    """Made once for a service; `note` is called when an answer is over."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._refusals: OrderedDict[tuple[str, int], tuple[float, int]] = OrderedDict()

    def note(self, scope: Scope, status: int, request_id: str, seconds: float) -> None:
        method, times = scope["method"], 1
        is_news = method not in SAFE_METHODS
        if not is_news and status >= 400:
            times = self._times_of_refusal(scope["path"][:200], status)
            is_news = times > 0
        level = logging.INFO if is_news else logging.DEBUG
        if not log.isEnabledFor(level):
            return
        fields = {
            "action": "request",
            "request_id": request_id,
            "method": method,
            "path": shown_path(scope),
            "status": status,
            "ms": round(seconds * 1000, 1),
        }
        if times > 1:
            fields["times"] = times
        log.log(level, "answered", extra=fields)

    def _times_of_refusal(self, path: str, status: int) -> int:
        """How often it was refused since that was told last; 0: too soon to tell it again."""
        now, key = self._monotonic(), (path, status)
        told, count = self._refusals.pop(key, (None, 0))
        is_due = told is None or now - told >= REPEAT_SECONDS
        self._refusals[key] = (now, 0) if is_due else (told, count + 1)
        while len(self._refusals) > REMEMBERED:
            self._refusals.popitem(last=False)
        return count + 1 if is_due else 0


def shown_path(scope: Scope) -> str:
    """Without what opens something, and without the query, where people put keys."""
    path = scope["path"][:200]
    return f"{LINKS}…" if path.startswith(LINKS) else path
