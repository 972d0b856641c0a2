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
    """Pictures, megapixels, seconds and cost, of every service that answers."""
    query = {"from": first, "to": last, "group": group}
    query = {name: value for name, value in query.items() if value is not None}
    report = []
    with session.clients() as clients:
        for client in clients:
            report.append({"service": client.name, **client.ask("GET", "/usage", params=query)})
    if session.as_json:
        session.emit({"services": report})
        return
    groups = report[0]["group"]
    rows = [
        (each["service"], *(_named(row, name) for name in groups), *(row[name] for name in COLUMNS))
        for each in report
        for row in each["rows"]
    ]
    rows += [
        (
            each["service"],
            "together",
            *[""] * (len(groups) - 1),
            *(each["totals"][c] for c in COLUMNS),
        )
        for each in report
        if each["rows"]
    ]
    session.table(("service", *groups, *COLUMNS), rows, "nothing was drawn in this time")
    if any(each["has_more"] for each in report):
        session.say("there is more; choose fewer days or groups")


def _named(row: dict[str, str], group: str) -> str:
    return row.get("key_name") or row["key"] if group == "key" else row[group]
