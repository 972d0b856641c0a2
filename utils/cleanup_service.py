"""Cleanup: a service removes by itself what is too old or too much, and a command does it for services that rest.

Only a service changes its database, so rows are removed by the service that has it open, in a thread of its own.
The command (`python -m utils.cleanup_service`, the unit flux-cleanup) takes the databases that no service has, in
the same way, and lets go of one at once when its service starts. Files that belong to no row are anybody's to remove,
one at a time in each folder. A cleanup that fails is logged and tried again; nothing waits for it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from config.errors import ConfigurationError, FluxError
from config.settings import Settings, load_settings
from models.precision import known_precisions
from utils import cleanup_clock, logs
from utils.cleanup_files import Files
from utils.cleanup_report import Report
from utils.cleanup_rows import Rows, Stopped, Times
from utils.clock import rfc3339, utc_now
from utils.database.sqlite import CLEANUP, StoreInUse
from utils.job_store import JobStore
from utils.own_folder import opened

log = logging.getLogger(__name__)

FIRST_AFTER_SECONDS = 60.0  # a start has better things to do
STOP_SECONDS = 10.0


class CleanupService:
    """A service's own cleanup. Make it in the loop of the store; `start`, then `stop` before the store is closed."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        now: Callable[[], datetime] = utc_now,
        uptime: Callable[[], cleanup_clock.Uptime] = cleanup_clock.uptime,
        should_stop: Callable[[], bool] = lambda: False,
        is_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        self.last: Report | None = None
        self.started = now().timestamp()
        self._settings = settings
        self._now = now
        self._uptime = uptime
        self._is_ours = is_ours  # of several front doors with the same rows one cleans up by itself
        self._stopping = threading.Event()
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None

        def ends() -> bool:
            return self._stopping.is_set() or should_stop()

        self.rows = Rows(store, asyncio.get_running_loop(), ends)
        self.rows.pause = self._stopping.wait
        self._files = Files(settings, ends)

    def start(self) -> None:
        if self._settings.cleanup.cleanup_interval_minutes:
            self._thread = threading.Thread(target=self._go_on, name="cleanup", daemon=True)
            self._thread.start()

    async def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    async def run(self, *, dry_run: bool = False) -> Report:
        """Clean up now."""
        return await asyncio.to_thread(self.clean, dry_run=dry_run)

    def clean(
        self, *, dry_run: bool = False, trust_clock: bool = False, with_files: bool = True
    ) -> Report:
        """One cleanup. Blocks; not for the loop's thread. Raises FluxError when the store refuses."""
        with self._turn:
            report, began = _report(dry_run, self._now()), time.monotonic()
            try:
                self._clean(report, trust_clock, with_files)
            except Stopped:
                report.note("ended before it was done; the next one goes on")
            report.seconds = time.monotonic() - began
            if not dry_run:
                self.last = report
            level = logging.DEBUG if report.is_empty else logging.INFO
            words = report.to_text().replace("\n", "; ")
            log.log(level, "cleanup: %s", words, extra={"action": "cleanup"})
            return report

    def _clean(self, report: Report, trust_clock: bool, with_files: bool) -> None:
        settings, rows = self._settings.cleanup, self.rows
        times = self._times(report, trust_clock)
        rows.remove_pictures(settings, times, report)
        with opened(self._settings.storage.output_dir) as folder:
            rows.remove_files(folder, report)
        rows.remove_jobs(settings, times, report)
        rows.remove_usage(settings, times, report)
        if with_files:
            self._files.remove(times, report)

    def _times(self, report: Report, trust_clock: bool) -> Times:
        now = self._now()
        before = None if trust_clock else self.rows.state()
        reading, why_not = cleanup_clock.look(before, now, self._uptime())
        if not report.dry_run:
            self.rows.remember(reading.to_text())
        if why_not is not None:
            report.note(f"nothing is removed for its age: {why_not}")
        return Times(now=now, ages_count=why_not is None)

    def _note_clock(self) -> None:
        """What time it is now, so that the first cleanup sees whether the clock was moved."""
        try:
            self._times(Report(dry_run=False), trust_clock=False)
        except Stopped:
            pass
        except FluxError as error:
            log.warning("the clock was not noted: %s", error, extra={"action": "cleanup_failed"})

    def _go_on(self) -> None:
        pause = FIRST_AFTER_SECONDS
        if self._is_ours():
            self._note_clock()
        while not self._stopping.wait(pause):
            pause = self._settings.cleanup.cleanup_interval_minutes * 60
            try:
                if self._is_ours():
                    self.clean()
            except FluxError as error:
                log.error("cleanup: %s", error.message, extra={"action": "cleanup_failed"})
            except Exception:  # whatever it is, it must not end a service's cleanup for good
                log.exception("a cleanup failed", extra={"action": "cleanup_failed"})


