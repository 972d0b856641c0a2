"""How a command ends: the exit statuses, and what went wrong in words and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any


class Status(IntEnum):
    """docs/cli.md lists them; scripts rely on the numbers."""

    DONE = 0
    WRONG = 1  # of this machine: a file cannot be read or written, the doctor found something
    USAGE = 2  # the command line itself
    UNREACHABLE = 3  # no service answers
    REFUSED = 4  # the service does not take the request as it is
    NOT_ALLOWED = 5  # a key is missing, unknown or may not do this, or nobody may
    LATER = 6  # the same again later may go: the queue is full, a limit is reached, the service is not ready
    FAILED = 7  # the job failed
    CANCELLED = 8  # the job was cancelled, by somebody else
    BROKEN = 9  # the service failed
    SETTINGS = 78  # a setting is wrong; EX_CONFIG of sysexits.h
    INTERRUPTED = 130  # Ctrl-C


class Failure(Exception):
    """Ends the command with a status. `fields` are the service's own, as (field, message)."""

    def __init__(
        self,
        status: Status,
        message: str,
        *,
        code: str = "",
        http_status: int | None = None,
        fields: Sequence[tuple[str, str]] = (),
        more: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code or status.name.lower()
        self.http_status = http_status
        self.fields = tuple(fields)
        self.more = more or {}

    def to_json(self) -> dict[str, Any]:
        error: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "exit_status": int(self.status),
        }
        if self.http_status is not None:
            error["http_status"] = self.http_status
        if self.fields:
            error["errors"] = [{"field": name, "message": text} for name, text in self.fields]
        return {"error": {**error, **self.more}}


def usage(option: str, text: str) -> Failure:
    """An option whose value cannot be meant."""
    return Failure(Status.USAGE, f"{option}: {text}", fields=[(option, text)])
