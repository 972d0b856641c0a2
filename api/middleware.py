"""What happens to every request before a route sees it, as plain ASGI so that bodies stream.

`Gate` is the one layer; in its order: an id, HostAndOrigin (browser attacks), CORS for requests of
a page, auth.Guard (keys, before a body is read), BodyLimit (counts while the body comes in), the
route, the headers of every answer, an answer for what nobody expected, a log line.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import secrets
import time
from collections import Counter
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import errors
from api.access_log import AccessLog, shown_path
from api.auth import SAFE_METHODS, Guard
from api.dialects import shapes
from api.patience import patiently
from api.schemas import PICTURE_PATHS
from config.errors import (
    FieldError,
    FluxError,
    Forbidden,
    InvalidRequest,
    TooLarge,
    TooSlow,
    Unavailable,
)
from config.settings import LOOPBACK_HOSTS, ServerSettings, is_loopback
from utils import log_context

log = logging.getLogger("api.access")

# A name or an IPv4 address, or an IPv6 address in brackets, and perhaps a port.
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")

# Bodies: requests for pictures may hold pictures, everything else is a few fields.
SMALL_BODY_BYTES = 64 * 2**10
INSPECT_PATH = "/images/inspect"
LORA_FORM_PATHS = frozenset({"/loras", "/upload-lora"})
FORM_BYTES = 64 * 2**10  # of a form beside its files

POLICY_VIOLATION = 1008  # of RFC 6455

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"cross-origin"),
    (b"x-frame-options", b"DENY"),
)
# A cache must not give an answer without CORS headers to a page that may read it.
VARY_ORIGIN = (b"vary", b"Origin")
# What a page's script may read of an answer's headers.
EXPOSED_HEADERS = (
    "X-Job-Id",
    "X-Seed",
    "X-Model",
    "X-Generation-Time",
    "X-Fleet-Node",
    "X-Fleet-Model",
    "X-Fleet-Retries",
    "X-Request-Id",
    "Retry-After",
)


class Gate:
    """Everything that is decided before a route, in one layer: each layer more would cost every request its share."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        guard: Guard,
        refusals: Counter[tuple[str, int]] | None = None,
    ) -> None:
        self._app = app
        self._hosts = HostAndOrigin(settings)
        self._guard = guard
        self._refusals = Counter() if refusals is None else refusals  # by error code and status
        self._limit = BodyLimit(settings)
        self._access_log = AccessLog()
        self._with_cors = CORSMiddleware(
            self._enter,
            allow_origins=list(settings.page_origins),
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await self._enter_socket(scope, receive, send)
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = time.perf_counter()
        answer = _Answer(send)
        scope.setdefault("state", {}).update(request_id=answer.request_id, answer=answer)
        log_context.bind(request_id=answer.request_id)
        headers = Headers(scope=scope)
        try:
            error = self._hosts.why_not(scope, headers)
            if error is not None:
                answer.code = error.code
                await errors.answer(error, answer.request_id, scope["path"])(
                    scope, receive, answer.send
                )
            elif "origin" in headers:
                await self._with_cors(scope, receive, answer.send)
            else:
                answer.vary = VARY_ORIGIN
                await self._enter(scope, receive, answer.send)
        finally:
            if answer.status >= 400:
                self._refusals[answer.code, answer.status] += 1
            self._access_log.note(
                scope, answer.status, answer.request_id, time.perf_counter() - started
            )

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        answer = scope["state"]["answer"]
        try:
            scope["state"]["access"] = self._guard.admit(scope, headers)
            if "transfer-encoding" in headers and "content-length" in headers:
                # Two readers of one connection may see two requests in it, one hidden in the other.
                answer.is_last = True
                raise InvalidRequest.of("content-length", "goes with no transfer-encoding")
            receive = self._limit.counting(scope, headers, receive)
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            # The server ends, and waits no longer for what a client still sends.
            if answer.status:
                raise
            answer.is_last = True
            error = Unavailable("the service is stopping; send it again", retry_after_seconds=30)
            answer.code = error.code
            await errors.answer(error, answer.request_id, scope["path"])(scope, receive, send)
        except Exception as error:
            if answer.status:
                raise
            answer.is_last |= isinstance(error, TooSlow)
            failure = error if isinstance(error, FluxError) else _unexpected(answer.request_id)
            answer.code = failure.code
            await errors.answer(failure, answer.request_id, scope["path"])(scope, receive, send)

    async def _enter_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A websocket is let in or refused before it is accepted: no browser does that for us."""
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {}).update(request_id=request_id)
        log_context.bind(request_id=request_id)
        headers = Headers(scope=scope)
        error: FluxError | None
        try:
            error = self._hosts.why_not(scope, headers)
            if error is None:
                scope["state"]["access"] = self._guard.admit(scope, headers)
        except FluxError as refusal:
            error = refusal
        if error is None:
            return await self._app(scope, receive, send)
        log.info(
            "refused",
            extra={
                "action": "socket_refused",
                "request_id": request_id,
                "path": shown_path(scope),
                "status": error.status,
            },
        )
        await receive()  # websocket.connect
        if "websocket.http.response" not in scope.get("extensions", {}):
            return await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        answer = errors.answer(error, request_id, scope["path"])
        await answer(scope, receive, send)  # the framework sends it as the handshake's answer


class _Answer:
    """What is known of an answer, and its way out: the headers that every answer has are added here."""

    __slots__ = ("request_id", "status", "code", "is_last", "vary", "_send")

    def __init__(self, send: Send) -> None:
        self.request_id = secrets.token_hex(8)
        self.status = 0  # 0: none has begun
        self.code = "other"  # of its error, where it is one of ours
        self.is_last = False  # whether the connection ends with it
        self.vary: tuple[bytes, bytes] | None = None
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message["headers"]
            names = {name for name, _ in headers}
            if b"x-request-id" not in names:
                headers.append((b"x-request-id", self.request_id.encode()))
            headers += [pair for pair in SECURITY_HEADERS if pair[0] not in names]
            if self.is_last:
                headers.append((b"connection", b"close"))
            if self.vary is not None:
                headers.append(self.vary)
        await self._send(message)


def _unexpected(request_id: str) -> FluxError:
    """The answer to the exception being handled.

    The framework's own handler stands outside of `Gate`, and closes the client's connection.
    """
    log.exception("a route failed", extra={"action": "route_failed"})
    return FluxError(f"the service failed; its log has the reason under {request_id}")


class HostAndOrigin:
    """Refuses a Host we do not answer for (DNS rebinding) and a foreign Origin (a web page that is not ours)."""

    def __init__(self, settings: ServerSettings) -> None:
        self._hosts = frozenset(
            name.lower() for name in (*LOOPBACK_HOSTS, settings.host, *settings.allowed_hosts)
        )
        self._any_host = settings.host in ("0.0.0.0", "::") and not settings.allowed_hosts
        self._origins = frozenset(settings.page_origins)

    def why_not(self, scope: Scope, headers: Headers) -> FluxError | None:
        """Why the request is refused; None when it is not."""
        hosts = headers.getlist("host")
        host = _hostname(hosts[0]) if len(hosts) == 1 else None
        if host is None or not (self._any_host or host in self._hosts or is_loopback(host)):
            shown = ", ".join(hosts)[:100]
            return Forbidden(
                f"Host {shown!r} is not answered here; add its name to FLUX_ALLOWED_HOSTS if it is this machine's"
            )
        # Pages of others read nothing without CORS headers, but for websockets, which know no such thing.
        only_reads = scope.get("method") in SAFE_METHODS
        origins = headers.getlist("origin")
        origin = origins[0] if origins else None
        if len(origins) > 1 or (origin is not None and not self._is_ours(origin, hosts[0])):
            if only_reads and len(origins) == 1 and origin != "null":
                return None
            shown = ", ".join(origins)[:100]
            return Forbidden(
                f"Origin {shown!r} may not call this service; "
                "add it to FLUX_PAGE_ORIGINS if the page is yours"
            )
        if origin is None and not only_reads and headers.get("sec-fetch-site") == "cross-site":
            return Forbidden("a page of another site may not call this service")
        return None

    def _is_ours(self, origin: str, host: str) -> bool:
        if origin in self._origins:
            return True
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc == host


class BodyLimit:
    """Cuts a body that is longer than its route's limit, by its declared length or while it comes in.

    Where pictures may be in the body, or LoRAs, the settings have the limit; elsewhere it is `SMALL_BODY_BYTES`.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings

    def counting(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """`receive`, counting where needed. Raises TooLarge; what it returns does while the body comes."""
        limit = self._limit(scope)
        declared = headers.get("content-length")
        if declared is None and "transfer-encoding" not in headers:
            return receive  # there is no body
        if not _is_upload(scope):  # uploads count their own time, without what the disk takes
            receive = patiently(receive, self._settings.upload_patience_seconds)
        if declared is not None and declared.isdecimal() and int(declared) > limit:
            raise self._too_large(scope)
        if declared is not None and "transfer-encoding" not in headers:
            return receive  # the server lets no more in than that
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise self._too_large(scope)
            return message

        return counted

    def _limit(self, scope: Scope) -> int:
        path = scope["path"]
        if path in PICTURE_PATHS or path == INSPECT_PATH:
            return self._settings.max_body_bytes
        if scope["method"] == "PUT" and path.startswith("/loras/"):
            return self._settings.max_lora_bytes
        if scope["method"] == "POST" and path in LORA_FORM_PATHS:
            return self._settings.max_lora_bytes + FORM_BYTES
        limit = shapes.body_limit(path, self._settings.max_body_bytes)
        return SMALL_BODY_BYTES if limit is None else limit

    def _too_large(self, scope: Scope) -> TooLarge:
        limit = self._limit(scope)
        setting = "FLUX_MAX_LORA_BYTES" if _is_upload(scope) else "FLUX_MAX_BODY_BYTES"
        is_set = _is_upload(scope) or limit == self._settings.max_body_bytes
        named = f" ({setting})" if is_set else ""
        message = f"the body is longer than {limit} bytes{named}"
        return TooLarge(message, fields=[FieldError("body", message)])


def _is_upload(scope: Scope) -> bool:
    path = scope["path"]
    if scope["method"] == "PUT":
        return path.startswith("/loras/")
    return scope["method"] == "POST" and path in LORA_FORM_PATHS


class HeadAsGet:
    """Answers HEAD as GET: what watches a service asks so. The server leaves the body out.

    A stream of events has no end and is not begun for somebody who will not read it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") == "HEAD" and not scope["path"].endswith("/events"):
            scope = {**scope, "method": "GET"}  # the server keeps its own
        await self._app(scope, receive, send)


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
