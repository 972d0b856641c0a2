"""`flux gpu`: the cards, how busy they are, and which worker is where."""

from __future__ import annotations

import typer

from cli.command import command
from cli.session import Session


def add_to(app: typer.Typer) -> None:
    command(app, "gpu")(gpu)


def gpu(session: Session) -> None:
    """GPUs and workers of every service that answers."""
    report = []
    with session.clients() as clients:
        for client in clients:
            found = client.ask("GET", "/gpu-info")
            status = client.ask("GET", "/model-status")
            report.append(
                {"service": client.name, "url": client.url, **found, "workers": status["workers"]}
            )
    if session.as_json:
        session.emit({"services": report})
        return
    cards = [
        (
            each["service"],
            f"{card['index']}: {card['name']}",
            _memory(card),
            _with(card.get("utilization_percent"), " %"),
            _with(card.get("temperature_c"), " °C"),
            _with(card.get("power_w"), " W"),
            card["worker"],
        )
        for each in report
        for card in each["gpus"]
    ]
    for each in report:
        if each["reason"]:
            session.say(f"{each['service']}: no GPU ({each['reason']})")
    if cards:
        columns = ("service", "GPU", "memory", "load", "heat", "power", "worker")
        session.table(columns, cards, "")
    workers = [
        (
            each["service"],
            worker["name"],
            worker["state"],
            worker["engine"],
            ", ".join(f"{held['model']} ({held['memory_gib']} GiB)" for held in worker["models"]),
        )
        for each in report
        for worker in each["workers"]
    ]
    session.table(("service", "worker", "state", "engine", "loaded"), workers, "no workers")


def _memory(card: dict[str, float | str | None]) -> str:
    used, total = card.get("memory_used_mib"), card["memory_total_mib"]
    return f"{used or '?'} of {total} MiB" if "error" not in card else str(card["error"])


def _with(value: float | str | None, unit: str) -> str:
    return (
        ""
        if value is None
        else f"{value:g}{unit}" if isinstance(value, float) else f"{value}{unit}"
    )
