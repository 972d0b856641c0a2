"""`flux doctor`: what is wrong on this machine, and what to do about it."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.command import command
from cli.failures import Status
from cli.session import Session


def add_to(app: typer.Typer) -> None:
    command(app, "doctor", speaks=False)(doctor)


def doctor(
    session: Session,
    all_models: Annotated[
        bool, typer.Option("--all", help="Also each model that does not run here.")
    ] = False,
) -> None:
    """Look at everything that keeps the services from drawing. Status 1 where something is wrong. Changes nothing."""
    from scripts import doctor as examination

    report = examination.examine()
    if session.as_json:
        session.emit(report.to_json())
    else:
        examination.print_report(report, brief=not all_models)
    if report.is_wrong:
        raise typer.Exit(int(Status.WRONG))
