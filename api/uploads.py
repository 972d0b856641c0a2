"""Uploads that stream to disk: a raw body, or a form's files. In memory there is one block at a time.

A form is taken apart here while it comes in, because the framework's way writes each file twice and
begins before anybody has looked at the request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from config.errors import ClientGone, FluxError, InvalidRequest, TooSlow
from models.lora.errors import NotSafetensors
from models.lora.incoming import Incoming
from models.lora.names import clean_filename

BLOCK_BYTES = 2**20  # written and hashed at once
MIN_BYTES = 64 * 2**10  # that must come within the patience
MAX_FILES = 8  # of one form
FIELDS = ("file", "files")


@dataclass(slots=True)
class Upload:
    """A file that came in, not looked at yet."""

    filename: str
    file: Incoming


def declared_bytes(request: Request) -> int | None:
    """How long the body says it is."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else None


async def stream(request: Request, patience_seconds: float) -> AsyncIterator[bytes]:
    """The body in blocks. Raises TooSlow, ClientGone."""
    loop, chunks = asyncio.get_running_loop(), request.stream()
    window_ends, in_window = loop.time() + patience_seconds, 0
    waiting: list[bytes] = []
    size = 0
    try:
        while True:
            async with asyncio.timeout_at(window_ends):
                chunk = await anext(chunks, None)
            if chunk is None:
                break
            waiting.append(chunk)
            size += len(chunk)
            in_window += len(chunk)
            if size >= BLOCK_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
                # What the disk takes is not the sender's time.
                window_ends, in_window = loop.time() + patience_seconds, 0
            elif in_window >= MIN_BYTES:
                window_ends, in_window = loop.time() + patience_seconds, 0
    except TimeoutError as error:
        raise TooSlow(
            f"the body came too slowly: less than {MIN_BYTES // 1024} KiB in {patience_seconds:g} s "
            "(FLUX_UPLOAD_PATIENCE_SECONDS)"
        ) from error
    except ClientDisconnect as error:
        raise ClientGone("the client hung up before the body was whole") from error
    if waiting:
        yield b"".join(waiting)


async def receive_body(blocks: AsyncIterator[bytes], file: Incoming) -> None:
    """A whole body as one file."""
    async for block in blocks:
        await asyncio.to_thread(file.write, block)


class FormReceiver:
    """A form's files, each written as it comes. A context: what is not kept by then is removed."""

    def __init__(self, content_type: str, open_file: Callable[[], Incoming]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise NotSafetensors(
                "the body is no form: send multipart/form-data with the file in the field `file`, or "
                "PUT /loras/NAME.safetensors with the file as the body"
            )
        self.uploads: list[Upload] = []
        self._open_file = open_file
        self._part = _Part()
        self._is_whole = False
        part = self._part
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": part.begin,
                    "on_header_field": lambda data, start, end: part.name(data[start:end]),
                    "on_header_value": lambda data, start, end: part.value(data[start:end]),
                    "on_header_end": part.header_ends,
                    "on_headers_finished": self._file_begins,
                    "on_part_data": self._data,
                    "on_end": self._ends,
                },
            )
        except FormParserError as error:
            raise _broken(error) from error

    def __enter__(self) -> FormReceiver:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as stack:
            for upload in self.uploads:
                stack.callback(upload.file.discard)

    async def receive(self, blocks: AsyncIterator[bytes]) -> list[Upload]:
        """Every file of the form. Raises FluxError for what is no such form."""
        async for block in blocks:
            await asyncio.to_thread(self._feed, block)
        if not self._is_whole:
            raise InvalidRequest.of("body", "the form is cut: its closing boundary is missing")
        if not self.uploads:
            raise InvalidRequest.of("file", "is missing: the form has no file in the field `file`")
        return self.uploads

    def _feed(self, block: bytes) -> None:
        try:
            self._parser.write(block)
        except FormParserError as error:
            raise _broken(error) from error

    def _file_begins(self) -> None:
        options = self._part.disposition()
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in FIELDS or b"filename" not in options:
            raise InvalidRequest.of(
                name[:64] or "file", "is no file of this form; send files in the field `file`"
            )
        if len(self.uploads) == MAX_FILES:
            raise InvalidRequest.of(
                "file", f"is there more than {MAX_FILES} times; send the rest later"
            )
        filename = clean_filename(options[b"filename"].decode("utf-8", "replace"))
        self.uploads.append(Upload(filename, self._open_file()))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.uploads[-1].file.write(data[start:end])

    def _ends(self) -> None:
        self._is_whole = True


@dataclass(slots=True)
class _Part:
    """The headers of the part that is read."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    _name: bytes = b""
    _value: bytes = b""

    def begin(self) -> None:
        self.headers = {}

    def name(self, piece: bytes) -> None:
        self._name += piece

    def value(self, piece: bytes) -> None:
        self._value += piece

    def header_ends(self) -> None:
        self.headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def disposition(self) -> dict[bytes, bytes]:
        text = self.headers.get(b"content-disposition", b"").decode("latin-1")
        return parse_options_header(text)[1]


def _broken(error: Exception) -> FluxError:
    return InvalidRequest.of("body", f"is no whole form: {str(error)[:200]}")
