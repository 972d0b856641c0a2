"""The services' logs for people: what there is, their lines as they come, and room where nobody needs them.

    python -m scripts.logbook status | clean | follow        scripts/manage_logs.sh calls it

Logs are the files of FLUX_LOG_DIR. What a service writes to now is never touched.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from config.errors import ConfigurationError
from config.settings import load_settings
from models.precision import known_precisions
from utils.log_forms import readable, shown
from utils.log_reading import LEVELS, Log, Tail, is_at_least, logs_in, newest_first, parsed
from utils.own_folder import OwnFolder, opened

LOOK_SECONDS = 0.2
SHOWN_ERRORS = 3  # of each log
EXIT_NO_RIGHT = 77
EXIT_CONFIGURATION = 78
OF_THE_SYSTEM = Path("/var/log/flux-api")  # as scripts/systemd/ has it


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter
    try:
        folder = options.folder or log_folder()
    except ConfigurationError as error:
        print(f"manage_logs.sh: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    try:
        return _run(options, folder)
    except PermissionError as error:
        print(
            f"manage_logs.sh: {error.filename or folder}: {error.strerror}; "
            "call it as the services' account, or as root",
            file=sys.stderr,
        )
        return EXIT_NO_RIGHT


def _run(options: argparse.Namespace, folder: Path) -> int:
    services = frozenset(name.removeprefix("flux-") for name in options.service)
    if options.verb == "follow":
        return follow(folder, services, options.level, options.lines)
    logs = logs_in(folder, services)
    if not logs:
        whose = f" of {', '.join(sorted(services))}" if services else ""
        elsewhere = (
            f"; the system's services have theirs in {OF_THE_SYSTEM}" * OF_THE_SYSTEM.is_dir()
        )
        print(f"there is no log{whose} in {folder}{elsewhere} (--folder)", file=sys.stderr)
        return 1 if services else 0
    if options.verb == "clean":
        return clean(folder, logs, options.days, options.dry_run)
    return status(logs, options.level)


def log_folder() -> Path:
    """Where the services write. Raises ConfigurationError, also where they do not agree."""
    folders = {load_settings(name).log.log_dir for name in known_precisions()}
    if len(folders) > 1:
        named = ", ".join(sorted(map(str, folders)))
        raise ConfigurationError(
            f"the services write to different folders ({named}); name one with --folder"
        )
    return folders.pop()


def status(logs: Sequence[Log], level: str) -> int:
    for log in logs:
        sizes = [_size(path) for path in (log.path, *log.older)]
        use = "in use" if log.is_in_use else "not in use"
        older = f" and {_mib(sum(sizes[1:]))} in {len(log.older)} older" if log.older else ""
        print(f"{log.path.name}: {use}, {_mib(sizes[0])}{older}")
        found = (said for line in newest_first(log) if (said := parsed(line)) is not None)
        last = list(islice((said for said in found if is_at_least(said, level)), SHOWN_ERRORS))
        for said in reversed(last):
            print("  " + readable(said).replace("\n", "\n  "))
    return 0


def clean(folder: Path, logs: Sequence[Log], days: float, dry_run: bool) -> int:
    """Remove older files, and the logs of services that do not run."""
    before = time.time() - days * 86_400
    done, count, size = "would be removed" if dry_run else "removed", 0, 0
    with opened(folder) as own:
        assert own is not None
        for log in logs:
            paths = log.older if log.is_in_use else (log.path, *log.older)
            for path in paths:
                removed = _remove(own, path.name, before, dry_run)
                if removed is not None:
                    print(f"{done}: {path.name}")
                    count, size = count + 1, size + removed
    print(f"{done}: {count} files, {_mib(size)}")
    return 0


def _remove(folder: OwnFolder, name: str, before: float, dry_run: bool) -> int | None:
    found = folder.file(name)
    if found is None or found.st_mtime > before:
        return None
    return found.st_size if dry_run else folder.remove(name)


def follow(folder: Path, services: frozenset[str], level: str, lines: int) -> int:
    """Print the last lines of all logs in order, then whatever comes, until Ctrl-C."""
    tails: dict[str, Tail] = {}
    try:
        for log in logs_in(folder, services):
            tails[log.path.name] = Tail(log.path, from_start=False)
            _print_new(tails[log.path.name], level)  # opened, at its end
        for line in _last_of(logs_in(folder, services), level, lines):
            print(line, flush=True)
        while True:
            for log in logs_in(folder, services):
                if log.path.name not in tails:
                    tails[log.path.name] = Tail(log.path, from_start=True)
                _print_new(tails[log.path.name], level)
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # who read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        for tail in tails.values():
            tail.close()


def _print_new(tail: Tail, level: str) -> None:
    for line in tail.lines():
        said = parsed(line)
        if said is None:
            if level in ("debug", "info"):
                print(shown(line), flush=True)
        elif is_at_least(said, level):
            print(readable(said), flush=True)


def _last_of(logs: Sequence[Log], level: str, lines: int) -> list[str]:
    found = []
    for log in logs:
        ours = (said for line in newest_first(log) if (said := parsed(line)) is not None)
        found += islice((said for said in ours if is_at_least(said, level)), lines)
    found.sort(key=lambda said: str(said["time"]))
    return [readable(said) for said in found[-lines:]] if lines else []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _mib(size_bytes: int) -> str:
    return (
        f"{size_bytes / 2**20:.1f} MiB" if size_bytes >= 2**20 else f"{size_bytes / 2**10:.1f} KiB"
    )


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--service", action="append", default=[], metavar="NAME",
        help=f"only this service's, such as {known_precisions()[0]}; may be given again",
    )  # fmt: skip
    shared.add_argument("--folder", type=Path, help="where the logs lie (default: FLUX_LOG_DIR)")
    parser = argparse.ArgumentParser(
        prog="scripts/manage_logs.sh", description="The services' logs."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="status | clean | follow")
    levels = {"choices": LEVELS[:-1], "help": "least level that is shown (default: %(default)s)"}
    verb = verbs.add_parser("status", parents=[shared], help="files, sizes, and the last errors")
    verb.add_argument("--level", default="error", **levels)
    verb = verbs.add_parser(
        "clean", parents=[shared], help="remove older files, and logs of services that do not run"
    )
    verb.add_argument(
        "--days", type=_days, default=0.0, help="only what is older than so many days"
    )
    verb.add_argument("--dry-run", action="store_true", help="say what would go, remove nothing")
    verb = verbs.add_parser("follow", parents=[shared], help="the lines as they come, for people")
    verb.add_argument("--level", default="debug", **levels)
    verb.add_argument("-n", "--lines", type=_count, default=20, help="begin so many lines back")
    return parser


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days")
    return days


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
