"""Make, list and revoke keys for the services of this machine: `python -m scripts.keys make NAME`.

A key is shown once, when it is made; what is kept is its SHA-256. It works at once in every service
that has the same data folder (FLUX_DATA_DIR), also in those that run already.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import timedelta

from config.errors import ConfigurationError, FluxError
from config.settings import load_settings
from models.precision import known_precisions
from utils.clock import rfc3339, utc_now
from utils.keys import Key, KeyFile, Limits, Scope, checked_name, key_file

EXIT_REFUSED = 1
EXIT_CONFIGURATION = 78  # EX_CONFIG of sysexits.h
DEFAULT_SCOPES = (Scope.GENERATE, Scope.LORAS)
COLUMNS = ("id", "key", "name", "scopes", "limits", "made", "last used", "state")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.run(file_of_machine(), options)
    except ConfigurationError as error:
        print(f"keys: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    except FluxError as error:
        print(f"keys: {error.message}", file=sys.stderr)
        return EXIT_REFUSED
    return 0


def file_of_machine() -> KeyFile:
    """The file of all services. Raises ConfigurationError where their data folders differ."""
    folders = {name: load_settings(name).storage.data_dir for name in known_precisions()}
    if len(set(folders.values())) > 1:
        shown = ", ".join(f"{name}: {folder}" for name, folder in folders.items())
        raise ConfigurationError(
            f"the services have different data folders ({shown}); set FLUX_DATA_DIR to the one that is meant"
        )
    return key_file(next(iter(folders.values())))


def _make(file: KeyFile, options: argparse.Namespace) -> None:
    now = utc_now()
    ends = None if options.expires_days is None else now + timedelta(days=options.expires_days)
    key, secret = file.make(
        name=checked_name(options.name),
        scopes=frozenset(options.scopes or DEFAULT_SCOPES),
        limits=Limits(
            requests_per_minute=options.rate,
            max_queued=options.max_queued,
            daily_images=options.daily_images,
            daily_usd=options.daily_usd,
        ),
        now=rfc3339(now),
        expires_at=None if ends is None else rfc3339(ends),
    )
    # The key alone on standard output, so that a script can take it.
    print(f"Key {key.id} for {key.name}; it is not shown again:", file=sys.stderr)
    print(secret)


def _list(file: KeyFile, options: argparse.Namespace) -> None:
    rows = [COLUMNS, *(shown_row(key) for key in file.all())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _revoke(file: KeyFile, options: argparse.Namespace) -> None:
    key = file.revoke(options.key, rfc3339(utc_now()))
    print(f"Key {key.id} ({key.name}) does not work any more.")
    if all(other.revoked_at is not None for other in file.all()):
        print(
            "It was the last one. The services go on asking for keys: make another, or move "
            f"{file.path} away to have services on loopback ask for none.",
            file=sys.stderr,
        )


def shown_row(key: Key) -> tuple[str, ...]:
    limits = key.limits
    named = (
        (limits.requests_per_minute, "{} requests a minute"),
        (limits.max_queued, "{} waiting"),
        (limits.daily_images, "{} images a day"),
        (limits.daily_usd, "{:g} USD a day"),
    )
    shown = ", ".join(text.format(value) for value, text in named if value is not None)
    return (
        key.id,
        key.shown + "…",
        key.name,
        " ".join(sorted(key.scopes)),
        shown or "-",
        key.created_at[:10],
        (key.last_used_at or "never")[:16],
        _state(key),
    )


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at[:10]}"
    if key.expires_at is None:
        return "in use"
    word = "expired" if key.expires_at <= rfc3339(utc_now()) else "until"
    return f"{word} {key.expires_at[:16]}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.keys", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    make = commands.add_parser("make", help="make a key and show it, this once")
    make.set_defaults(run=_make)
    make.add_argument("name", help="what it is for; no two keys in use have the same")
    make.add_argument(
        "--scope",
        dest="scopes",
        action="append",
        type=Scope,
        choices=list(Scope),
        help="what it may do, once for each; left out: generate and loras",
    )
    make.add_argument("--rate", type=_whole, metavar="N", help="requests a minute")
    make.add_argument("--max-queued", type=_whole, metavar="N", help="jobs that may wait at once")
    make.add_argument("--daily-images", type=_whole, metavar="N", help="images a day (UTC)")
    make.add_argument(
        "--daily-usd", type=_money, metavar="USD", help="cost of cloud images a day (UTC); 0: none"
    )
    make.add_argument("--expires-days", type=_whole, metavar="N", help="days until it ends")

    listed = commands.add_parser("list", help="every key, without its secret")
    listed.set_defaults(run=_list)

    revoke = commands.add_parser("revoke", help="end a key at once")
    revoke.set_defaults(run=_revoke)
    revoke.add_argument("key", help="its id or its name, from `list`")
    return parser


def _whole(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError("1 to 1000000")
    return value


def _money(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1_000_000:  # no NaN either
        raise argparse.ArgumentTypeError("0 to 1000000")
    return value


if __name__ == "__main__":
    sys.exit(main())
