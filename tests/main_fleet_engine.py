"""The front door of a fleet whose replicas draw with the scripted stand-in model."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from api import fleet_server  # noqa: E402 (the path comes first)
from tests import fleet_replica  # noqa: E402
from utils.fleet import crew, link, scale  # noqa: E402

link.TAKEN_SECONDS = 3.0
crew.LOOK_SECONDS = 1.0
scale.LOOK_SECONDS = 0.5
scale.UP_AFTER_SECONDS = 1.0

fleet_replica.be_a_mac_where_named()

if __name__ == "__main__":
    sys.exit(fleet_server.serve("tests.fleet_replica:ScriptedReplica"))
