"""The front door of a fleet, from its settings to a running server: what its main file does."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
from types import FrameType

from api import server
from api.app import create_app
from api.services import make_plan
from api.version import VERSION
from config.errors import ConfigurationError
from config.settings import Settings, load_settings
from models.precision import FLEET
from utils import logs
from utils.fleet.cluster import REPLICA, Cluster
from utils.fleet.crew import Crew
from utils.fleet.guest import Guest
from utils.fleet.machine import machine_of
from utils.fleet.ray_processes import Head, environment

EXIT_INTERRUPTED = 130
EXIT_RAY_ENDED = 75  # EX_TEMPFAIL: another start mends it
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(replica: str = REPLICA) -> int:
    """Run the fleet's first machine and its front door until told to stop; returns the exit status.

    `replica` is the class of its replicas, as `module:name`.
    """
    if sys.argv[1:]:
        print(
            f"{FLEET.service}: {sys.argv[1]}: no arguments are taken here; ./start_fleet.sh --help lists flags, "
            ".env.example the FLUX_* settings",
            file=sys.stderr,
        )
        return server.EXIT_USAGE
    if importlib.util.find_spec("ray") is None:
        print(
            f"{FLEET.service}: Ray is not installed; scripts/setup_env.sh --fleet installs it",
            file=sys.stderr,
        )
        return server.EXIT_NOT_BUILT
    try:
        settings = load_settings(FLEET.name)
        logs.configure(settings, FLEET.name)
        server.require_address(settings.server)
        server.give_hub_token(settings)
        cluster = Cluster(f"{VERSION}-{replica}", replica)
        # What is wrong is said before Ray starts.
        crew = Crew(cluster, settings)
        app = create_app(make_plan(settings, FLEET, crew=crew))
        _require_database(settings)
        head = (Guest if settings.fleet.fleet_join else Head)(settings, machine_of(settings))
        os.environ.update(environment(settings))
    except ConfigurationError as error:
        return server.refuse(FLEET.service, error)
    _take_stops()
    try:
        cluster.connect(head.start())
        _take_stops()  # Ray has taken one of them
        crew.has_ray = lambda: head.is_up
        status = server.run(app, settings, FLEET.service)
    except ConfigurationError as error:
        status = server.refuse(FLEET.service, error)
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except SystemExit:
        status = 0
    finally:
        for each in STOPS:  # what was started is ended, however often one is told to
            signal.signal(each, signal.SIG_IGN)
        if crew.is_without_ray:
            head.stop()
            logging.shutdown()
            os._exit(EXIT_RAY_ENDED)  # Ray would look for its first process for a minute
        cluster.end(with_replicas=not settings.fleet.fleet_join)
        head.stop()
    return status


def _require_database(settings: Settings) -> None:
    """A door beside others has nothing to do without what they share."""
    if settings.fleet.fleet_join and not settings.fleet.database_url.get_secret_value():
        raise ConfigurationError(
            "FLUX_DATABASE_URL is not set: front doors beside each other keep their jobs in one PostgreSQL database; "
            "set it as it is for the first machine's"
        )


def _take_stops() -> None:
    """Until the server takes them, and SIGHUP, which it does not: a stop is an exit that ends what was started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # A terminal that is closed would leave Ray's processes behind; `nohup` has had it ignored.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _as_sigterm)


def _as_sigterm(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGTERM)
