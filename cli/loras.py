"""`flux lora`: the library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

import typer

from cli.command import command, group
from cli.complete import lora_names
from cli.failures import Failure, Status
from cli.session import Session, printable

BLOCK_BYTES = 2**20
SUFFIX = ".safetensors"
NEW = 201  # HTTP's "created"


def add_to(app: typer.Typer) -> None:
    below = group(app, "lora", "LoRAs of the library.")
    command(below, "list")(list_loras)
    command(below, "add")(add)
    command(below, "rm")(remove)


def list_loras(session: Session) -> None:
    """What there is, and which models each fits."""
    with session.client() as client:
        loras = client.ask("GET", "/loras")["loras"]
    if session.as_json:
        session.emit({"loras": loras})
        return
    rows = [
        (each["name"], "on its way", _mib(each["size_bytes"]), "", "")
        if each["status"] == "fetching"
        else (
            each["name"],
            each["rank"],
            _mib(each["size_bytes"]),
            ", ".join(each["compatible_models"]) or each["refusal"] or "none",
            ", ".join(each["trigger_words"]),
        )
        for each in loras
    ]  # fmt: skip
    session.table(("name", "rank", "size", "models", "trigger words"), rows, "no LoRAs")


def add(
    session: Session,
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files in .safetensors.")],
    name: Annotated[
        str | None, typer.Option("--name", help="What requests call it; of one file.")
    ] = None,
    trigger: Annotated[
        list[str] | None,
        typer.Option("--trigger", help="A trigger word; several with several. Of one file."),
    ] = None,
) -> None:
    """Upload LoRAs. The same content again is the same entry."""
    if len(paths) > 1 and (name or trigger):
        raise Failure(
            Status.USAGE, "--name and --trigger are of one file; add the files one by one"
        )
    for path in paths:  # all before the first is sent
        if path.suffix.lower() != SUFFIX:
            raise Failure(
                Status.USAGE, f"{path}: a LoRA is a {SUFFIX} file; pickled files are not taken"
            )
        if not path.is_file():
            raise Failure(Status.WRONG, f"{path}: there is no such file")
    change: dict[str, Any] = {"name": name, "trigger_words": trigger}
    change = {key: value for key, value in change.items() if value}
    added = []
    with session.client() as client:
        for path in paths:
            with open(path, "rb") as file:
                size = path.stat().st_size
                status, lora = client.ask_with_status(
                    "PUT",
                    f"/loras/{quote(path.name, safe='')}",
                    content=_blocks(session, path.name, file, size),
                    headers={
                        "Content-Length": str(size),
                        "Content-Type": "application/octet-stream",
                    },
                )
            if change:
                where = f"/loras/{quote(lora['name'], safe='')}"
                try:
                    lora = client.ask("PATCH", where, json=change)
                except Failure:
                    if status == NEW:  # it was to be there by that name, or not at all
                        client.ask("DELETE", where)
                    raise
            added.append(lora)
            if not session.as_json:
                fits = ", ".join(lora["compatible_models"]) or lora["refusal"] or "no model here"
                print(printable(f"{lora['name']}  rank {lora['rank']}, fits {fits}"))
    if session.as_json:
        session.emit({"loras": added})


def remove(
    session: Session,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Names of ./flux lora list.", autocompletion=lora_names
        ),
    ],
) -> None:
    """Remove LoRAs from the library. Jobs that have them keep them."""
    with session.client() as client:
        for name in names:  # a wrong name removes nothing
            client.ask("GET", f"/loras/{quote(name, safe='')}")
        for name in names:
            client.ask("DELETE", f"/loras/{quote(name, safe='')}")
            if not session.as_json:
                print(f"{name}  removed")
    if session.as_json:
        session.emit({"removed": names})


def _blocks(session: Session, name: str, file: BinaryIO, size: int) -> Iterator[bytes]:
    """The file as it is sent, with a bar for whoever watches."""
    import sys

    is_shown = sys.stderr.isatty() and not session.as_json
    sent = 0
    while block := file.read(BLOCK_BYTES):
        yield block
        sent += len(block)
        if is_shown:
            print(
                f"\r\x1b[2K{printable(name)}: {sent * 100 // max(1, size)} %",
                end="",
                file=sys.stderr,
                flush=True,
            )
    if is_shown:
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def _mib(size_bytes: int | None) -> str:
    return "" if size_bytes is None else f"{size_bytes / 2**20:.1f} MiB"
