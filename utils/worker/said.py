"""What a worker writes to its stdout and stderr: its log lines, and what it or a library prints.

It is a pipe to the service, which alone has the log's file. The pipe is read to its end, also after the
worker's: the last words of a process that died say why.
"""

from __future__ import annotations

import asyncio
import os

from utils import logs

MAX_LINE_BYTES = 2**20  # a log line with a long trace
READ_BYTES = 2**16


async def listen(pipe: int, worker: str) -> None:
    """Log whatever comes out of a pipe, until its other end is closed. Closes the pipe."""
    reader = asyncio.StreamReader(limit=READ_BYTES)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb", 0)
    )
    try:
        begun = b""
        while more := await reader.read(READ_BYTES):
            *lines, begun = (begun + more).split(b"\n")
            begun = begun[begun.rfind(b"\r", 0, -1) + 1 :]
            if len(begun) > MAX_LINE_BYTES:
                lines, begun = [*lines, begun], b""
            for line in lines:
                _log(line, worker)
        _log(begun, worker)
    finally:
        transport.close()


def _log(line: bytes, worker: str) -> None:
    """Of a progress bar, which goes back to the start of its line again and again, how it stood at last."""
    last = line.rstrip(b"\r").rpartition(b"\r")[2]
    if text := last.decode(errors="replace").strip():
        logs.relay(text, worker)
