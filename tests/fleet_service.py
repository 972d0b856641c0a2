"""A real fleet for tests: a front door with its machine's replicas, and machines that join it, on one host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from config.settings import ROOT
from tests.service import STOP_SECONDS, RunningService, free_port
from utils.fleet.ray_processes import remove_temporary

FLEET_MAIN = ROOT / "tests" / "main_fleet_engine.py"


class RunningFleet(RunningService):
    """Of two replicas called `first/cpu0` and `first/cpu1`. `join` brings another machine with one replica."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.fleet_port = free_port()
        super().__init__(
            folder,
            main=FLEET_MAIN,
            **{
                "FLUX_FLEET_PORT": str(self.fleet_port),
                "FLUX_FLEET_NODE": "first",
                "FLUX_FLEET_OBJECT_STORE_MIB": "80",
                "FLUX_FAKE_GPUS": "2",
                "FLUX_GPUS": "auto",
                **environ,
            },
        )
        self.machines: dict[str, subprocess.Popen[bytes]] = {}

    def set(self, **environ: str) -> None:
        """Settings for the next start."""
        self._environ |= environ

    @property
    def token(self) -> str:
        return (self.folder / "data" / "fleet" / "token").read_text()

    def join(self, node: str, replicas: int = 1, precision: str = "bf16") -> None:
        """Another machine of the fleet, in a process of its own, with folders of its own."""
        folder = self.folder / node
        folder.mkdir(parents=True, exist_ok=True)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("FLUX_")}
        environ = inherited | self._environ
        environ |= {
            "FLUX_FLEET_NODE": node,
            "FLUX_FLEET_TOKEN": self.token,
            "FLUX_DATA_DIR": str(folder / "data"),
            "FLUX_FAKE_GPUS": str(replicas),
            "FLUX_FLEET_PRECISION": precision,
        }
        with open(folder / "log", "ab") as log:
            self.machines[node] = subprocess.Popen(
                [sys.executable, "-m", "utils.fleet.join", f"127.0.0.1:{self.fleet_port}"],
                cwd=ROOT,
                env=environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_machine(self, node: str) -> None:
        """As if its power was cut: every process of it at once."""
        process = self.machines.pop(node)
        family = psutil.Process(process.pid).children(recursive=True)
        for each in [psutil.Process(process.pid), *family]:
            each.kill()
        process.wait(STOP_SECONDS)
        psutil.wait_procs(family, timeout=STOP_SECONDS)
        remove_temporary(self.folder / node / "data" / "fleet")

    def leave(self, node: str) -> int:
        """A machine is told to leave; its exit status."""
        process = self.machines.pop(node)
        process.terminate()
        return process.wait(STOP_SECONDS)

    def kill_front_door(self) -> None:
        """`kill -9` of the front door alone; Ray and the replicas live on."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def states(self) -> dict[str, str]:
        """The replicas' states by their names."""
        return {worker["name"]: worker["state"] for worker in self.workers()}

    def wait_for(self, *names: str, seconds: float = 120) -> None:
        """Until exactly these replicas are up and idle."""
        wanted = dict.fromkeys(names, "idle")
        self.wait_until(
            lambda: self.states() == wanted, seconds, f"has not {names} idle", pause_seconds=0.2
        )

    def close(self) -> None:
        for node in list(self.machines):
            self.kill_machine(node)  # which takes no time
        super().close()


class AnotherDoor(RunningService):
    """Another front door of a fleet that runs, with folders of its own, over the same database."""

    def __init__(self, fleet: RunningFleet, folder: Path, **environ: str) -> None:
        super().__init__(
            folder,
            main=FLEET_MAIN,
            **{
                "FLUX_FLEET_JOIN": f"127.0.0.1:{fleet.fleet_port}",
                "FLUX_FLEET_TOKEN": fleet.token,
                "FLUX_FLEET_NODE": folder.name,
                "FLUX_FLEET_OBJECT_STORE_MIB": "80",
                "FLUX_MODELS_DIR": str(fleet.folder / "models"),
                "FLUX_FAKE_GPUS": "1",
                "FLUX_GPUS": "auto",
                **environ,
            },
        )

    def states(self) -> dict[str, str]:
        return {worker["name"]: worker["state"] for worker in self.workers()}

    def close(self) -> None:
        super().close()
        remove_temporary(self.folder / "data" / "fleet" / "door")
