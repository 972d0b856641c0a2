"""Which request and which jobs a log line belongs to, where the line itself does not say.

It goes with the task of a request, and with what runs in its context; the store's callbacks do. A worker
has its jobs in hand, and takes them along into the threads beside the drawing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

_fields: ContextVar[Mapping[str, Any]] = ContextVar(
    "log fields",
    default=MappingProxyType({}),
)


def of_jobs(ids: Sequence[str]) -> str | list[str]:
    """What a line's `job_id` is: nearly always one."""
    return ids[0] if len(ids) == 1 else list(ids)


def bind(**fields: Any) -> None:
    """From here on, in this context."""
    _fields.set({**_fields.get(), **fields})


@contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """For the block."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


def add_to(record: logging.LogRecord) -> bool:
    """As a handler's filter: gives a line the fields that it does not have."""
    for name, value in _fields.get().items():
        if not hasattr(record, name):
            setattr(record, name, value)
    return True