def _report(dry_run: bool, now: datetime) -> Report:
    return Report(dry_run=dry_run, started_at=rfc3339(now), began=now.timestamp())


# The command


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one service's data; `why_not` where its database was not touched."""

    service: str
    report: Report | None
    why_not: str | None = None
    failed: bool = False

    def to_json(self) -> dict[str, object]:
        report = None if self.report is None else self.report.to_json()
        return {"service": self.service, "report": report, "why_not": self.why_not}

    def to_text(self) -> str:
        parts = (self.why_not, None if self.report is None else self.report.to_text())
        return f"{self.service}: " + "\n".join(filter(None, parts)).replace("\n", "\n  ")


def clean_all(*, dry_run: bool, trust_clock: bool) -> list[Outcome]:
    """Clean up for every service of this machine that does not run. Raises ConfigurationError."""
    outcomes, seen = [], set()
    for precision in known_precisions():
        settings = load_settings(precision)
        folders = (settings.storage.output_dir, settings.storage.lora_dir, settings.cleanup)
        outcomes.append(_clean_one(precision, settings, dry_run, trust_clock, folders not in seen))
        seen.add(folders)
    return outcomes


def _clean_one(
    precision: str, settings: Settings, dry_run: bool, trust_clock: bool, with_files: bool
) -> Outcome:
    path = settings.storage.data_dir / f"{precision}.sqlite3"
    if not path.exists():
        why_not = f"there is no database {path}: it was never started"
        return Outcome(
            service=precision, report=_files_alone(settings, dry_run, with_files), why_not=why_not
        )

    async def run() -> Report:
        store = await JobStore.open(path, holder=CLEANUP)
        try:
            service = CleanupService(settings, store, should_stop=lambda: store.is_wanted)
            return await asyncio.to_thread(
                service.clean, dry_run=dry_run, trust_clock=trust_clock, with_files=with_files
            )
        finally:
            await store.close()

    try:
        return Outcome(service=precision, report=asyncio.run(run()))
    except StoreInUse:
        why_not = (
            "it runs and cleans up its own pictures and jobs (POST /admin/cleanup does it now)"
        )
        report = _files_alone(settings, dry_run, with_files)
        return Outcome(service=precision, report=report, why_not=why_not)
    except FluxError as error:
        return Outcome(service=precision, report=None, why_not=error.message, failed=True)


def _files_alone(settings: Settings, dry_run: bool, with_files: bool) -> Report | None:
    """What needs no database. Nobody vouches for the clock here, so nothing goes for its age."""
    if not with_files:
        return None
    report, began = _report(dry_run, utc_now()), time.monotonic()
    Files(settings, lambda: False).remove(Times(now=utc_now(), ages_count=False), report)
    report.seconds = time.monotonic() - began
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m utils.cleanup_service",
        description="Remove what is too old or too much (FLUX_CLEANUP_* in .env.example) of services that do not run; "
        "a service that runs does it itself.",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would go, remove nothing")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument(
        "--trust-clock", action="store_true", help="ages count also after the clock was set forward"
    )
    options = parser.parse_args(arguments)
    logs.configure_console("warning")
    try:
        outcomes = clean_all(dry_run=options.dry_run, trust_clock=options.trust_clock)
    except ConfigurationError as error:
        print(f"cleanup: {error}", file=sys.stderr)
        return 78  # EX_CONFIG
    if options.json:
        print(json.dumps([outcome.to_json() for outcome in outcomes], indent=2))
    else:
        print("\n".join(outcome.to_text() for outcome in outcomes))
    return int(any(outcome.failed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
