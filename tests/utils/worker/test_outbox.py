"""Pictures and reports beside the drawing: in order, not too many, and no fault unnoticed."""

from __future__ import annotations

import threading
from collections.abc import Callable

from utils.worker.outbox import WAITING_PICTURES, Outbox

HANG_SECONDS = 30.0


class Errors:
    """What `on_error` was told, and that it was."""

    def __init__(self) -> None:
        self.told: list[BaseException] = []

    def __call__(self, error: BaseException) -> None:
        self.told.append(error)


def outbox() -> tuple[Outbox, Errors]:
    errors = Errors()
    return Outbox(errors), errors


def raising(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


def test_outbox_saves_run_in_order() -> None:
    box, _ = outbox()
    done: list[int] = []
    for number in range(50):
        box.save(lambda number=number: done.append(number))
    box.flush()
    assert done == list(range(50))


def test_outbox_reports_run_in_order() -> None:
    box, _ = outbox()
    done: list[int] = []
    for number in range(50):
        box.report(lambda number=number: done.append(number))
    box.flush()
    assert done == list(range(50))


def test_outbox_report_does_not_wait_for_a_save() -> None:
    box, _ = outbox()
    saved, reported = threading.Event(), threading.Event()
    box.save(lambda: saved.wait(HANG_SECONDS))
    box.report(reported.set)
    assert reported.wait(HANG_SECONDS)
    saved.set()
    box.flush()


def test_outbox_flush_waits_for_everything() -> None:
    box, _ = outbox()
    gate, is_flushed = threading.Event(), threading.Event()
    done: list[str] = []

    def save() -> None:
        gate.wait(HANG_SECONDS)
        done.append("saved")

    def flush() -> None:
        box.flush()
        is_flushed.set()

    box.save(save)
    box.report(lambda: done.append("reported"))
    threading.Thread(target=flush, daemon=True).start()
    assert not is_flushed.wait(0.02)
    gate.set()
    assert is_flushed.wait(HANG_SECONDS)
    assert sorted(done) == ["reported", "saved"]


def test_outbox_save_waits_when_too_many_wait() -> None:
    box, _ = outbox()
    gate, is_working, is_taken = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        is_working.set()
        gate.wait(HANG_SECONDS)

    box.save(first)
    assert is_working.wait(HANG_SECONDS)
    for _ in range(WAITING_PICTURES):
        box.save(lambda: None)  # these may wait without anybody waiting for them

    def one_more() -> None:
        box.save(lambda: None)
        is_taken.set()

    threading.Thread(target=one_more, daemon=True).start()
    assert not is_taken.wait(0.05)
    gate.set()
    assert is_taken.wait(HANG_SECONDS)
    box.flush()


def test_outbox_report_never_waits() -> None:
    box, _ = outbox()
    gate = threading.Event()
    box.report(lambda: gate.wait(HANG_SECONDS))
    for _ in range(50 * WAITING_PICTURES):
        box.report(lambda: None)
    gate.set()
    box.flush()


def test_outbox_error_of_a_save_is_told() -> None:
    box, errors = outbox()
    failure = OSError("no room")
    box.save(raising(failure))
    box.flush()
    assert errors.told == [failure]


def test_outbox_error_of_a_report_is_told() -> None:
    box, errors = outbox()
    failure = BrokenPipeError()
    box.report(raising(failure))
    box.flush()
    assert errors.told == [failure]


def test_outbox_error_that_is_no_exception_is_told() -> None:
    box, errors = outbox()
    failure = SystemExit(1)
    box.save(raising(failure))
    box.flush()
    assert errors.told == [failure]


def test_outbox_after_an_error_that_was_forgiven_goes_on() -> None:
    box, _ = outbox()
    done: list[str] = []
    box.save(raising(OSError()))
    box.save(lambda: done.append("next"))
    box.flush()
    assert done == ["next"]
