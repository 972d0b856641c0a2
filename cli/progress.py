"""What somebody who watches sees of a job on its way: one line, and above it the picture as it comes."""

from __future__ import annotations

import base64
import io
import os
import shutil
import sys
import threading
from collections.abc import Mapping
from typing import Any, TextIO

from cli import terminal
from cli.client import Event
from cli.session import printable

BAR_CHARACTERS = 24
FULL, EMPTY = "\u2588", "\u2591"


class Progress:
    """Of one command; `tell` it events. On a stream that is no terminal it says nothing."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        preview: bool = True,
        quiet: bool = False,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._is_shown = self._stream.isatty() and not quiet
        self._way = terminal.way_of(environ, self._stream) if self._is_shown and preview else None
        self._rows = 0  # that are kept for the picture
        self._lines: dict[str, str] = {}  # of each job that is on its way
        self._turn = threading.Lock()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown and self._lines:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()

    def tell(self, event: Event, name: str = "") -> None:
        """An event of a job; `name` tells jobs apart that are on their way together."""
        if not self._is_shown:
            return
        text = in_words(event)
        if text is None:
            return
        with self._turn:
            self._lines[name] = f"{name} {text}".strip()
            preview = event.data.get("preview") if event.name == "progress" else None
            # Of jobs that are on their way together, the first one's.
            if preview and self._way is not None and name == next(iter(self._lines)):
                self._show(preview)
            width = shutil.get_terminal_size().columns - 1
            line = "   ".join(self._lines.values())[:width]
            self._stream.write(f"\r\x1b[2K{line}")
            self._stream.flush()

    def _show(self, preview: str) -> None:
        """The picture above the line, in the place of the one before."""
        from PIL import Image

        assert self._way is not None
        picture = Image.open(io.BytesIO(base64.b64decode(preview.partition(",")[2])))
        size = shutil.get_terminal_size()
        columns, rows = terminal.cells(
            picture.width, picture.height, size.columns - 1, min(terminal.ROWS, size.lines - 2)
        )
        self._stream.write("\r\x1b[2K")
        if not self._rows:
            self._rows = rows
            self._stream.write("\n" * rows)  # so that there is room below the cursor
        self._stream.write(f"\x1b[{self._rows}A\r\x1b7")
        self._stream.write(terminal.drawn(self._way, picture, columns, min(rows, self._rows)))
        self._stream.write(f"\x1b8\x1b[{self._rows}B\r")


def in_words(event: Event) -> str | None:
    """One event in some words; None for one that says nothing to people."""
    data: dict[str, Any] = event.data
    match event.name:
        case "queued":
            ahead = data.get("position")
            return "waiting" if ahead is None else f"waiting, number {ahead} in line"
        case "loading":
            fraction = data.get("fraction")
            done = "" if fraction is None else f" {fraction:.0%}"
            return f"loading {printable(data.get('model', 'the model'))}{done}"
        case "started":
            return "started"
        case "progress":
            return _bar(data)
        case "succeeded" | "failed" | "cancelled":
            return event.name
    return None


def _bar(data: Mapping[str, Any]) -> str:
    step, steps = data.get("step") or 0, data.get("steps") or 0
    if not steps:
        return str(data.get("stage") or "drawing")
    full = round(BAR_CHARACTERS * step / steps)
    eta = data.get("eta_ms")
    left = (
        ""
        if not eta
        else f", {eta / 1000:.0f} s left" if eta >= 10_000 else f", {eta / 1000:.1f} s left"
    )
    return f"{FULL * full}{EMPTY * (BAR_CHARACTERS - full)} step {step} of {steps}{left}"
