"""Replicas of a fleet on the scripted stand-in model of `tests/engines.py`."""

import os
from dataclasses import replace

from utils.fleet.replica import Replica
from utils.requests import RequestResolver
from utils.worker import parent

if os.environ.get("TEST_ANYWHERE"):
    RequestResolver.why_not_on = lambda self, slot, row: None
    RequestResolver.why_no_files = lambda self, row: None
parent.RESTART_DELAY_SECONDS = float(os.environ.get("TEST_RESTART_SECONDS", "0.5"))


class ScriptedReplica(Replica):
    def _make_worker(self, slot):
        profile = replace(self._machine.profile, loader="tests.engines:scripted")
        self._machine = replace(self._machine, profile=profile)
        return super()._make_worker(slot)
