"""Makes this machine a part of a fleet, in the foreground: `python -m utils.fleet.join ADDRESS`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from config.errors import ConfigurationError
from config.settings import load_settings
from models.precision import FLEET
from utils.fleet.machine import machine_of
from utils.fleet.ray_processes import (
    OWNER,
    answers,
    end_all,
    environment,
    fleet_folder,
    join_arguments,
    new_owner,
)

EXIT_CONFIGURATION = 78  # EX_CONFIG
EXIT_RAY_ENDED = 75  # EX_TEMPFAIL: another start mends it


def main() -> int:
    try:
        settings = load_settings(FLEET.name)
        address = address_of(sys.argv[1] if len(sys.argv) == 2 else "", settings.fleet.fleet_port)
        kept = fleet_folder(settings) / "token"
        if not settings.fleet.fleet_token.get_secret_value() and not kept.exists():
            raise ConfigurationError(
                f"this machine has not the fleet's token: copy data/fleet/token of the fleet's first machine to {kept}, or set FLUX_FLEET_TOKEN to what it holds"
            )
        machine = machine_of(settings)
        if not answers(address):
            raise ConfigurationError(
                f"nothing answers at {address}: start ./start_fleet.sh there first, and let this machine "
                "reach its ports"
            )
        environ = environment(settings)
        os.environ.update(environ)
        require_token(address, kept)
    except ConfigurationError as error:
        print(f"{FLEET.service}: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    places = ", ".join(f"{count} {name}" for name, count in machine.resources.items())
    print(f"{FLEET.service}: {machine.name} joins {address} with {places}", file=sys.stderr)
    arguments = join_arguments(settings, machine.resources, fleet_folder(settings), address)
    return _take_part(arguments, environ, fleet_folder(settings))


def _take_part(arguments: list[str], environ: dict[str, str], folder: Path) -> int:
    """Until Ray's processes have ended, or we are told to end them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: sys.exit(0))
    owner = new_owner()
    environ = environ | {OWNER: owner}
    try:
        # Ctrl-C reaches us alone, who end it.
        status = subprocess.Popen(arguments, env=environ, start_new_session=True).wait()
        words = f"this machine is no part of the fleet any more: Ray ended with status {status}; join again"
        print(f"{FLEET.service}: {words}", file=sys.stderr)
        return EXIT_RAY_ENDED
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        end_all(folder, owner)


def require_token(address: str, kept: Path) -> None:
    """Asked before Ray's processes start, which would say it in a trace."""
    from ray._raylet import GcsClient
    from ray.exceptions import AuthenticationError, RayError

    try:
        GcsClient(address=address)
    except AuthenticationError as error:
        raise ConfigurationError(
            f"the fleet at {address} has another token than this machine ({kept}): copy data/fleet/token of "
            "the fleet's first machine, or set FLUX_FLEET_TOKEN to what it holds"
        ) from error
    except RayError as error:
        raise ConfigurationError(
            f"what answers at {address} is no fleet of this version: {str(error).splitlines()[0]}"
        ) from error


def address_of(text: str, port: int) -> str:
    host, colon, given = text.rpartition(":")
    if not colon:
        host, given = text, str(port)
    if not host or not given.isdecimal():
        raise ConfigurationError(
            f"{text!r} is no address; it is the host of the fleet's first machine, or host:port"
        )
    return f"{host}:{given}"


if __name__ == "__main__":
    sys.exit(main())
