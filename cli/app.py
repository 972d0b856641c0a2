"""The commands put together, and how each of them ends: `run` gives the exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from cli import (
    backup,
    doctor,
    generate,
    gpu,
    keys,
    loras,
    models,
    queue,
    serve,
    usage,
)
from cli.command import ReaderGone
from cli.failures import Failure, Status
from cli.session import as_json as in_json
from cli.session import printable

NAME = "flux"
HELP = """Draw pictures with the services of this machine, and look after them.

Exit status: 0 done, 1 something here is wrong, 2 usage, 3 no service answers, 4 the request was refused,
5 not allowed (is it the key?), 6 later may go, 7 the job failed, 8 it was cancelled, 9 the service failed,
78 a setting is wrong, 130 Ctrl-C. docs/cli.md has examples."""


def build() -> typer.Typer:
    app = typer.Typer(name=NAME, help=HELP, no_args_is_help=True, rich_markup_mode="rich")
    for module in (generate, queue, loras, models, gpu, usage, keys, doctor, serve, backup):
        module.add_to(app)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command and say how it went."""
    as_json = _wants_json(arguments)
    try:
        done = build()(list(arguments), prog_name=NAME, standalone_mode=False)
        if done == Status.INTERRUPTED:  # the library's word for Ctrl-C
            raise KeyboardInterrupt
        return int(done) if isinstance(done, int) else int(Status.DONE)
    except Failure as failure:
        return _end(failure, as_json)
    except typer.Abort:
        return _end(Failure(Status.INTERRUPTED, "ended"), as_json)
    except KeyboardInterrupt:
        return _end(Failure(Status.INTERRUPTED, "ended by Ctrl-C"), as_json)
    except ReaderGone:
        # What is still to be written goes nowhere, so that Python's end says nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(Status.DONE)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _end(Failure(Status.WRONG, f"{where}{error.strerror or error}"), as_json)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return _end_usage(error, as_json)


def _end(failure: Failure, as_json: bool) -> int:
    if as_json:
        print(in_json(failure.to_json()), flush=True)  # one line, as `queue watch` has them
    # Line by line: what others wrote must not move the cursor.
    for line in f"{NAME}: {failure.message}".splitlines():
        print(printable(line), file=sys.stderr)
    return int(failure.status)


def _end_usage(error: Exception, as_json: bool) -> int:
    """What the library has against the command line."""
    message = error.format_message()  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)
        return int(Status.USAGE)
    command = context.command_path if context is not None else NAME
    return _end(Failure(Status.USAGE, f"{message.rstrip('.')} (see: ./{command} --help)"), as_json)


def _wants_json(arguments: Sequence[str]) -> bool:
    """Before the command line is understood, which it may not be."""
    ours = list(arguments)
    if "--" in ours:
        ours = ours[: ours.index("--")]
    return "--json" in ours
