"""Cleanup on a real database and real folders: what goes, what stays, two at once, links, clocks that are moved."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from config.settings import ROOT, Settings, load_settings
from models.lora import incoming
from models.types import GenerationResult, ImageFile
from tests.utils.soak.bench import in_loop, request
from utils import cleanup_service, images
from utils.cleanup_clock import Uptime
from utils.cleanup_report import Report
from utils.cleanup_service import CleanupService
from utils.clock import rfc3339
from utils.database.sqlite import CLEANUP
from utils.job_store import JobStore

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
DAY = timedelta(days=1)


class House:
    """A service's folders and database, and a cleanup of them whose clocks a test moves."""

    def __init__(self, folder: Path, store: JobStore, settings: Settings) -> None:
        self.outputs = folder / "outputs"
        self.store = store
        self.settings = settings
        self.now = NOW
        self.up = Uptime(boot="boot", seconds=1e6)
        self.cleanup = CleanupService(settings, store, lambda: self.now, lambda: self.up)
        self.cleanup.rows.pause = lambda seconds: None
        self._count = 0

    async def picture(self, age: timedelta, *, pictures: int = 1, size: int = 10) -> str:
        """A finished job of an age; returns its id. Its pictures are files of `size` bytes."""
        self._count += 1
        job_id, at = f"job{self._count:04d}", rfc3339(self.now - age)
        await self.store.insert(job_id, request(), at)
        [job] = await self.store.claim("w", at, models=["embedded"], limit=1, choose=list)
        files = []
        for index in range(pictures):
            name = f"{job_id}-{index}.png"
            (self.outputs / name).write_bytes(b"x" * size)
            thumbnail = self.outputs / images.THUMBNAILS / f"{name}.jpg"
            thumbnail.parent.mkdir(exist_ok=True)
            thumbnail.write_bytes(b"t")
            files.append(ImageFile(filename=name, seed=1, width=8, height=8, size_bytes=size))
        timings = {"queued": 0.0, "total": 1.0}
        result = GenerationResult(
            images=tuple(files), engine="e", precision="bf16", device="cpu", timings_ms=timings
        )
        await self.store.succeed(job, result, at, publish=lambda: None)
        return job_id

    async def clean(self, **options: Any) -> Report:
        return await asyncio.to_thread(self.cleanup.clean, **options)

    def left(self) -> set[str]:
        """The pictures on disk, by job."""
        return {path.name.partition("-")[0] for path in self.outputs.glob("*.png")}

    async def listed(self) -> set[str]:
        found = await self.store.images(limit=500, before=None, words=None)
        return {image.job_id for image in found}


def settings_of(folder: Path, **environ: str) -> Settings:
    (folder / "outputs").mkdir(exist_ok=True)
    return load_settings(
        "bf16",
        {
            "FLUX_OUTPUT_DIR": str(folder / "outputs"),
            "FLUX_DATA_DIR": str(folder / "data"),
            "FLUX_LORA_DIR": str(folder / "loras"),
            "FLUX_LOG_DIR": str(folder / "logs"),
            **environ,
        },
    )


@asynccontextmanager
async def opened(folder: Path, **environ: str) -> AsyncIterator[House]:
    settings = settings_of(folder, **environ)
    store = await JobStore.open(folder / "data" / "bf16.sqlite3")
    try:
        yield House(folder, store, settings)
    finally:
        await store.close()


# Pictures


@in_loop
async def test_clean_old_picture_goes_with_its_thumbnail_and_a_young_one_stays(tmp_path) -> None:
    async with opened(tmp_path) as house:
        old, young = await house.picture(8 * DAY), await house.picture(6 * DAY)
        report = await house.clean()
        assert house.left() == await house.listed() == {young}
        assert not (house.outputs / images.THUMBNAILS / f"{old}-0.png.jpg").exists()
        assert (house.outputs / images.THUMBNAILS / f"{young}-0.png.jpg").exists()
        assert report.tallies["outputs"].count == 1 and report.tallies["outputs"].bytes == 10
        assert (await house.store.get(old)) is not None  # the job is told of for longer


