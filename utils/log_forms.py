"""What a log line looks like: for people on the console, as JSON in the file. Neither has a secret in it.

A line is a sentence and fields. What a client sent stays within its field: it cannot look like
another field or another line. Only fields of `FIELDS` are written, whatever a record carries.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

FIELDS = (
    "action",
    "job_id",
    "model",
    "worker",
    "request_id",
    "method",
    "path",
    "status",
    "ms",
    "times",
    "client",
    "sha256",
    "prompt",
    "negative_prompt",
)
# What the lines of the file have beside them.
HEAD = ("time", "level", "service", "logger", "message")
# In whatever words they come: our keys, the Hub's and BFL's tokens, and what follows the names of the headers.
_SECRETS = (
    r"\bflux_[A-Za-z0-9_-]{40,}",
    r"\bhf_[A-Za-z0-9]{20,}",
    r"\bbfl_[A-Za-z0-9_-]{16,}",
    r"(?i:(?<=bearer )|(?<=basic ))[A-Za-z0-9._~+/=-]{8,}",
)
# One of these is in what the patterns find.
_MARKS = ("flux_", "hf_", "bfl_")
_SCHEMES = ("bearer ", "basic ")
HIDDEN = "(hidden)"
MIN_SECRET = 8  # what is shorter may be part of any word


class Redaction:
    """Takes secrets out of a line: those that are known, and what has the form of one."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        forms = {form for secret in secrets for form in (secret, json.dumps(secret)[1:-1])}
        long_enough = (re.escape(form) for form in forms if len(form) >= MIN_SECRET)
        known = sorted(long_enough, key=len, reverse=True)
        self._marks = (*(form for form in forms if len(form) >= MIN_SECRET), *_MARKS)
        self._pattern = re.compile("|".join([*known, *_SECRETS]))

    def __call__(self, text: str) -> str:
        # Nearly every line has none, and a pattern takes longer than all else about it.
        if any(mark in text for mark in self._marks) or any(
            mark in text.lower() for mark in _SCHEMES
        ):
            return self._pattern.sub(HIDDEN, text)
        return text


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00,000 INFO job queued action=job_queued job_id=…`"""

    def __init__(self, redact: Redaction | None = None) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._redact = redact or Redaction()

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        first, *trace = line.split("\n")
        return self._redact("\n".join([first, *(f"    {more}" for more in trace)]))

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = shown(record.message)
        fields = [
            f"{name}={_plain(getattr(record, name))}" for name in FIELDS if hasattr(record, name)
        ]
        return " ".join([super().formatMessage(record), *fields])


class JsonFormatter(logging.Formatter):
    """One object in a line, its time in UTC."""

    def __init__(self, service: str, redact: Redaction | None = None) -> None:
        super().__init__()
        self._service = service
        self._redact = redact or Redaction()

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "service": getattr(record, "service", self._service),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        # In ASCII: some letters end lines or move cursors.
        return self._redact(json.dumps(line, default=str))


def without(text: str, words: Iterable[str | None]) -> str:
    """`text`, somebody else's, without words that it may have in it as they are or as a program quotes them."""
    forms = {form for each in words if each for form in _forms(each)}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    return text


def _forms(words: str) -> tuple[str, ...]:
    quoted = (repr(words), json.dumps(words), json.dumps(words, ensure_ascii=False))
    return (words, *(form[1:-1] for form in quoted))


def readable(line: Mapping[str, Any]) -> str:
    """A line of the file for people."""
    fields = [f"{name}={_plain(line[name])}" for name in FIELDS if name in line]
    head = (
        _local(line["time"]),
        shown(str(line["service"])),
        shown(str(line["level"]).upper()),
        shown(str(line["message"])),
    )
    text = " ".join([*head, *fields])
    trace = str(line.get("exception", "")).splitlines()
    return "\n".join([text, *(f"    {shown(more)}" for more in trace)])


def shown(text: str) -> str:
    """Without what moves the cursor or begins another line."""
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _plain(value: object) -> str:
    """One word: what a client sent must not look like another field or another line."""
    text = str(value)
    return text if text and text.isprintable() and " " not in text else repr(text)


def _rfc3339(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _local(time: str) -> str:
    """As the console has it: the machine's own time."""
    return datetime.fromisoformat(time).astimezone().isoformat(" ", "milliseconds")[:23]
