"""Black Forest Labs' cloud over HTTP: submit a request, look after it, fetch the picture.

A request costs money and BFL has no way to send one twice safely, so the one question about every
failure of `submit` is whether the request was taken. Only what proves that it was not (no connection,
429, another 4xx) may be followed by a second one; for the rest there is `CloudUnclear`.

The key goes to the configured address and, over https, to hosts of bfl.ai, where `polling_url` points.
Redirects are never followed. Pictures are fetched without the key.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import httpx2

from config.settings import LOOPBACK_HOSTS, CloudSettings
from models.bfl_errors import (
    MAY_COST,
    CloudBusy,
    CloudError,
    CloudRefused,
    CloudUnclear,
    CloudUnreachable,
    KeyForbidden,
    KeyUnknown,
    Moderated,
    NoCredits,
    TaskLost,
)
from models.bfl_request import CloudTask

USD_OF_CREDIT = 0.01
KEY_HOSTS = re.compile(r"(?:[a-z0-9-]+\.)*bfl\.ai")
PICTURE_HOSTS = re.compile(
    r"(?:[a-z0-9-]+\.)*bfl\.ai|bfldelivery[a-z0-9]*\.blob\.core\.windows\.net"
)
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0  # without a byte of an answer
SUBMIT_SECONDS = 120.0  # a request may have pictures of many megabytes
DOWNLOAD_SECONDS = 60.0
MAX_ANSWER_BYTES = 4 * 2**20
MAX_PICTURE_BYTES = 64 * 2**20
MAX_SAID_CHARACTERS = 300
MAX_STATUS_CHARACTERS = 100
MAX_WORD_CHARACTERS = 2000  # of an id or an address
MAX_DEPTH = 3  # of a reason that is told
# Of a picture; some stores name no better type.
_PICTURE_TYPES = re.compile(r"image/|(?:application|binary)/octet-stream")

READY = "Ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How far a task is: BFL's word, 0 to 1 where it tells, and the picture's address when it is there."""

    status: str
    progress: float | None = None
    picture_url: str | None = None


@cache
def _certificates(trust_env: bool) -> ssl.SSLContext:
    """Those this machine trusts, read once: it takes most of the time of making a client."""
    return httpx2.create_ssl_context(trust_env=trust_env)


