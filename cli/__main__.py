"""What `./flux` runs. Only the standard library is imported here, because the rest may be what is missing."""

import io
import signal
import sys
from pathlib import Path
from types import FrameType

# Started by its path, so that the caller's folder stays the one that `-o` is relative to.
ROOT = Path(__file__).resolve().parent.parent
WRONG, INTERRUPTED = 1, 130  # of `cli.failures.Status`


def main() -> int:
    sys.path[0] = str(ROOT)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        from cli.app import run
    except ImportError as error:
        return _without_packages(sys.argv[1:], error.name or str(error))
    except KeyboardInterrupt:
        return _failed(sys.argv[1:], "interrupted", "ended by Ctrl-C", INTERRUPTED)
    return run(sys.argv[1:])


def _interrupt(number: int, frame: FrameType | None) -> None:
    """As Ctrl-C: what was begun on a service is cancelled before the command ends."""
    raise KeyboardInterrupt


def _without_packages(arguments: list[str], missing: str) -> int:
    """The doctor says what is missing besides; any other command needs it."""
    if arguments[:1] == ["doctor"] and set(arguments[1:]) <= {"--json", "--all"}:
        from scripts import doctor

        return doctor.main(["--strict", *(["--json"] if "--json" in arguments else [])])
    text = f"the package {missing} is missing in {sys.prefix}; run {ROOT}/scripts/setup_env.sh"
    return _failed(arguments, "no_package", text, WRONG)


def _failed(arguments: list[str], code: str, text: str, status: int) -> int:
    """As `cli.app` says it, which is not there yet."""
    print(f"flux: {text}", file=sys.stderr)
    if "--json" in arguments:
        import json

        print(json.dumps({"error": {"code": code, "message": text, "exit_status": status}}))
    return status


if __name__ == "__main__":
    sys.exit(main())
