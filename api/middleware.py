"""What happens to every request before a route sees it, as plain ASGI so that bodies stream.

Outermost first: RequestContext (id, log line) · HostAndOrigin (browser attacks) · Authenticate
(keys, before a body is read) · BodyLimit (counts while the body comes in) · AnswerFailures.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import problem
from api.schemas import PICTURE_PATHS
from config.errors import FieldError, FluxError, Forbidden, TooLarge, Unauthorized
from config.settings import LOOPBACK_HOSTS, ServerSettings, is_loopback

log = logging.getLogger("api.access")

# A name or an IPv4 address, or an IPv6 address in brackets, and perhaps a port.
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Answered without a key, so that a supervisor needs none. They tell nothing but whether we live.
OPEN_PATHS = frozenset({"/health/live", "/health/ready"})
OPEN_PREFIXES = ("/ui",)

# Bodies: requests for pictures may hold pictures, everything else is a few fields.
SMALL_BODY_BYTES = 64 * 2**10
LORA_FORM_PATHS = frozenset({"/loras", "/upload-lora"})
FORM_BYTES = 64 * 2**10  # of a form beside its files
# Of a key's SHA-256 in hex: enough to tell keys apart, not enough to guess one.
OWNER_DIGITS = 16

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"cross-origin"),
    (b"x-frame-options", b"DENY"),
)


class AnswerFailures:
    """Answers a failure that nobody expected, inside the other layers, so that the answer has their headers.

    The framework's own handler stands outside all of them and closes the client's connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = False

        async def noted(message: Message) -> None:
            nonlocal answering
            answering = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if scope["type"] != "http" or answering or isinstance(error, FluxError):
                raise
            request_id = scope["state"]["request_id"]
            log.exception(
                "a route failed", extra={"action": "route_failed", "request_id": request_id}
            )
            failure = FluxError(f"the service failed; its log has the reason under {request_id}")
            await problem(failure, request_id)(scope, receive, send)


