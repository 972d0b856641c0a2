"""`flux models`: what can be loaded, and fetching it."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from cli.command import command, group
from cli.complete import model_ids
from cli.failures import Failure, Status
from cli.session import Session

ModelIds = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL...", help="Ids of models.", autocompletion=model_ids),
]


def add_to(app: typer.Typer) -> None:
    below = group(app, "models", "Models: what there is, what runs here, fetching.")
    command(below, "list")(list_models)
    command(below, "download", speaks=False)(download)


def list_models(session: Session) -> None:
    """The catalog: what runs on the service, what is on its disk, and why not."""
    with session.client() as client:
        found = client.ask("GET", "/api/models")
    if session.as_json:
        session.emit(found)
        return
    rows = [
        (
            f"{each['id']}{' *' if each['is_default'] else ''}",
            each["backend"],
            "-" if each["downloaded"] is None else "yes" if each["downloaded"] else "no",
            f"{each['memory_gib']:g} GiB" if each["memory_gib"] else "",
            "runs here" if each["available"] else each["reason"],
        )
        for each in found["models"]
    ]
    session.table(("model", "backend", "on disk", "memory", ""), rows, "no models")
    session.say(f"* the default: {found['default_model_reason']}")


def download(
    session: Session,
    models: ModelIds = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="Refuse models without such weights.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare what is here with its checksums.")
    ] = False,
    safety_checker: Annotated[
        bool, typer.Option("--safety-checker", help="The weights of the safety checker, too.")
    ] = False,
) -> None:
    """Fetch models from the Hugging Face Hub onto this machine. What was broken off goes on where it stopped."""
    from models.precision import known_precisions
    from scripts import download_models

    if not models and not safety_checker:
        raise Failure(Status.USAGE, "name a model; ./flux models list shows which there are")
    if precision is not None and precision not in known_precisions():
        there = ", ".join(known_precisions())
        raise Failure(Status.USAGE, f"--precision: there is no {precision!r}; there are {there}")
    arguments = [*(models or ()), *(["--verify"] if verify else [])]
    arguments += ["--precision", precision] if precision else []
    arguments += ["--safety-checker"] if safety_checker else []
    # Its words are for people; where JSON is wanted they must not stand before it.
    told = contextlib.redirect_stdout(sys.stderr) if session.as_json else contextlib.nullcontext()
    with told:
        status = download_models.main(arguments)
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise Failure(Status.WRONG, "not all of it is here, see above", code="download_failed")
    if session.as_json:
        session.emit({"models": models or [], "safety_checker": safety_checker, "ok": True})
