"""The front door of a fleet, from its settings to a running server: what its main file does."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys

from api import server
from api.app import create_app
from api.services import make_plan
from api.version import VERSION
from config.errors import ConfigurationError
from config.settings import load_settings
from models.precision import FLEET
from utils import logs
from utils.fleet.cluster import REPLICA, Cluster
from utils.fleet.crew import Crew
from utils.fleet.machine import machine_of
from utils.fleet.ray_processes import Head, environment

EXIT_INTERRUPTED = 130


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
        server.give_hub_token(settings)
        cluster = Cluster(f"{VERSION}-{replica}", replica)
        # What is wrong is said before Ray starts.
        app = create_app(make_plan(settings, FLEET, crew=Crew(cluster, settings)))
        head = Head(settings, machine_of(settings))
        os.environ.update(environment(settings))
    except ConfigurationError as error:
        return server.refuse(FLEET.service, error)
    # Until the server takes signals, a stop is an exit that ends what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        cluster.connect(head.start())
        return server.run(app, settings, FLEET.service)
    except ConfigurationError as error:
        return server.refuse(FLEET.service, error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    finally:
        cluster.end()
        head.stop()