class RequestContext:
    """Gives each request an id (header X-Request-Id), and logs one line when it is answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                names = {name for name, _ in headers}
                if b"x-request-id" not in names:
                    headers.append((b"x-request-id", request_id.encode()))
                headers += [pair for pair in SECURITY_HEADERS if pair[0] not in names]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            # Reading is no news: pages and clients ask several times a second.
            is_news = scope["method"] not in SAFE_METHODS or status >= 400
            log.log(
                logging.INFO if is_news else logging.DEBUG,
                "answered",
                extra={
                    "action": "request",
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": scope["path"][:200],
                    "status": status,
                    "ms": round((time.perf_counter() - started) * 1000, 1),
                },
            )


class HostAndOrigin:
    """Refuses a Host we do not answer for (DNS rebinding) and a foreign Origin (a web page that is not ours)."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._hosts = frozenset(
            name.lower() for name in (*LOOPBACK_HOSTS, settings.host, *settings.allowed_hosts)
        )
        self._any_host = settings.host in ("0.0.0.0", "::") and not settings.allowed_hosts
        self._origins = frozenset(settings.page_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            error = self._why_not(scope, headers)
            if error is not None:
                return await problem(error, scope["state"]["request_id"])(scope, receive, send)
        await self._app(scope, receive, send)

    def _why_not(self, scope: Scope, headers: Headers) -> FluxError | None:
        hosts = headers.getlist("host")
        host = _hostname(hosts[0]) if len(hosts) == 1 else None
        if host is None or not (self._any_host or host in self._hosts or is_loopback(host)):
            shown = ", ".join(hosts)[:100]
            return Forbidden(
                f"Host {shown!r} is not answered here; add its name to FLUX_ALLOWED_HOSTS if it is this machine's"
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_ours(origin, hosts[0]):
            if scope["method"] in SAFE_METHODS and origin != "null":
                return None  # without CORS headers the foreign page cannot read the answer
            return Forbidden(
                f"Origin {origin[:100]!r} may not call this service; "
                "add it to FLUX_PAGE_ORIGINS if the page is yours"
            )
        return None

    def _is_ours(self, origin: str, host: str) -> bool:
        if origin in self._origins:
            return True
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc == host


class Authenticate:
    """With keys configured, every route but the open ones wants one: Bearer, X-API-Key, x-key or Basic's password."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._digests = [_digest(key.get_secret_value()) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and not _is_open(scope):
            headers = Headers(scope=scope)
            error = self._why_not(headers)
            if error is not None:
                return await problem(error, scope["state"]["request_id"])(scope, receive, send)
            scope["state"]["owner"] = self._owner(headers)
        await self._app(scope, receive, send)

    def _owner(self, headers: Headers) -> str:
        digests = [_digest(key) for key in _sent_keys(headers)]
        return next(each.hex()[:OWNER_DIGITS] for each in digests if each in self._digests)

    def _why_not(self, headers: Headers) -> FluxError | None:
        sent = list(_sent_keys(headers))
        if not sent:
            return Unauthorized(
                "a key is needed: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY` (FLUX_API_KEYS has them)"
            )
        # Every pair is compared, so that the time says nothing about which was near.
        matches = [
            hmac.compare_digest(_digest(key), digest) for key in sent for digest in self._digests
        ]
        return (
            None
            if any(matches)
            else Unauthorized("the key is not one of this service's (FLUX_API_KEYS)")
        )


class BodyLimit:
    """Cuts a body that is longer than its route's limit, by its declared length or while it comes in.

    Where pictures may be in the body, or LoRAs, the settings have the limit; elsewhere it is `SMALL_BODY_BYTES`.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limit = self._limit(scope)
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            error = self._too_large(scope)
            return await problem(error, scope["state"]["request_id"])(scope, receive, send)
        if "content-length" in headers and "transfer-encoding" not in headers:
            return await self._app(scope, receive, send)  # the server lets no more in than that
        received = 0
        answering = False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise self._too_large(scope)
            return message

        async def noted(message: Message) -> None:
            nonlocal answering
            answering = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except TooLarge as error:
            if answering:
                raise
            await problem(error, scope["state"]["request_id"])(scope, receive, send)

    def _limit(self, scope: Scope) -> int:
        path = scope["path"]
        if path in PICTURE_PATHS:
            return self._settings.max_body_bytes
        if scope["method"] == "PUT" and path.startswith("/loras/"):
            return self._settings.max_lora_bytes
        if scope["method"] == "POST" and path in LORA_FORM_PATHS:
            return self._settings.max_lora_bytes + FORM_BYTES
        return SMALL_BODY_BYTES

    def _too_large(self, scope: Scope) -> TooLarge:
        limit = self._limit(scope)
        is_lora = scope["path"].startswith("/loras/") or scope["path"] in LORA_FORM_PATHS
        setting = "FLUX_MAX_LORA_BYTES" if is_lora else "FLUX_MAX_BODY_BYTES"
        named = "" if limit == SMALL_BODY_BYTES else f" ({setting})"
        message = f"the body is longer than {limit} bytes{named}"
        return TooLarge(message, fields=[FieldError("body", message)])


def owner_of(request: Request) -> str:
    """Whose key a request came with, as digits that do not tell the key; empty where none is asked for."""
    return request.scope["state"].get("owner", "")


@functools.lru_cache(maxsize=256)
def _hostname(host: str) -> str | None:
    """The name in a Host header without its port, lower-case; None for what is no host."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises for a port that is none
    except ValueError:
        return None
    if not _HOST.fullmatch(host):
        return None
    return parts.hostname


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    if scope["method"] == "OPTIONS" or path in OPEN_PATHS or path == "/":
        return True
    return any(path == prefix or path.startswith(prefix + "/") for prefix in OPEN_PREFIXES)


def _sent_keys(headers: Headers) -> Iterable[str]:
    for name in ("x-api-key", "x-key"):
        if headers.get(name):
            yield headers[name]
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value:
        yield value.strip()
    elif scheme.lower() == "basic":
        try:
            yield base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
