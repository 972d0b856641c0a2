"""A part as a process of its own: what it says, until when it may run, and the end of everything it has started.

Whatever a part starts, in whatever group or session, becomes a child of this process when its parent is gone
(`adopt_orphans`), so that nothing is left when the part ends, is late or is interrupted.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import psutil

from config.settings import ROOT

PR_SET_CHILD_SUBREAPER = 36
# Whatever this checkout's .env says, for a part asks without a key.
OPEN = {"FLUX_API_KEYS": "", "SD_API_KEY": "", "FLUX_HOST": "127.0.0.1"}
END_SECONDS = 10  # between the request to end and SIGKILL


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    output: str  # what it printed; what it said beside that, on its standard error, is no figure
    seconds: float
    failure: str | None  # why, or None when it ended well


def adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def run(
    arguments: Sequence[str],
    *,
    deadline_seconds: float,
    say: Callable[[str], None],
) -> Outcome:
    """Runs Python with these arguments; `say` gets its lines as they come."""
    started = time.monotonic()
    before = {each.pid for each in _family()}
    printed: list[str] = []
    remarks: list[str] = []

    def listen(stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            lines.append(line)
            try:
                say(line.rstrip("\n"))
            except BrokenPipeError:  # nobody listens any more, so nobody waits for the rest
                _thread.interrupt_main()

    with _alone() as folder:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **OPEN, "TMPDIR": folder, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C comes here alone, and ends it from here
        )
        listeners = [
            threading.Thread(target=listen, args=each, daemon=True)
            for each in ((process.stdout, printed), (process.stderr, remarks))
        ]
        for listener in listeners:
            listener.start()
        is_late = False
        try:
            process.wait(deadline_seconds)
        except subprocess.TimeoutExpired:
            is_late = True
        finally:
            end_children(but=before)
            process.wait()
            for listener in listeners:
                listener.join(END_SECONDS)
            process.stdout.close()
            process.stderr.close()
    failure = None
    if is_late:
        failure = f"it was not done after {deadline_seconds:g} s and was ended"
    elif process.returncode:
        failure = _last(remarks) or _last(printed) or f"it ended with status {process.returncode}"
    return Outcome(output="".join(printed), seconds=time.monotonic() - started, failure=failure)


@contextlib.contextmanager
def _alone() -> Iterator[str]:
    """A folder for what it writes in passing, which is gone afterwards."""
    # Names of sockets within it must be short.
    with tempfile.TemporaryDirectory(prefix="bench", ignore_cleanup_errors=True) as folder:
        yield folder


def _last(lines: Sequence[str]) -> str:
    """The last line that says something: an HTTP client ends with a link to what a status means."""
    stripped = (line.strip() for line in reversed(lines))
    return next((line for line in stripped if line and not line.startswith("For more info")), "")


def end_children(but: Collection[int] = ()) -> None:
    """Asks everything below this process to end, and then makes it; not those whose numbers are given."""
    family = [each for each in _family() if each.pid not in but]
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                ask(each)
        psutil.wait_procs(family, timeout=END_SECONDS)
        family = [each for each in _family() if each.pid not in but]
        if not family:
            return


def _family() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)
