"""A safety checker in a process of its own, for pictures that no worker has drawn.

The service imports no torch, so a picture that a cloud delivers is shown to a child
(`python -m utils.checker_process`), which holds a checker as a worker does. It is started for the first
picture, stays for those that follow and ends by itself when none has come for a while; its memory is taken
only meanwhile. Whatever happens to it, the answer is never "not flagged": one that ended is started once
more, then the picture counts as not looked at, which is an error.

    to the child     {"width": w, "height": h} and a line's end, then w x h x 3 bytes, RGB; or {}: are you there?
    from the child   {} when the checker is read, and to {}; {"is_flagged": ...} to a picture; or {"fault": words}
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from config.errors import FluxError, ModelUnavailable
from config.settings import ROOT
from models import safety
from models.safety import Weights

log = logging.getLogger(__name__)

T = TypeVar("T")

COMMAND = (sys.executable, "-m", "utils.checker_process")
IDLE_SECONDS = 120.0
LOAD_SECONDS = 180.0  # from a cold disk, beside other work
LOOK_SECONDS = 60.0
END_SECONDS = 2.0  # from its last word
THREADS = 2  # it computes beside a worker that draws
BAND_BYTES = 2**22  # a picture goes over in bands: no second copy of it is made


class _Ended(Exception):
    """The process is gone, as its words say."""


class CheckerProcess:
    """A `models.safety.SafetyChecker`. Its methods block, and may be called from any thread."""

    def __init__(
        self, weights: Weights, environment: Mapping[str, str], idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._weights = weights
        self._environment = {
            **environment,
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(THREADS),
        }
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """Of the process, where there is one."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def prepare(self) -> None:
        """Returns when it could look at a picture at once. Raises ModelUnavailable."""
        self._in_two_tries(lambda process: self._told(process, [b"{}\n"]))

    def is_flagged(self, picture: Any) -> bool:
        """Raises ModelUnavailable where nobody can say."""
        return self._in_two_tries(lambda process: self._look(process, picture))

    def close(self) -> None:
        """End it at once, also under the hands of another thread, whose call fails."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()
            with self._lock:  # whoever waits for it hears of its end
                _let_go(process)

    def _in_two_tries(self, use: Callable[[subprocess.Popen[bytes]], T]) -> T:
        with self._lock:
            try:
                return self._once(use)
            except _Ended as error:  # of idleness, or of something that may not come again
                log.info("once more: %s", error, extra={"action": "checker_ended"})
            try:
                return self._once(use)
            except _Ended as error:
                raise self._failure(str(error)) from error

    def _once(self, use: Callable[[subprocess.Popen[bytes]], T]) -> T:
        """After an error of any kind the process is gone: it may have half a picture, or one more answer."""
        try:
            return use(self._ready())
        except BaseException:
            process, self._process = self._process, None
            if process is not None:
                process.kill()
                _let_go(process)
            raise

    def _there(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            if self._process is not None:
                _let_go(self._process)
            self._is_ready = False
            self._process = self._started()
            if self._is_closed:
                self._process.kill()  # `close` came while it was made, and did not see it
        return self._process

    def _started(self) -> subprocess.Popen[bytes]:
        config = {"folder": str(self._weights.folder), "name": self._weights.name}
        process = subprocess.Popen(
            [*COMMAND, json.dumps({**config, "idle_seconds": self._idle_seconds})],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal reaches the service alone
        )
        # When it ends nobody may be there who asks, and a process that nobody asked for stays in the list.
        threading.Thread(target=process.wait, name="checker's end", daemon=True).start()
        return process

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._is_closed:
            raise self._failure("the service stops")
        try:
            process = self._there()
        except OSError as error:
            raise self._failure(f"its process could not be started: {error.strerror}") from error
        if not self._is_ready:
            with self._within(process, LOAD_SECONDS):
                self._answer(process)
            self._is_ready = True
            log.info("safety checker %s is up", self._weights.name, extra={"action": "checker_up"})
        return process

    def _look(self, process: subprocess.Popen[bytes], picture: Any) -> bool:
        verdict = self._told(process, _pieces(picture)).get("is_flagged")
        if not isinstance(verdict, bool):  # what is not said is not "no"
            raise self._failure("its process answers what nobody understands")
        return verdict

    def _told(self, process: subprocess.Popen[bytes], pieces: Iterable[bytes]) -> dict[str, Any]:
        """The answer to what is written in pieces."""
        assert process.stdin is not None
        with self._within(process, LOOK_SECONDS):
            try:
                for piece in pieces:
                    process.stdin.write(piece)
                process.stdin.flush()
            except OSError as error:
                raise _Ended(self._how(process)) from error
            return self._answer(process)

    def _answer(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.endswith(b"\n"):
            raise _Ended(self._how(process))
        try:
            answer = json.loads(line)
            fault = answer.get("fault")
        except (ValueError, AttributeError) as error:
            raise self._failure("its process answers what nobody understands") from error
        if fault is not None:
            raise ModelUnavailable(fault)
        return answer

    @contextlib.contextmanager
    def _within(self, process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
        """Ends a process that is silent for longer; that is not tried again."""
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            process.kill()

        watchdog = threading.Timer(seconds, end)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        except _Ended as error:
            if not is_late.is_set():
                raise
            raise self._failure(f"its process said nothing for {seconds:g} s") from error
        finally:
            watchdog.cancel()

    def _how(self, process: subprocess.Popen[bytes]) -> str:
        try:
            status = process.wait(END_SECONDS)  # its own end says more
        except subprocess.TimeoutExpired:
            process.kill()  # of a pipe that is closed nothing comes any more
            status = process.wait()
        _let_go(process)
        if self._is_closed:
            return "the service stops"
        if status < 0:
            return f"its process was killed by {signal.Signals(-status).name}"
        return f"its process ended with exit status {status}; the service's log says more"

    def _failure(self, why: str) -> ModelUnavailable:
        return ModelUnavailable(
            f"the safety checker {self._weights.name} could not look at the picture: {why}"
        )


def _let_go(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # a rest that nobody reads
            assert pipe is not None
            pipe.close()


def _pieces(picture: Any) -> Iterator[bytes]:
    width, height = picture.size
    yield json.dumps({"width": width, "height": height}).encode() + b"\n"
    rows = max(1, BAND_BYTES // (width * 3))
    for top in range(0, height, rows):
        yield picture.crop((0, top, width, min(height, top + rows))).tobytes()


# The child


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    config = json.loads(sys.argv[1])
    try:
        checker = safety.load(Weights(folder=Path(config["folder"]), name=config["name"]))
    except FluxError as error:
        return _tell(answers, fault=error.message)
    with contextlib.suppress(BrokenPipeError):  # the service is gone
        _tell(answers)
        _serve(checker, sys.stdin.buffer, answers, config["idle_seconds"])
    os._exit(0)  # to take a large library down in order takes long, and nothing is left to do


def _serve(
    checker: safety.SafetyChecker, pictures: BinaryIO, answers: BinaryIO, idle_seconds: float
) -> None:
    from PIL import Image

    while select.select([pictures], [], [], idle_seconds)[0]:
        line = pictures.readline()
        if not line:
            return  # the service is gone
        size = json.loads(line)
        if not size:
            _tell(answers)
            continue
        wanted = size["width"] * size["height"] * 3
        data = pictures.read(wanted)
        if len(data) < wanted:
            return
        picture = Image.frombuffer("RGB", (size["width"], size["height"]), data, "raw", "RGB", 0, 1)
        _tell(answers, is_flagged=bool(checker.is_flagged(picture)))
        del data, picture  # not while it waits


def _tell(answers: BinaryIO, **answer: Any) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
