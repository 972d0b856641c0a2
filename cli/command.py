"""How a function becomes a command: the options that all commands have are added here."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from cli.session import KEY_NAME, URL_NAME, Session, own_key

PANEL = "Which service, and how to answer"

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        help=f"Address of a service. Left out: {URL_NAME}, else the ports of the settings.",
        rich_help_panel=PANEL,
    ),
]
Key = Annotated[
    str | None,
    typer.Option("--key", help=f"Key of the service. Left out: {KEY_NAME}.", rich_help_panel=PANEL),
]
Service = Annotated[
    str | None,
    typer.Option(
        "--service",
        help="fp4 or bf16. Left out: the first one that answers.",
        rich_help_panel=PANEL,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="JSON on standard output, errors too, and nothing else there.",
        rich_help_panel=PANEL,
    ),
]

_SPEAKS = {"url": (Url, None), "key": (Key, None), "service": (Service, None)}
_ANSWERS = {"as_json": (Json, False)}


class ReaderGone(Exception):
    """Whoever read standard output has enough, as `head` has."""


def command(
    app: typer.Typer, name: str, *, speaks: bool = True, **options: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function whose first parameter is the Session. One that does not speak to services has --json alone."""
    common = {**(_SPEAKS if speaks else {}), **_ANSWERS}

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        own = list(inspect.signature(function).parameters.values())[1:]

        def run(*arguments: Any, **values: Any) -> None:
            with own_key() as key:
                given = {name: values.pop(name) for name in common}
                session = Session(**{**given, "key": given.get("key") or key})
                _call(function, session, *arguments, **values)

        added = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for key, (kind, default) in common.items()
        ]
        parameters = [
            parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in own
        ]
        run.__signature__ = inspect.Signature([*parameters, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in [*parameters, *added]}
        run.__doc__ = function.__doc__
        run.__name__ = function.__name__
        app.command(name, **options)(run)
        return function

    return register


def _call(function: Callable[..., None], session: Session, *arguments: Any, **values: Any) -> None:
    try:
        function(session, *arguments, **values)
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGone from None  # the library would make a failure of it


def group(app: typer.Typer, name: str, help: str) -> typer.Typer:
    """Commands under one word."""
    below = typer.Typer(name=name, help=help, no_args_is_help=True, rich_markup_mode="rich")
    app.add_typer(below)
    return below
