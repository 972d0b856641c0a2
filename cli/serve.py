"""`flux serve`: the start scripts, under one word."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cli.command import command
from cli.failures import Failure, Status
from cli.session import Session

EVERYTHING = "all"


def add_to(app: typer.Typer) -> None:
    # What the scripts take is theirs to know: options that are not ours are handed on.
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    command(app, "serve", speaks=False, context_settings=settings)(serve)


def serve(
    session: Session,
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(help="all (both services and the page), fp4 or bf16.")
    ] = EVERYTHING,
) -> None:
    """Start services in the foreground, as ./start.sh and ./start_<precision>_api.sh do; options are theirs."""
    from config.settings import ROOT
    from models.precision import known_precisions

    rest = list(context.args)
    if what.startswith("-"):
        what, rest = EVERYTHING, [what, *rest]
    if what == EVERYTHING:
        script = ROOT / "start.sh"
    elif what in known_precisions():
        script = ROOT / f"start_{what}_api.sh"
    else:
        there = ", ".join((EVERYTHING, *known_precisions()))
        raise Failure(Status.USAGE, f"there is no service {what!r}; there are {there}")
    if session.as_json:
        session.emit_line({"starts": [str(script), *rest], "pid": os.getpid()})
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout.flush()
    try:
        os.execv(script, [str(script), *rest])  # its signals are this process's
    except OSError as error:
        raise Failure(Status.WRONG, f"{script} cannot be started ({error.strerror})") from error
