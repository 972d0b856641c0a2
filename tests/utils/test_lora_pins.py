"""What a job holds of its LoRAs: links that stay while an open job has them, and no longer."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from config.errors import NotFound
from models.lora.library import Library
from models.types import LoraRef
from tests.lora_files import lora
from utils import lora_pins
from utils.lora_pins import LoraPins, pins_folder


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(
        tmp_path / "loras",
        tmp_path / "builtin",
        max_bytes=2**20,
        now=lambda: "2026-01-01T00:00:00.000Z",
    )


def added(library: Library, seed: float = 0.0) -> LoraRef:
    with library.incoming(reserve_bytes=0) as file:
        file.write(lora(seed))
        entry, _ = library.add(file, "a.safetensors", source="upload")
    return LoraRef(name=entry.name, sha256=entry.sha256, weight=1.0)


class Jobs:
    """The LoRAs of open jobs, as a store tells them."""

    def __init__(self) -> None:
        self.loras: set[str] = set()
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()
        self.answer.set()

    async def __call__(self) -> set[str]:
        found = set(self.loras)
        self.asked.set()
        await self.answer.wait()
        return found


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def run(
    library: Library, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[LoraPins], Awaitable[None]]], None]:
    """Runs a test with pins that were started."""
    monkeypatch.setattr(lora_pins, "SWEEP_PAUSE_SECONDS", 0.0)

    def run(test: Callable[[LoraPins], Awaitable[None]]) -> None:
        async def with_pins() -> None:
            pins = LoraPins(folder_of(library), library)
            await pins.start(jobs)
            try:
                await test(pins)
            finally:
                await pins.stop()

        asyncio.run(with_pins())

    return run


def folder_of(library: Library) -> Path:
    return pins_folder(library.folder, "bf16", Path("/data"))


def held(library: Library) -> set[str]:
    return {path.stem for path in folder_of(library).glob("*.safetensors")}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_held_lora_is_a_link_and_costs_no_disk(run, library: Library) -> None:
    ref = added(library)

    async def test(pins: LoraPins) -> None:
        async with pins.held([ref]):
            (path,) = folder_of(library).iterdir()
            assert path.samefile(library.by_sha256(ref.sha256).path)

    run(test)


def test_held_lora_on_a_disk_without_links_is_a_copy(
    run, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = added(library)

    def refuses(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuses)

    async def test(pins: LoraPins) -> None:
        async with pins.held([ref]):
            (path,) = folder_of(library).iterdir()
            assert path.read_bytes() == lora()
            assert not path.samefile(library.by_sha256(ref.sha256).path)

    run(test)


def test_held_lora_outlives_its_deletion(run, library: Library) -> None:
    ref = added(library)

    async def test(pins: LoraPins) -> None:
        async with pins.held([ref]):
            library.remove(ref.sha256)
            async with pins.held([ref]):  # another job with the same
                (path,) = folder_of(library).iterdir()
                assert path.read_bytes() == lora()

    run(test)


def test_held_lora_that_is_gone_is_not_found_by_name(run, library: Library) -> None:
    ref = added(library)
    library.remove(ref.sha256)

    async def test(pins: LoraPins) -> None:
        with pytest.raises(NotFound, match=f"LoRA a of this job.*{ref.sha256}"):
            async with pins.held([ref]):
                raise AssertionError("held")
        assert held(library) == set()

    run(test)


def test_lora_goes_when_no_open_job_has_it(run, library: Library, jobs: Jobs) -> None:
    one, two = added(library, 1.0), added(library, 2.0)

    async def test(pins: LoraPins) -> None:
        async with pins.held([one, two]):
            jobs.loras = {one.sha256, two.sha256}
        jobs.loras = {two.sha256}
        pins.job_ended([one, two])
        await until(lambda: held(library) == {two.sha256})

    run(test)


def test_lora_of_a_job_that_arrives_while_pins_are_swept_stays(
    run, library: Library, jobs: Jobs
) -> None:
    """The sweep asked before the job was written, and looks at its LoRA after that."""
    ref = added(library)

    async def test(pins: LoraPins) -> None:
        async with pins.held([ref]):
            jobs.loras = {ref.sha256}
        jobs.loras = set()
        jobs.answer.clear()
        jobs.asked.clear()
        pins.job_ended([ref])
        await jobs.asked.wait()
        async with pins.held([ref]):
            jobs.loras = {ref.sha256}
        jobs.answer.set()
        await asyncio.sleep(0.1)
        assert held(library) == {ref.sha256}

    run(test)


def test_start_keeps_what_open_jobs_have_and_nothing_else(
    run, library: Library, jobs: Jobs
) -> None:
    one, two = added(library, 1.0), added(library, 2.0)

    async def before(pins: LoraPins) -> None:
        async with pins.held([one, two]):
            jobs.loras = {one.sha256, two.sha256}

    run(before)
    (folder_of(library) / ".half").write_bytes(b"of a copy")
    jobs.loras = {two.sha256}

    async def after(pins: LoraPins) -> None:
        assert held(library) == {two.sha256}
        assert not (folder_of(library) / ".half").exists()

    run(after)


def test_services_with_queues_of_their_own_hold_apart(tmp_path: Path) -> None:
    folders = {
        pins_folder(tmp_path, service, data)
        for service in ("bf16", "fp4")
        for data in (tmp_path / "a", tmp_path / "b")
    }
    assert len(folders) == 4
