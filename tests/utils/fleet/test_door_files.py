"""What a front door sends to machines, and how often."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config.errors import NotFound
from models.types import LoraRef
from tests.utils.fleet.test_replica import REQUEST
from utils.fleet.door_files import DoorFiles
from utils.fleet.link import ReplicaRefused

SHA = "a" * 64
WITH_LORA = replace(REQUEST, loras=(LoraRef(name="x", sha256=SHA, weight=1.0),))


class Machine:
    """What all replicas of one have, and what was sent to it."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.has: set[str] = set()


class Link:
    """To a replica of a machine; `fault` is raised by the next file that is sent."""

    def __init__(self, machine: Machine, fault: Exception | None = None) -> None:
        self._machine = machine
        self._fault = fault

    async def missing(self, wanted: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return [each for each in wanted if each[1] not in self._machine.has]

    async def send_file(self, kind: str, sha256: str, path: Path, read: Any) -> None:
        if not path.exists():
            raise FileNotFoundError(path)
        self._machine.sent.append(sha256)
        await asyncio.sleep(0)  # others ask meanwhile
        if self._fault is not None:
            raise self._fault
        self._machine.has.add(sha256)


def provide(folder: Path, *links: tuple[str, Link]) -> list[BaseException | None]:
    """For a job of each at once."""
    files = DoorFiles(folder, folder)

    async def all_of_them() -> list[BaseException | None]:
        jobs = (files.provide(node, link, WITH_LORA) for node, link in links)  # type: ignore[arg-type]
        return await asyncio.gather(*jobs, return_exceptions=True)

    return asyncio.run(all_of_them())


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    (tmp_path / f"{SHA}.safetensors").write_bytes(b"x")
    return tmp_path


def test_door_files_lora_goes_to_a_machine_once_for_all_its_replicas(shelf: Path) -> None:
    studio, attic = Machine(), Machine()
    links = [("studio", Link(studio)), ("studio", Link(studio)), ("attic", Link(attic))]
    assert provide(shelf, *links) == [None, None, None]
    assert (studio.sent, attic.sent) == ([SHA], [SHA])


def test_door_files_replica_that_failed_leaves_the_file_to_the_next(shelf: Path) -> None:
    studio = Machine()
    fault = ReplicaRefused("its calls are taken")
    assert provide(shelf, ("studio", Link(studio, fault)), ("studio", Link(studio))) == [
        fault,
        None,
    ]
    assert studio.sent == [SHA, SHA] and studio.has == {SHA}


def test_door_files_file_that_is_gone_is_named(tmp_path: Path) -> None:
    (error,) = provide(tmp_path, ("studio", Link(Machine())))
    assert isinstance(error, NotFound) and SHA in error.message and "send it again" in error.message