class Bfl:
    """The cloud. `close` it at the end."""

    def __init__(self, settings: CloudSettings) -> None:
        self._key = settings.bfl_api_key.get_secret_value()
        self._base = httpx2.URL(settings.bfl_api_base)
        # A stand-in on this machine is not asked for through a proxy.
        options: dict[str, Any] = {
            "trust_env": self._base.scheme == "https",
            "verify": _certificates(self._base.scheme == "https"),
            "follow_redirects": False,
            "timeout": httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, pool=None),
            "headers": {"user-agent": "flux-api"},
        }
        # Each submit has a connection of its own: one that was kept may be closed while we send, and
        # nobody would know whether the request arrived.
        single = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self._submits = httpx2.AsyncClient(**options, limits=single)
        self._looks = httpx2.AsyncClient(**options)

    async def close(self) -> None:
        await self._submits.aclose()
        await self._looks.aclose()

    async def submit(self, model: str, body: Mapping[str, Any]) -> CloudTask:
        """Have a picture drawn. Raises CloudError; CloudUnclear when it may have been taken all the same."""
        # In a thread: a body with pictures has many megabytes.
        content = await asyncio.to_thread(lambda: json.dumps(body).encode())
        try:
            async with asyncio.timeout(SUBMIT_SECONDS):
                async with self._answer(
                    self._submits, "POST", f"{self._base}/{model}", content=content
                ) as answer:
                    data, text = await _read(answer)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise CloudUnreachable(
                f"{self._host} cannot be reached ({_kind(error)}); nothing was sent or charged. "
                "Check the network and SD_BFL_API_BASE"
            ) from error
        except (httpx2.HTTPError, TimeoutError, _TooLong) as error:
            raise CloudUnclear(
                f"the connection to {self._host} broke while a picture was asked for ({_kind(error)}): "
                f"{MAY_COST}. It is not asked for again by itself"
            ) from error
        if not answer.is_success:
            raise self._refusal(answer, data, text, is_submit=True)
        if data is not None and isinstance(data.get("status"), str):
            self._raise_for_status(data["status"], data)  # blocked, as some answer at once
        if data is None or not (_is_word(data.get("id")) and _is_word(data.get("polling_url"))):
            raise CloudUnclear(
                f"{self._host} took the request and did not say where to look after it: {MAY_COST}. "
                f"It is not asked for again by itself. It said: {self._said(data, text)}"
            )
        return CloudTask(
            id=data["id"], polling_url=data["polling_url"], cost_usd=_usd(data.get("cost"))
        )

    async def look(self, task: CloudTask) -> Look:
        """How far a task is. Raises CloudError for one that failed; CloudUnreachable and CloudBusy pass."""
        url = self._checked(task.polling_url)
        try:
            async with asyncio.timeout(ANSWER_SECONDS + CONNECT_SECONDS):
                async with self._answer(self._looks, "GET", url) as answer:
                    data, text = await _read(answer)
        except (httpx2.HTTPError, TimeoutError, _TooLong) as error:
            raise CloudUnreachable(f"{url.host} does not answer ({_kind(error)})") from error
        status = data.get("status") if data is not None else None
        if not isinstance(
            status, str
        ):  # a status counts, whatever HTTP says: failures come with 4xx and 5xx
            if answer.is_success or answer.status_code >= 500:
                raise CloudUnreachable(f"{url.host} answers {answer.status_code} without a status")
            error = self._refusal(answer, data, text, is_submit=False)
            error.message += f". It is about a picture that BFL took before: {MAY_COST}"
            raise error
        assert data is not None
        self._raise_for_status(status, data)
        result = data.get("result")
        picture_url = result.get("sample") if isinstance(result, dict) else None
        if status == READY and not isinstance(picture_url, str):
            raise CloudError(f"BFL says Ready and names no picture; {MAY_COST}")
        return Look(
            status=status[:MAX_STATUS_CHARACTERS],
            progress=_fraction(data.get("progress")),
            picture_url=picture_url if status == READY else None,
        )

    async def download(self, picture_url: str) -> bytes:
        """The file of a picture. Raises CloudError; CloudUnreachable where it is worth another try."""
        url = _url(picture_url)
        if not (self._is_ours(url) or _is_https(url, PICTURE_HOSTS)):
            raise CloudError(
                f"BFL points to a picture on {_where(url)}, which is no host of BFL's: it is not fetched. {MAY_COST}"
            )
        try:
            async with asyncio.timeout(DOWNLOAD_SECONDS):
                async with self._looks.stream("GET", url) as answer:
                    if not answer.is_success:
                        raise _no_picture(answer)
                    kind = answer.headers.get("content-type", "")
                    if not _PICTURE_TYPES.match(kind.lower()):
                        raise CloudError(
                            f"{url.host} sends {kind[:60]!r} in place of a picture; {MAY_COST}"
                        )
                    return await _bytes(answer, MAX_PICTURE_BYTES)
        except _TooLong as error:
            raise CloudError(
                f"the picture on {url.host} is larger than {MAX_PICTURE_BYTES >> 20} MiB; {MAY_COST}"
            ) from error
        except (httpx2.HTTPError, TimeoutError) as error:
            raise CloudUnreachable(
                f"the picture on {url.host} could not be fetched ({_kind(error)})"
            ) from error

    # Inside

    @property
    def _host(self) -> str:
        return self._base.netloc.decode()

    @asynccontextmanager
    async def _answer(
        self, client: httpx2.AsyncClient, method: str, url: httpx2.URL | str, **options: Any
    ) -> AsyncIterator[httpx2.Response]:
        """An answer to a call with the key; only ever to an address that may have it."""
        headers = {"x-key": self._key, "accept": "application/json"}
        if "content" in options:
            headers["content-type"] = "application/json"
        async with client.stream(method, url, headers=headers, **options) as answer:
            yield answer

    def _checked(self, polling_url: str) -> httpx2.URL:
        url = _url(polling_url)
        if not (self._is_ours(url) or _is_https(url, KEY_HOSTS)):
            raise CloudError(
                f"BFL took the request and points to {_where(url)} to look after it, which is no host of BFL's: "
                f"the key is not sent there. {MAY_COST}"
            )
        return url

    def _is_ours(self, url: httpx2.URL) -> bool:
        """Whether an address is at the configured one: same scheme, host and port.

        A stand-in on this machine may call it by another of its names.
        """
        hosts = {url.host, self._base.host}
        is_there = len(hosts) == 1 or hosts <= set(LOOPBACK_HOSTS)
        is_same = is_there and (url.scheme, url.port) == (self._base.scheme, self._base.port)
        return is_same and not url.userinfo

    def _raise_for_status(self, status: str, data: Mapping[str, Any]) -> None:
        said = self._said(data, "")
        match status:
            case "Request Moderated":
                raise Moderated(
                    f"BFL's moderation blocked the request ({said}); change the prompt or the pictures sent along"
                )
            case "Content Moderated":
                raise Moderated(
                    f"BFL's moderation blocked the picture that was drawn ({said}); change the prompt or the seed"
                )
            case "Task not found":
                raise TaskLost(
                    f"BFL does not know the task any more ({said}); {MAY_COST}. Ask for the picture again"
                )
            case "Error" | "Failed":
                raise CloudError(f"BFL could not draw the picture: {said}")

    def _refusal(
        self, answer: httpx2.Response, data: dict[str, Any] | None, text: str, *, is_submit: bool
    ) -> CloudError:
        said, code = self._said(data, text), answer.status_code
        if data is not None and isinstance(data.get("status"), str):
            try:
                self._raise_for_status(data["status"], data)
            except CloudError as error:
                return error
        match code:
            case 401:
                return KeyUnknown(
                    f"BFL does not know the key (401: {said}); set SD_BFL_API_KEY to one of https://dashboard.bfl.ai"
                )
            case 402:
                return NoCredits(
                    f"BFL's account has no credits left (402: {said}); add some at https://dashboard.bfl.ai"
                )
            case 403:
                return KeyForbidden(
                    f"BFL's key may not be used for this (403: {said}); check the key's rights, or ask for another model"
                )
            case 429:
                seconds = _retry_after(answer, data)
                return CloudBusy(
                    f"BFL has more requests than it takes at once (429: {said})",
                    retry_after_seconds=seconds,
                )
            case _ if 300 <= code < 400:
                error = CloudError(
                    f"{self._host} answers with a redirect ({code}), which is not followed; check SD_BFL_API_BASE"
                )
                error.is_free = is_submit  # who sends a request elsewhere has not taken it
                return error
            case _ if 400 <= code < 500:
                return CloudRefused(f"BFL does not take the request ({code}): {said}")
        if is_submit:
            return CloudUnclear(
                f"BFL failed while a picture was asked for ({code}: {said}): {MAY_COST}. "
                "It is not asked for again by itself"
            )
        return CloudError(f"BFL failed ({code}: {said})")

    def _said(self, data: Mapping[str, Any] | None, text: str) -> str:
        """What an answer says, short, in one line and without the key."""
        words = text if data is None else _words(data)
        if self._key:
            words = words.replace(self._key, "***")
        words = " ".join("".join(c if c.isprintable() else " " for c in words).split())
        return words[:MAX_SAID_CHARACTERS] or "no reason given"


