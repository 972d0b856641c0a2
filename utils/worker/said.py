"""What a worker writes to its stdout and stderr: its log lines, and what it or a library prints.

It is a pipe to the service, which alone has the log's file. The pipe is read to its end, also after the
worker's: the last words of a process that died say why.
"""

from __future__ import annotations

import asyncio
import os
import re

from utils import logs

MAX_LINE_BYTES = 2**20  # a log line with a long trace
READ_BYTES = 2**16
# Progress bars go back to the start of their line.
_ENDS = re.compile(rb"[\r\n]+")


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
            *lines, begun = _ENDS.split(begun + more)
            if len(begun) > MAX_LINE_BYTES:
                lines, begun = [*lines, begun], b""
            for line in lines:
                _log(line, worker)
        _log(begun, worker)
    finally:
        transport.close()


def _log(line: bytes, worker: str) -> None:
    if text := line.decode(errors="replace").strip():
        logs.relay(text, worker)
