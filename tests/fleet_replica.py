"""Replicas of a fleet on the scripted stand-in model of `tests/engines.py`, and on mflux's where they are a Mac.

TEST_MAC names the machine that is one; its commands are those on PATH.
"""

import os
from dataclasses import replace

from models.families import mflux_command
from utils.fleet.replica import Replica
from utils.requests import RequestResolver
from utils.worker import parent


def _why_not(profile, row):
    return None if profile.name in row.memory_gib else f"{row.id} has no {profile.title} weights"


if os.environ.get("TEST_ANYWHERE"):
    RequestResolver.why_not_on = lambda self, slot, row: _why_not(self._profile, row)
    RequestResolver.why_no_files = lambda self, row: None
parent.RESTART_DELAY_SECONDS = float(os.environ.get("TEST_RESTART_SECONDS", "0.5"))


def be_a_mac_where_named() -> None:
    """What is told of this machine's models is as on a Mac, if it is the one."""
    mac = os.environ.get("TEST_MAC")
    if mac is not None and mac == os.environ.get("FLUX_FLEET_NODE"):
        mflux_command.is_apple_silicon = lambda: True


be_a_mac_where_named()


class ScriptedReplica(Replica):
    def _make_worker(self, slot):
        profile = replace(self._machine.profile, loader="tests.engines:scripted_or_mflux")
        self._machine = replace(self._machine, profile=profile)
        return super()._make_worker(slot)
