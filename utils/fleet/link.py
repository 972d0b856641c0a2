"""Calls from the front door to one replica, through Ray Serve.

A call that is not awaited to its end any more is cancelled at the other end too. What Ray raises for a
replica that is gone becomes `ReplicaGone` here, and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from utils.fleet import messages

PART_BYTES = 4 * 2**20
# A replica says at once whether it takes a job; Ray holds the call while others fill its place for calls.
TAKEN_SECONDS = 15.0


class ReplicaGone(Exception):
    """The process of the replica, or its machine, does not answer any more."""


class ReplicaRefused(Exception):
    """It, or Ray before it, takes no job now."""


class Link:
    """`handle` is Ray's of the replica's deployment."""

    def __init__(self, handle: Any, replica: str) -> None:
        self._handle = handle
        self._replica = replica

    async def tell(self, message: Any) -> None:
        await self._call("tell", messages.encode(message))

    async def missing(self, wanted: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Of (kind, SHA-256) those that its machine has not."""
        found = await self._call("missing", json.dumps(wanted))
        return [(kind, sha256) for kind, sha256 in json.loads(found)]

    async def send_file(self, kind: str, sha256: str, path: Path, read: Any) -> None:
        """`read(file)` reads the next part in a thread. Raises OSError where it is not here any more."""
        size, sent, is_first = path.stat().st_size, 0, True
        with open(path, "rb") as file:
            while is_first or sent < size:
                part = await read(file, PART_BYTES)
                if not part and sent < size:
                    raise OSError(f"{path} became shorter while it was sent")
                sent += len(part)
                await self._call("receive", kind, sha256, part, is_first, sent >= size)
                is_first = False

    def watch(self, door: str) -> AsyncIterator[str]:
        return self._stream("watch", door)

    def listen(self) -> AsyncIterator[str]:
        """The same for a door that gives it no jobs: they stay those of the door that watches."""
        return self._stream("listen")

    async def run(self, requests: dict[str, dict[str, Any]]) -> AsyncIterator[Any]:
        """Have jobs drawn together. Raises ReplicaRefused where the call does not get through."""
        said = self._stream("run_together", json.dumps(list(requests.items())))
        try:
            async with asyncio.timeout(TAKEN_SECONDS):
                first = await anext(said)
        except TimeoutError as error:
            raise ReplicaRefused(f"it took no call within {TAKEN_SECONDS:g} s") from error
        yield first
        async for each in said:
            yield each

    async def _call(self, method: str, *values: Any) -> Any:
        response = self._handle.options(method_name=method).remote(*values, to=self._replica)
        try:
            with _in_our_words():
                return await response
        except BaseException:
            _leave(response)
            raise

    async def _stream(self, method: str, *values: Any) -> AsyncIterator[Any]:
        options = self._handle.options(method_name=method, stream=True)
        response = options.remote(*values, to=self._replica)
        try:
            with _in_our_words():
                async for each in response:
                    yield each
        except BaseException:
            _leave(response)
            raise


def _leave(response: Any) -> None:
    """The other end stops, if it has begun; one that Ray has refused says that again here."""
    with contextlib.suppress(Exception):
        response.cancel()


@contextlib.contextmanager
def _in_our_words():
    from ray.exceptions import RayActorError, RayError, TaskCancelledError
    from ray.serve.exceptions import BackPressureError, RayServeException

    try:
        yield
    except BackPressureError as error:
        raise ReplicaRefused(str(error)) from error
    except (RayActorError, TaskCancelledError) as error:
        raise ReplicaGone(_first_line(error)) from error
    except (RayError, RayServeException) as error:
        # What the replica itself raised has its cause with it.
        cause = getattr(error, "cause", None)
        if isinstance(cause, OSError):
            raise OSError(
                cause.errno or 5, f"on the replica's machine: {cause.strerror}"
            ) from error
        raise ReplicaFailed(_first_line(error)) from error


class ReplicaFailed(Exception):
    """A call failed in the replica, in a way that nobody expected."""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
