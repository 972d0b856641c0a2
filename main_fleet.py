"""FLUX API, a fleet: one front door on port 8002 for the replicas of many cards and machines."""

import sys

from api import fleet_server

if __name__ == "__main__":
    sys.exit(fleet_server.serve())