@in_loop
async def test_clean_pinned_picture_stays_whatever_its_age_and_number(tmp_path) -> None:
    async with opened(tmp_path, FLUX_CLEANUP_MAX_OUTPUTS="1") as house:
        pinned, old = await house.picture(300 * DAY), await house.picture(300 * DAY)
        await house.store.pin_image(f"{pinned}-0", True)
        await house.clean()
        assert house.left() == {pinned} and old not in await house.listed()
        await house.store.pin_image(f"{pinned}-0", False)
        await house.clean()
        assert house.left() == set()


@in_loop
async def test_clean_picture_pinned_between_look_and_removal_stays(tmp_path) -> None:
    async with opened(tmp_path) as house:
        job = await house.picture(8 * DAY)
        rows = house.cleanup.rows
        remove_each = rows._remove_each

        def pinned_meanwhile(found: Any, dry_run: bool) -> Any:
            rows._wait(house.store.pin_image(f"{job}-0", True))
            return remove_each(found, dry_run)

        rows._remove_each = pinned_meanwhile
        report = await house.clean()
        assert house.left() == {job} and report.tallies["outputs"].count == 0


@in_loop
async def test_clean_too_many_pictures_oldest_go_first(tmp_path) -> None:
    async with opened(tmp_path, FLUX_CLEANUP_MAX_OUTPUTS="2") as house:
        jobs = [await house.picture(timedelta(hours=hours)) for hours in (4, 3, 2, 1)]
        await house.clean()
        assert house.left() == set(jobs[2:])


@in_loop
async def test_clean_too_many_bytes_oldest_go_first(tmp_path) -> None:
    limit = str(250 / 2**30)
    async with opened(tmp_path, FLUX_CLEANUP_MAX_OUTPUT_GIB=limit) as house:
        jobs = [await house.picture(timedelta(hours=5 - n), size=100) for n in range(4)]
        await house.clean()
        assert house.left() == set(jobs[2:])


@in_loop
async def test_clean_picture_that_was_just_drawn_is_not_one_too_many(tmp_path) -> None:
    async with opened(tmp_path, FLUX_CLEANUP_MAX_OUTPUTS="1") as house:
        jobs = {await house.picture(timedelta(seconds=1)) for _ in range(3)}
        await house.clean()
        assert house.left() == jobs


@in_loop
async def test_clean_dry_run_says_what_would_go_and_removes_nothing(tmp_path) -> None:
    async with opened(tmp_path) as house:
        job = await house.picture(8 * DAY, pictures=3)
        report = await house.clean(dry_run=True)
        assert report.tallies["outputs"].count == 3 and "would be removed" in report.to_text()
        assert house.left() == await house.listed() == {job}
        assert (await house.clean()).tallies["outputs"].count == 3


