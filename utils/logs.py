"""Log lines for people and programs: a sentence, then `action=` and its fields."""

import logging
import sys

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
    "client",
)


class KeyValueFormatter(logging.Formatter):
    """`2026-01-31 12:00:00,000 INFO job queued action=job_queued job_id=…`"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = [
            f"{name}={_plain(getattr(record, name))}" for name in FIELDS if hasattr(record, name)
        ]
        return " ".join([super().formatMessage(record), *fields])


def configure(level: str) -> None:
    """Send all logging to stderr in this form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in (
        "httpx2",
        "httpcore2",
    ):  # addresses of a cloud's pictures are as good as the pictures
        logging.getLogger(name).setLevel(logging.WARNING)


def _plain(value: object) -> str:
    """One word: what a client sent must not look like another field or another line."""
    text = str(value)
    return text if text and text.isprintable() and " " not in text else repr(text)
