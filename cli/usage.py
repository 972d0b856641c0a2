"""`flux usage`: what was drawn, and what it cost."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.command import command
from cli.session import Session

COLUMNS = ("jobs", "images", "megapixels", "gpu_seconds", "cost_usd")


def add_to(app: typer.Typer) -> None:
    command(app, "usage")(usage)


def usage(
    session: Session,
    first: Annotated[
        str | None,
        typer.Option("--from", help="A day (UTC) such as 2026-01-31; left out: 30 days ago."),
    ] = None,
    last: Annotated[str | None, typer.Option("--to", help="A day; left out: today.")] = None,
    group: Annotated[
        str, typer.Option("--group", help="day, key, model, tag; with commas between.")
    ] = "day,model",
) -> None:
    """Pictures, megapixels, seconds and cost, of all services of the machine that answers."""
    query = {"from": first, "to": last, "group": group}
    query = {name: value for name, value in query.items() if value is not None}
    with session.client() as client:
        report = client.ask("GET", "/usage", params=query)  # it reads the databases of them all
    if session.as_json:
        session.emit(report)
        return
    groups = report["group"]
    rows = [
        (*(_named(row, name) for name in groups), *(row[name] for name in COLUMNS))
        for row in report["rows"]
    ]
    if rows:
        totals = (report["totals"][name] for name in COLUMNS)
        rows.append(("together", *[""] * (len(groups) - 1), *totals))
    session.table((*groups, *COLUMNS), rows, "nothing was drawn in this time")
    if report["has_more"]:
        session.say("there is more; choose fewer days or groups")


def _named(row: dict[str, str], group: str) -> str:
    return row.get("key_name") or row["key"] if group == "key" else row[group]
