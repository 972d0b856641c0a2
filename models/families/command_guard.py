"""Runs a command that must not outlive who asked for it: `python command_guard.py FOLDER GRACE COMMAND...`

The command works in FOLDER, in a process group of its own. When standard input ends, because whoever
holds its other end closed it or died in whatever way, the group is ended, after GRACE seconds by force,
and FOLDER removed. When the command ends first, what it left running is ended and the exit status is the command's.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 3.0


def main() -> None:
    folder, grace_seconds, command = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, start_new_session=True
    )
    first = threading.Lock()  # of two ends, the one that comes first counts
    follower = threading.Thread(target=_follow, args=(process, first), daemon=True)
    follower.start()
    while os.read(0, 4096):
        pass
    if not first.acquire(blocking=False):
        follower.join()
    _signal(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_seconds)
    _signal(process.pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(128 + signal.SIGTERM)


def _follow(process: "subprocess.Popen[bytes]", first: threading.Lock) -> None:
    status = process.wait()
    if first.acquire(blocking=False):
        _signal(process.pid, signal.SIGKILL)
        os._exit(status if status >= 0 else 128 - status)  # as a shell has it


def _signal(group: int, number: signal.Signals) -> None:
    # macOS says EPERM where all of a group have ended and nobody has asked how.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    main()
