"""Logging of a process: what goes to the console, and what into its file.

A service writes both. Its workers write JSON lines to their stderr, which is a pipe to the service: one
process has the file. Of other programs' libraries only what is worth telling is logged, at any level of
ours: in detail they tell headers, and with them keys, and addresses that are as good as the pictures.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence

from config.settings import Settings
from utils import log_context
from utils.log_file import LogFile
from utils.log_forms import FIELDS, JsonFormatter, Redaction, TextFormatter

OURS = ("api", "config", "models", "utils", "worker", "scripts", "__main__")
WORDY = ("httpx", "httpx2", "httpcore2")
# Libraries say which part of a prompt a text encoder does not read, in the prompt's words.
_TOLD = "truncated because"

MIB = 2**20
MAX_SAID = 4000  # characters of what is no log line


def configure(settings: Settings, service: str) -> None:
    """Console and file, as the settings have it. Raises ConfigurationError."""
    log, redact = settings.log, Redaction(_secrets_of(settings))
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(
        TextFormatter(redact) if log.console_format == "text" else JsonFormatter(service, redact)
    )
    console.setLevel("NOTSET" if log.console_level == "auto" else log.console_level.upper())
    console.addFilter(lambda record: not getattr(record, "is_said", False))
    handlers: list[logging.Handler] = [console]
    if log.log_to_file:
        file = LogFile(log.log_dir, service, int(log.log_max_mib * MIB), log.log_keep)
        file.setFormatter(JsonFormatter(service, redact))
        handlers.append(file)
    _install(handlers, log.log_level)


def configure_console(level: str) -> None:
    """For a command."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter())
    _install([handler], level)


def configure_worker(name: str, level: str) -> None:
    """JSON lines on stderr, which `relay` reads at the other end."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(name))
    _install([handler], level)
    logging.captureWarnings(True)
    make = logging.getLogRecordFactory()

    def without_prompts(*arguments: object, **values: object) -> logging.LogRecord:
        record = make(*arguments, **values)
        if not record.name.startswith(OURS) and _TOLD in str(record.msg):
            record.msg, record.args = "a prompt is longer than the text encoder reads", ()
        return record

    logging.setLogRecordFactory(without_prompts)


def relay(line: str, worker: str) -> None:
    """A line that a worker wrote: a log line of its own, or whatever else it or a library printed."""
    record = _record_of(line) or logging.makeLogRecord(
        {
            "name": "worker.output",
            "levelno": logging.INFO,
            "levelname": "INFO",
            "msg": line[:MAX_SAID],
            "action": "worker_said",
        }
    )
    record.worker = worker
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _record_of(line: str) -> logging.LogRecord | None:
    if not line.startswith('{"time": "'):
        return None
    try:
        said = json.loads(line)
        level = logging.getLevelNamesMapping()[said["level"].upper()]
        values = {
            "name": str(said["logger"]),
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "msg": str(said["message"]),
            "exc_text": said.get("exception"),
        }
    except (ValueError, KeyError, AttributeError):
        return None
    return logging.makeLogRecord(values | {name: said[name] for name in FIELDS if name in said})


def _install(handlers: Sequence[logging.Handler], level: str) -> None:
    number = logging.getLevelNamesMapping()[level.upper()]
    for handler in handlers:
        handler.addFilter(log_context.add_to)
    logging.basicConfig(handlers=handlers, level=max(number, logging.INFO), force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(number)
    for name in WORDY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def _secrets_of(settings: Settings) -> list[str]:
    secrets = [*settings.server.api_keys, settings.cloud.bfl_api_key, settings.models.hf_token]
    return [secret.get_secret_value().strip() for secret in secrets]
