"""`flux keys`: the keys of this machine's services, in its file, running or not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import command, group
from cli.failures import Failure, Status
from cli.session import Session, settings_failures

if TYPE_CHECKING:
    from utils.keys import Key, KeyFile

MAX_NUMBER = 1_000_000


def add_to(app: typer.Typer) -> None:
    below = group(
        app, "keys", "Keys of this machine's services. They work in services that run, too."
    )
    command(below, "create", speaks=False)(create)
    command(below, "list", speaks=False)(list_keys)
    command(below, "revoke", speaks=False)(revoke)


def create(
    session: Session,
    name: Annotated[str, typer.Argument(help="What it is for; no two in use have the same.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            help="generate, loras or admin; several with several. Left out: generate and loras.",
        ),
    ] = None,
    rate: Annotated[
        int | None, typer.Option(min=1, max=MAX_NUMBER, help="Requests a minute.")
    ] = None,
    max_queued: Annotated[
        int | None, typer.Option(min=1, max=MAX_NUMBER, help="Jobs that may wait at once.")
    ] = None,
    daily_images: Annotated[
        int | None, typer.Option(min=1, max=MAX_NUMBER, help="Images a day (UTC).")
    ] = None,
    daily_usd: Annotated[
        float | None,
        typer.Option(min=0, max=MAX_NUMBER, help="Cost of cloud images a day; 0: none."),
    ] = None,
    expires_days: Annotated[
        int | None, typer.Option(min=1, max=MAX_NUMBER, help="Days until it ends.")
    ] = None,
) -> None:
    """Make a key. It is shown this once: alone on standard output, so that a script can take it."""
    from datetime import timedelta

    from scripts.keys import DEFAULT_SCOPES
    from utils.clock import rfc3339, utc_now
    from utils.keys import Limits, Scope, checked_name

    unknown = [each for each in scope or () if each not in list(Scope)]
    if unknown:
        raise Failure(
            Status.USAGE, f"--scope: there is no {unknown[0]!r}; there are {', '.join(Scope)}"
        )
    if daily_usd is not None and daily_usd != daily_usd:  # NaN is within every limit
        raise Failure(Status.USAGE, "--daily-usd: nan is no amount; 0 to 1000000")
    now = utc_now()
    ends = None if expires_days is None else rfc3339(now + timedelta(days=expires_days))
    with _file() as file:
        key, secret = file.make(
            name=checked_name(name),
            scopes=frozenset(map(Scope, scope)) if scope else frozenset(DEFAULT_SCOPES),
            limits=Limits(
                requests_per_minute=rate,
                max_queued=max_queued,
                daily_images=daily_images,
                daily_usd=daily_usd,
            ),
            now=rfc3339(now),
            expires_at=ends,
        )
    if session.as_json:
        session.emit({**_json(key), "key": secret})
        return
    session.say(f"Key {key.id} for {key.name}; it is not shown again:")
    print(secret)


def list_keys(session: Session) -> None:
    """Every key, without its secret."""
    from scripts.keys import COLUMNS, shown_row

    with _file() as file:
        keys = file.all()
    if session.as_json:
        session.emit({"keys": [_json(key) for key in keys]})
    else:
        session.table(
            COLUMNS, [shown_row(key) for key in keys], "no keys: services on loopback ask for none"
        )


def revoke(
    session: Session,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Ids or names.")],
) -> None:
    """End keys at once, in every service of this machine."""
    from utils.clock import rfc3339, utc_now

    ended = []
    with _file() as file:
        known = {word for key in file.all() for word in (key.id, key.name)}
        unknown = [name for name in keys if name not in known]
        if unknown:  # before the first is ended
            raise Failure(Status.REFUSED, f"there is no key {unknown[0]!r}", code="not_found")
        for name in keys:
            ended.append(file.revoke(name, rfc3339(utc_now())))
        is_last = all(key.revoked_at is not None for key in file.all())
    if session.as_json:
        session.emit({"keys": [_json(key) for key in ended]})
        return
    for key in ended:
        print(f"Key {key.id} ({key.name}) does not work any more.")
    if is_last:
        print(
            "It was the last one. The services go on asking for keys: make another, or move "
            f"{file.path} away to have services on loopback ask for none.",
            file=sys.stderr,
        )


@contextmanager
def _file() -> Iterator[KeyFile]:
    """The file of this machine's keys, with its refusals as ours."""
    from config.errors import FluxError
    from scripts.keys import file_of_machine

    try:
        with settings_failures():
            yield file_of_machine()
    except FluxError as error:
        fields = [(each.field, each.message) for each in error.fields]
        raise Failure(Status.REFUSED, error.message, code=error.code, fields=fields) from error


def _json(key: Key) -> dict[str, Any]:
    limits = key.limits
    return {
        "id": key.id,
        "prefix": key.shown,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "requests_per_minute": limits.requests_per_minute,
        "max_queued": limits.max_queued,
        "daily_images": limits.daily_images,
        "daily_usd": limits.daily_usd,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
    }