class _TooLong(Exception):
    pass


async def _read(answer: httpx2.Response) -> tuple[dict[str, Any] | None, str]:
    """An answer's body as an object, where it is one, and as text."""
    text = (await _bytes(answer, MAX_ANSWER_BYTES)).decode("utf-8", "replace")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None, text
    return (data if isinstance(data, dict) else None), text


async def _bytes(answer: httpx2.Response, limit: int) -> bytes:
    found = bytearray()
    async for part in answer.aiter_bytes(2**16):
        found += part
        if len(found) > limit:
            raise _TooLong(f"more than {limit} bytes")
    return bytes(found)


def _words(data: Mapping[str, Any]) -> str:
    """The reason in a body: FastAPI's findings with their fields, or a text."""
    for name in ("detail", "details", "message", "error", "result"):
        value = data.get(name)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, list) and value:
            return "; ".join(map(_finding, value))
        if isinstance(value, dict) and value:
            return _plain(value, MAX_DEPTH)
    return str(data.get("status", ""))


def _plain(value: Any, depth: int) -> str:
    """A value of a body as people write it, down to a depth."""
    if isinstance(value, dict | list) and depth == 0:
        return "…"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_plain(each, depth - 1)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(each, depth - 1) for each in value)
    return str(value)


def _finding(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    location = item.get("loc")
    field = ".".join(str(part) for part in location if part != "body") if location else ""
    return f"{field}: {item.get('msg', '')}" if field else str(item.get("msg", item))


def _no_picture(answer: httpx2.Response) -> CloudError:
    code, host = answer.status_code, answer.request.url.host
    if 300 <= code < 400:
        return CloudError(
            f"the picture on {host} is a redirect ({code}), which is not followed; {MAY_COST}"
        )
    # Also 403 and 404: an address lives ten minutes, and the next look brings a new one.
    return CloudUnreachable(f"the picture on {host} cannot be fetched ({code})")


def _retry_after(answer: httpx2.Response, data: Mapping[str, Any] | None) -> int | None:
    """Seconds to wait as the header says, as a number or as a date, or else the body."""
    text = answer.headers.get("retry-after", "")
    value = (data or {}).get("retry_after") if not text else None
    try:
        return max(0, round(float(text or value)))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        pass
    try:
        return max(0, round((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()))
    except (TypeError, ValueError):
        return None


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_WORD_CHARACTERS


def _usd(credits: Any) -> float | None:
    is_amount = isinstance(credits, int | float) and not isinstance(credits, bool) and credits >= 0
    return round(credits * USD_OF_CREDIT, 6) if is_amount and math.isfinite(credits) else None


def _fraction(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= 1 else None


def _url(text: str) -> httpx2.URL:
    """As it will be called, so that nothing is checked that is read in another way afterwards."""
    try:
        return httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError):
        return httpx2.URL("")


def _is_https(url: httpx2.URL, hosts: re.Pattern[str]) -> bool:
    is_plain = not url.userinfo and url.port in (None, 443)
    host = url.raw_host.decode("ascii", "replace")
    return url.scheme == "https" and is_plain and bool(hosts.fullmatch(host))


def _where(url: httpx2.URL) -> str:
    return f"{url.scheme or '?'}://{url.host or '?'}"


def _kind(error: BaseException) -> str:
    return type(error).__name__.lstrip("_")
