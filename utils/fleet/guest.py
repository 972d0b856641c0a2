"""Ray's processes of a front door that joins a fleet beside the first: a node that draws nothing and ends with the door."""

from __future__ import annotations

from config.errors import NotThereYet
from config.settings import Settings
from utils.fleet.join import address_of, require_token
from utils.fleet.machine import Machine
from utils.fleet.ray_processes import Head, answers, fleet_folder, join_arguments

STARTED = "Ray runtime started"  # what `ray start` says when a node is up


class Guest(Head):
    """Of a door whose settings name the fleet that it joins (FLUX_FLEET_JOIN)."""

    def __init__(self, settings: Settings, machine: Machine) -> None:
        super().__init__(settings, machine)
        # Apart from what this machine's replicas keep, which come and go without the door.
        self._folder = fleet_folder(settings) / "door"
        self._note = self._folder / "node.json"
        self.log_path = self._folder / "ray.log"

    def start(self) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        fleet = self._settings.fleet
        address = address_of(fleet.fleet_join, fleet.fleet_port)
        if not answers(address):
            raise NotThereYet(
                f"FLUX_FLEET_JOIN = {fleet.fleet_join}: nothing answers at {address}; start ./start_fleet.sh there "
                "first, and let this machine reach its ports"
            )
        require_token(address, fleet_folder(self._settings) / "token")
        self.stop()  # what an earlier life left
        arguments = join_arguments(self._settings, {}, self._folder, address)
        self._run(arguments, "", is_up=lambda: STARTED in self.log_path.read_text(errors="replace"))
        return address
