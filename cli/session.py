"""What every command has: which services it speaks to, with which key, and how it says what it found."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cli.failures import Failure, Status

if TYPE_CHECKING:
    from rich.console import Console

    from cli.client import Client

LOOK_SECONDS = 10.0  # for a service that is busy to say that it lives
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
URL_NAME, KEY_NAME = "FLUX_URL", "FLUX_API_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    url: str | None = None
    key: str | None = None
    service: str | None = None  # a precision
    as_json: bool = False

    @contextmanager
    def client(self) -> Iterator[Client]:
        """The service that was named, else the first one that answers. Raises Failure."""
        with self.clients() as found:
            yield found[0]

    @contextmanager
    def clients(self) -> Iterator[list[Client]]:
        """Every service that is meant and answers, at least one. Raises Failure."""
        from cli.client import Client, checked_url

        key = self.chosen_key()
        url = self.url or (None if self.service else os.environ.get(URL_NAME)) or None
        with ExitStack() as stack:
            if url is not None:
                # Asked as it is: what is wrong there is said by the first answer.
                yield [stack.enter_context(Client(checked_url(url), key))]
                return
            asked = [
                stack.enter_context(Client(address, key, name))
                for name, address in addresses(self.service)
            ]
            found = [client for client in asked if client.is_ours(LOOK_SECONDS)]
            if not found:
                where = " or ".join(f"{client.url} ({client.name})" for client in asked)
                raise Failure(
                    Status.UNREACHABLE,
                    f"no service answers at {where}. Start one with ./flux serve, or name its address with --url "
                    f"or {URL_NAME}",
                )
            yield found

    def chosen_key(self) -> str | None:
        from cli.client import checked_key

        return checked_key(self.key) if self.key else None

    def emit(self, data: Any) -> None:
        """For programs: the one document on standard output."""
        print(as_json(data, indent=2))

    def emit_line(self, data: Any) -> None:
        """One of several, as they come."""
        print(as_json(data), flush=True)

    @property
    def out(self) -> Console:
        return _console(sys.stdout)

    def say(self, text: str) -> None:
        """To whoever watches; never on standard output, and not beside JSON."""
        if not self.as_json:
            for line in text.splitlines():
                print(printable(line), file=sys.stderr, flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], none: str) -> None:
        """Rows for people; `none` is said in place of an empty table."""
        if not rows:
            self.say(none)
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            # Never as markup: names and prompts are other people's words.
            table.add_row(*(Text("-" if cell in (None, "") else printable(cell)) for cell in row))
        self.out.print(table)


@contextmanager
def own_key() -> Iterator[str | None]:
    """The key of the environment. Taken out meanwhile: a service that finds it there means that a setting is misspelt."""
    key = os.environ.pop(KEY_NAME, None)
    try:
        yield key
    finally:
        if key is not None:
            os.environ[KEY_NAME] = key


def addresses(service: str | None = None) -> list[tuple[str, str]]:
    """(name, address) of the services as their settings have them; of one, where it is named."""
    from config.settings import load_settings
    from models.precision import known_precisions

    if service is not None and service not in known_precisions():
        raise Failure(
            Status.USAGE,
            f"--service: there is no {service!r}; there are {', '.join(known_precisions())}",
        )
    found = []
    for name in known_precisions():
        if service in (None, name):
            with settings_failures():
                server = load_settings(name).server
            host = ANY_ADDRESS.get(server.host, server.host)
            host = f"[{host}]" if ":" in host and not host.startswith("[") else host
            found.append((name, f"http://{host}:{server.port}"))
    return found


@contextmanager
def settings_failures() -> Iterator[None]:
    """A setting that is wrong, and a .env that is no text, are a status of their own."""
    from config.errors import ConfigurationError

    try:
        yield
    except ConfigurationError as error:
        raise Failure(Status.SETTINGS, str(error)) from error
    except UnicodeDecodeError as error:
        raise Failure(Status.SETTINGS, f".env or a TOML file is no UTF-8 text: {error}") from error


def as_json(data: Any, **options: Any) -> str:
    """In letters that standard output has."""
    is_unicode = (sys.stdout.encoding or "utf-8").lower().replace("-", "").startswith("utf")
    return json.dumps(data, ensure_ascii=not is_unicode, **options)


def printable(value: Any) -> str:
    """Without what would move a terminal's cursor or colour."""
    return "".join(sign if sign.isprintable() else " " for sign in str(value))


def _console(stream: Any) -> Console:
    from rich.console import Console

    class Ours(Console):
        def on_broken_pipe(self) -> None:
            raise  # its own way ends the process as if something had failed

    # Where nobody watches, lines are as long as what is in them.
    width = None if stream.isatty() else 400
    return Ours(file=stream, width=width, highlight=False, soft_wrap=not stream.isatty())