@in_loop
async def test_clean_many_windows_of_pictures_all_go(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("utils.cleanup_rows.WINDOW", 3)
    async with opened(tmp_path) as house:
        for _ in range(10):
            await house.picture(8 * DAY)
        young = await house.picture(DAY)
        await house.clean()
        assert house.left() == {young}


@in_loop
async def test_clean_file_that_is_read_is_read_to_its_end(tmp_path) -> None:
    async with opened(tmp_path) as house:
        job = await house.picture(8 * DAY, size=100_000)
        with open(house.outputs / f"{job}-0.png", "rb") as file:
            assert file.read(10) == b"x" * 10
            await house.clean()
            assert house.left() == set() and len(file.read()) == 99_990


@in_loop
async def test_clean_file_outlives_its_row_for_a_moment(tmp_path) -> None:
    """Who found the row before it went has time to open the file."""
    async with opened(tmp_path) as house:
        job = await house.picture(8 * DAY)
        seen = []
        house.cleanup.rows.pause = lambda seconds: seen.append((seconds, house.left()))
        await house.clean()
        assert seen == [(2.0, {job})] and house.left() == set()


@in_loop
async def test_clean_after_a_crash_between_row_and_file_ends_what_was_begun(tmp_path) -> None:
    async with opened(tmp_path) as house:
        job = await house.picture(8 * DAY)
        house.cleanup.rows.pause = _raise(KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            await house.clean()
        assert house.left() == {job} and await house.listed() == set()
        house.cleanup.rows.pause = lambda seconds: None
        await house.clean()
        assert house.left() == set()


def _raise(error: type[BaseException]) -> Callable[[float], None]:
    def raising(seconds: float) -> None:
        raise error

    return raising


@in_loop
async def test_clean_file_that_cannot_be_removed_is_told_and_tried_again(
    tmp_path, monkeypatch
) -> None:
    async with opened(tmp_path) as house:
        job = await house.picture(8 * DAY)

        def refuse(name: str, *args: Any, **kwargs: Any) -> None:
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as patched:
            patched.setattr(os, "unlink", refuse)
            report = await house.clean()
        assert "Permission denied" in report.to_text() and house.left() == {job}
        await house.clean()
        assert house.left() == set()


@in_loop
async def test_clean_of_thousands_of_files_exactly_the_old_ones_go(tmp_path) -> None:
    """Old, young, pinned, links and strangers in one folder, in no order."""
    async with opened(tmp_path) as house:
        chance, names, expected = random.Random(7), [], set()
        rows: list[tuple[Any, ...]] = []
        for number in range(3000):
            job_id = f"job{number:05d}"
            is_old, is_pinned = number < 2000, chance.random() < 0.1
            kind = chance.choice(("plain", "plain", "plain", "link", "gone"))
            at = rfc3339(NOW - (DAY * 30 if is_old else DAY) + timedelta(seconds=number))
            name = f"{job_id}-0.png"
            rows.append((f"{job_id}-0", job_id, name, at, int(is_pinned)))
            names.append((name, kind))
            if kind == "link" or (kind == "plain" and (is_pinned or not is_old)):
                expected.add(name)
        strangers = {f"holiday{number}.png" for number in range(500)}
        names += [(name, "plain") for name in strangers]
        chance.shuffle(names)
        target = tmp_path / "target.png"
        target.write_bytes(b"mine")
        for name, kind in names:
            path = house.outputs / name
            if kind == "plain":
                path.write_bytes(b"x")
            elif kind == "link":
                path.symlink_to(target)

        def insert(db: sqlite3.Connection) -> None:
            db.executemany(
                "INSERT INTO job (id, status, request, model, owner, created_at) VALUES (?, 'succeeded', ?, 'embedded', '', ?)",
                [(job_id, json.dumps(request().to_json()), at) for _, job_id, _, at, _ in rows],
            )
            db.executemany(
                "INSERT INTO image (id, job_id, filename, seed, width, height, size_bytes, created_at, precision, "
                "engine, pinned) VALUES (?, ?, ?, 1, 8, 8, 1, ?, 'bf16', 'e', ?)",
                rows,
            )

        await house.store.write(insert)
        report = await house.clean()
        assert set(os.listdir(house.outputs)) == expected | strangers
        assert report.tallies["outputs"].count == sum(
            row[1] < "job02000" and not row[4] for row in rows
        )
        assert target.read_bytes() == b"mine"


# Nothing outside, nothing through a link


@in_loop
async def test_clean_name_that_leads_outside_removes_nothing(tmp_path) -> None:
    async with opened(tmp_path) as house:
        (tmp_path / "mine.txt").write_text("mine")
        await house.picture(8 * DAY)
        await house.store.write(lambda db: db.execute("UPDATE image SET filename = '../mine.txt'"))
        report = await house.clean()
        assert (tmp_path / "mine.txt").exists() and "no file name" in report.to_text()


@in_loop
async def test_clean_link_in_a_pictures_place_stays_and_so_does_its_target(tmp_path) -> None:
    async with opened(tmp_path) as house:
        job = await house.picture(8 * DAY)
        target = tmp_path / "target.png"
        target.write_bytes(b"mine")
        link = house.outputs / f"{job}-0.png"
        link.unlink()
        link.symlink_to(target)
        report = await house.clean()
        assert link.is_symlink() and target.read_bytes() == b"mine"
        assert "no plain file" in report.to_text()


@pytest.mark.parametrize("name", [images.THUMBNAILS, images.STAGING])
@in_loop
async def test_clean_folder_that_is_a_link_is_not_entered(tmp_path, name: str) -> None:
    async with opened(tmp_path) as house:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        for file in ("a.png.jpg", "job-0.png"):
            (elsewhere / file).write_bytes(b"mine")
            os.utime(elsewhere / file, (0, 0))
        (house.outputs / name).symlink_to(elsewhere)
        await house.clean()
        assert len(list(elsewhere.iterdir())) == 2


@in_loop
async def test_clean_file_that_no_row_knows_stays(tmp_path) -> None:
    async with opened(tmp_path, FLUX_CLEANUP_MAX_OUTPUTS="1") as house:
        stranger = house.outputs / "holiday.png"
        stranger.write_bytes(b"mine")
        os.utime(stranger, (0, 0))
        await house.picture(8 * DAY)
        await house.clean()
        assert stranger.exists()


# Files without rows


@in_loop
async def test_clean_thumbnail_without_its_picture_goes(tmp_path) -> None:
    async with opened(tmp_path) as house:
        job = await house.picture(DAY)
        (house.outputs / images.THUMBNAILS / "gone-0.png.jpg").write_bytes(b"t")
        report = await house.clean()
        left = {path.name for path in (house.outputs / images.THUMBNAILS).iterdir()}
        assert left == {f"{job}-0.png.jpg"} and report.tallies["thumbnails"].count == 1


@in_loop
async def test_clean_staged_file_stays_while_any_service_has_its_job_open(tmp_path) -> None:
    async with opened(tmp_path) as house:
        other = await JobStore.open(tmp_path / "data" / "fp4.sqlite3")
        await other.insert("theirs", request(), rfc3339(NOW))
        await house.store.insert("ours", request(), rfc3339(NOW))
        staging = house.outputs / images.STAGING
        staging.mkdir()
        names = ("theirs-0.png", "ours-0.png", "nobodys-0.png", "new-0.png")
        for name in names:
            (staging / name).write_bytes(b"x")
            os.utime(staging / name, ((NOW - 2 * DAY).timestamp(),) * 2)
        os.utime(staging / "new-0.png", ((NOW - DAY / 2).timestamp(),) * 2)
        report = await house.clean()
        await other.close()
        left = {path.name for path in staging.iterdir()}
        assert left == {"theirs-0.png", "ours-0.png", "new-0.png"}
        assert report.tallies["staging"].count == 1


@pytest.mark.parametrize("name", [b"a\nb", b"\xff\xfe", b"\x1b[2J", b"-rf", b" "], ids=ascii)
@in_loop
async def test_clean_staged_file_of_any_name_goes(tmp_path, name: bytes) -> None:
    async with opened(tmp_path) as house:
        staged = house.outputs / images.STAGING / os.fsdecode(name + b"-0.png")
        staged.parent.mkdir()
        staged.write_bytes(b"x")
        os.utime(staged, (0, 0))
        report = await house.clean()
        assert not staged.exists() and report.tallies["staging"].count == 1


@in_loop
async def test_clean_database_that_cannot_be_read_keeps_every_staged_file(tmp_path) -> None:
    async with opened(tmp_path) as house:
        (tmp_path / "data" / "fp4.sqlite3").write_bytes(b"no database, but long enough" * 100)
        staged = house.outputs / images.STAGING / "nobodys-0.png"
        staged.parent.mkdir()
        staged.write_bytes(b"x")
        os.utime(staged, (0, 0))
        report = await house.clean()
        assert staged.exists() and "unfinished pictures stay" in report.to_text()


@in_loop
async def test_clean_upload_that_comes_in_stays_and_a_dead_one_goes(tmp_path) -> None:
    async with opened(tmp_path) as house:
        dead = tmp_path / "loras" / incoming.FOLDER / "dead.part"
        dead.parent.mkdir(parents=True)
        dead.write_bytes(b"x")
        os.utime(dead, (0, 0))
        with incoming.Incoming(tmp_path / "loras", max_bytes=100, reserve_bytes=0) as live:
            os.utime(live.path, (0, 0))
            assert (await house.clean(dry_run=True)).tallies["uploads"].count == 1
            report = await house.clean()
            assert live.path.exists()
        assert not dead.exists() and report.tallies["uploads"].count == 1


@in_loop
async def test_clean_rotated_log_that_is_old_goes_and_the_log_itself_stays(tmp_path) -> None:
    async with opened(tmp_path) as house:
        logs = tmp_path / "logs"
        logs.mkdir()
        kept = {"bf16.log", ".bf16.log.lock", "notes.txt"}
        for name in (*kept, "bf16.log.1", "bf16.log-20260101.gz"):
            (logs / name).write_text("x")
            os.utime(logs / name, (0, 0))
        (logs / "bf16.log.2").write_text("young")
        os.utime(logs / "bf16.log.2", (NOW.timestamp(),) * 2)
        await house.clean()
        assert {path.name for path in logs.iterdir()} == {*kept, "bf16.log.2"}


# Jobs and usage


@in_loop
async def test_clean_old_job_goes_but_not_before_its_pictures(tmp_path) -> None:
    async with opened(tmp_path, FLUX_CLEANUP_OUTPUT_DAYS="0") as house:
        kept = await house.picture(100 * DAY)
        gone = await house.picture(100 * DAY)
        await house.store.delete_image(f"{gone}-0", lambda: None)
        report = await house.clean()
        assert await house.store.get(gone) is None and await house.store.get(kept) is not None
        assert report.tallies["jobs"].count == 1


@in_loop
async def test_clean_job_that_waits_or_runs_stays_whatever_its_age(tmp_path) -> None:
    async with opened(tmp_path, FLUX_CLEANUP_MAX_JOBS="1") as house:
        at = rfc3339(NOW - 300 * DAY)
        for name in ("runs", "waits"):
            await house.store.insert(name, request(), at)
        await house.store.claim("w", at, models=["embedded"], limit=1, choose=list)
        await house.clean()
        statuses = {job.id: job.status.value for job in await _jobs(house)}
        assert statuses == {"runs": "running", "waits": "queued"}


@in_loop
async def test_clean_too_many_jobs_oldest_go_but_none_of_the_last_two_days(tmp_path) -> None:
    async with opened(
        tmp_path, FLUX_CLEANUP_MAX_JOBS="1", FLUX_CLEANUP_OUTPUT_DAYS="0.01"
    ) as house:
        jobs = [await house.picture(age * DAY) for age in (9, 8, 1, 0.5)]
        await house.clean()
        assert {job.id for job in await _jobs(house)} == set(jobs[2:])


@in_loop
async def test_clean_usage_outlives_its_job_and_goes_after_its_own_time(tmp_path) -> None:
    async with opened(tmp_path) as house:
        await house.picture(401 * DAY)
        young = await house.picture(200 * DAY)
        report = await house.clean()
        rows = await house.store.read("old_usage", {"before": "9", "after": "", "limit": 9})
        assert [row["job_id"] for row in rows] == [young]
        assert (report.tallies["jobs"].count, report.tallies["usage"].count) == (2, 1)


async def _jobs(house: House) -> list[Any]:
    return await house.store.list(status=None, limit=100, offset=0)


# Clocks


@in_loop
async def test_clean_clock_set_forward_keeps_everything_and_says_so(tmp_path) -> None:
    async with opened(tmp_path) as house:
        job = await house.picture(DAY)
        await house.clean()
        house.now += 365 * DAY
        house.up = Uptime(boot="boot", seconds=house.up.seconds + 60)
        report = await house.clean()
        assert house.left() == {job} and "set forward by 36" in report.to_text()


@in_loop
async def test_clean_clock_that_stays_forward_for_a_day_is_believed(tmp_path) -> None:
    async with opened(tmp_path) as house:
        await house.picture(DAY)
        await house.clean()
        house.now += 30 * DAY
        for hours in (1, 24.5, 1):
            house.up = Uptime(boot="boot", seconds=house.up.seconds + hours * 3600)
            house.now += timedelta(hours=hours)
            await house.clean()
        assert house.left() == set()


@in_loop
async def test_clean_picture_drawn_while_the_clock_was_behind_is_as_old_as_its_place(
    tmp_path,
) -> None:
    async with opened(tmp_path) as house:
        before = await house.picture(DAY)
        behind = await house.picture(3000 * DAY)
        await house.clean()
        assert house.left() == {before, behind}


@in_loop
async def test_clean_picture_from_the_future_stays_and_holds_up_nobody(tmp_path) -> None:
    async with opened(tmp_path) as house:
        future, old = await house.picture(-300 * DAY), await house.picture(8 * DAY)
        await house.clean()
        assert house.left() == {future} and old not in await house.listed()


# Life


@in_loop
async def test_cleanup_that_fails_is_logged_and_goes_on(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(cleanup_service, "FIRST_AFTER_SECONDS", 0.0)
    async with opened(tmp_path, FLUX_CLEANUP_INTERVAL_MINUTES="0.0001") as house:
        tried, twice = [], threading.Event()

        def fail(**options: Any) -> None:
            tried.append(1)
            if len(tried) == 2:
                twice.set()
            raise RuntimeError("a fault that nobody foresaw")

        house.cleanup.clean = fail
        house.cleanup.start()
        assert await asyncio.to_thread(twice.wait, 30)
        await house.cleanup.stop()
        assert "a cleanup failed" in caplog.text


@in_loop
async def test_stop_ends_a_cleanup_that_is_at_work(tmp_path) -> None:
    async with opened(tmp_path) as house:
        await house.picture(8 * DAY)
        at_pause = threading.Event()

        def pause(seconds: float) -> None:
            at_pause.set()
            house.cleanup._stopping.wait(30)

        house.cleanup.rows.pause = pause
        cleaning = asyncio.create_task(house.clean())
        await asyncio.to_thread(at_pause.wait, 30)
        await house.cleanup.stop()
        assert "ended before it was done" in (await cleaning).to_text()


@in_loop
async def test_cleaning_jobs_are_submitted_meanwhile_and_none_is_lost(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("utils.cleanup_rows.WINDOW", 10)
    async with opened(tmp_path) as house:
        for _ in range(60):
            await house.picture(100 * DAY)
        cleaning = asyncio.create_task(house.clean())
        new = [await house.picture(timedelta(0)) for _ in range(30)]
        await cleaning
        await house.clean()
        assert house.left() == await house.listed() == set(new)


# Two at once, and the command


@in_loop
async def test_folder_that_another_cleanup_has_is_left_to_it(tmp_path) -> None:
    async with opened(tmp_path) as house:
        await house.picture(DAY)
        (house.outputs / images.THUMBNAILS / "gone-0.png.jpg").write_bytes(b"t")
        handle = os.open(house.outputs, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        report = await house.clean()
        os.close(handle)
        assert report.tallies["thumbnails"].count == 0 and "another cleanup" in report.to_text()
        assert (await house.clean()).tallies["thumbnails"].count == 1


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = settings_of(folder)
    environ = {
        "PATH": os.environ["PATH"],
        "FLUX_OUTPUT_DIR": str(settings.storage.output_dir),
        "FLUX_DATA_DIR": str(settings.storage.data_dir),
        "FLUX_LORA_DIR": str(settings.storage.lora_dir),
        "FLUX_LOG_DIR": str(folder / "logs"),
    }
    return subprocess.run(
        [sys.executable, "-m", "utils.cleanup_service", "--json", *arguments],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=180,
    )


async def _old_picture(folder: Path) -> str:
    async with opened(folder) as house:
        house.now = datetime.now(UTC)
        return await house.picture(8 * DAY)


def test_command_cleans_up_for_a_service_that_rests(tmp_path: Path) -> None:
    asyncio.run(_old_picture(tmp_path))
    done = command(tmp_path)
    assert done.returncode == 0, done.stderr
    by_service = {outcome["service"]: outcome for outcome in json.loads(done.stdout)}
    assert by_service["bf16"]["report"]["removed"]["outputs"]["count"] == 1
    assert "never started" in by_service["fp4"]["why_not"]
    assert list((tmp_path / "outputs").glob("*.png")) == []
    assert not (tmp_path / "data" / "fp4.sqlite3").exists()


def test_command_leaves_the_database_of_a_service_that_runs(tmp_path: Path) -> None:
    async def run() -> tuple[str, subprocess.CompletedProcess[str]]:
        job = await _old_picture(tmp_path)
        store = await JobStore.open(tmp_path / "data" / "bf16.sqlite3")
        done = await asyncio.to_thread(command, tmp_path)
        await store.close()
        return job, done

    job, done = asyncio.run(run())
    [bf16] = [outcome for outcome in json.loads(done.stdout) if outcome["service"] == "bf16"]
    assert done.returncode == 0 and "it runs" in bf16["why_not"]
    assert (tmp_path / "outputs" / f"{job}-0.png").exists()


def test_two_commands_at_once_remove_each_old_picture_once(tmp_path: Path) -> None:
    async def fill() -> str:
        async with opened(tmp_path) as house:
            house.now = datetime.now(UTC)
            for _ in range(40):
                await house.picture(8 * DAY)
            return await house.picture(DAY)

    young = asyncio.run(fill())
    with ThreadPoolExecutor(2) as both:
        done = list(both.map(lambda _: command(tmp_path), range(2)))
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    outcomes = [outcome for each in done for outcome in json.loads(each.stdout)]
    removed = [
        outcome["report"]["removed"]["outputs"]["count"]
        for outcome in outcomes
        if outcome["report"] is not None
    ]
    assert sum(removed) == 40
    assert {path.name for path in (tmp_path / "outputs").glob("*.png")} == {f"{young}-0.png"}


def test_command_wrong_setting_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "utils.cleanup_service"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "FLUX_CLEANUP_JOB_DAYS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 78 and "FLUX_CLEANUP_JOB_DAYS" in done.stderr


@in_loop
async def test_service_that_starts_gets_its_database_from_a_cleanup(tmp_path) -> None:
    path = tmp_path / "bf16.sqlite3"
    cleaning = await JobStore.open(path, holder=CLEANUP)
    assert not cleaning.is_wanted
    starting = asyncio.create_task(JobStore.open(path))
    while not cleaning.is_wanted:
        await asyncio.sleep(0)
    await cleaning.close()
    service = await starting
    await service.close()
    assert not path.with_suffix(".wanted").exists()


# A large database


@in_loop
async def test_large_database_with_damage_opens_and_says_so(tmp_path, monkeypatch) -> None:
    path = tmp_path / "bf16.sqlite3"
    store = await JobStore.open(path)
    for number in range(50):
        await store.insert(f"job{number:04d}", request(prompt="p" * 2000), rfc3339(NOW))
    await store.close()
    with closing(sqlite3.connect(path)) as db:
        [root] = db.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'job_by_status'"
        ).fetchone()
        [size] = db.execute("PRAGMA page_size").fetchone()
    with open(path, "r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\x99" * 64)
    monkeypatch.setattr("utils.database.sqlite.CHECKED_FIRST_BYTES", 0)
    store = await JobStore.open(path)
    try:
        while store.damage is None:
            await asyncio.sleep(0.001)
        assert "is damaged" in store.damage
    finally:
        await store.close()
