"""Who calls: the key of a request, what its route asks of a key, and how often a key may ask.

All of it follows from a request's first lines and headers, so that `middleware.Gate` can decide
before a byte of the body is read.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import Scope as AsgiScope

from config.errors import Forbidden, InvalidRequest, RateLimited, Unauthorized
from utils.keyring import Keyring
from utils.keys import Key, Scope

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

# Answered without a key, so that a supervisor needs none. They tell nothing but whether we live.
OPEN_PATHS = frozenset({"/health/live", "/health/ready", "/", "/dashboard"})
# Links to pictures are their own keys: see `api/delivery.py`.
OPEN_PREFIXES = ("/ui", "/delivery")

# What a route asks of a key: (methods, path, scope). `*` means all methods; a path that ends in `/*`
# means all below it; None means that any key will do. The first row that fits decides. Where none
# does, reading asks for any key, and everything else for `generate`.
ROUTE_SCOPES: tuple[tuple[str, str, Scope | None], ...] = (
    ("*", "/admin/*", Scope.ADMIN),
    ("POST", "/queue/*", Scope.ADMIN),
    ("POST", "/load-model", Scope.ADMIN),
    ("POST", "/unload-model", Scope.ADMIN),
    ("POST", "/dashboard/*", Scope.ADMIN),
    ("POST", "/sdapi/v1/unload-checkpoint", Scope.ADMIN),
    ("POST", "/free", Scope.ADMIN),
    ("POST", "/api/free", Scope.ADMIN),
    ("POST", "/sdapi/v1/reload-checkpoint", Scope.ADMIN),
    ("POST", "/sdapi/v1/png-info", None),
    ("GET", "/metrics", Scope.ADMIN),
    ("POST PUT PATCH DELETE", "/loras", Scope.LORAS),
    ("POST PUT PATCH DELETE", "/loras/*", Scope.LORAS),
    ("POST", "/upload-lora", Scope.LORAS),
    ("POST", "/apply-lora", Scope.LORAS),
    ("POST", "/remove-lora", Scope.LORAS),
    ("POST", "/images/inspect", None),
)

# A key in a URL stays in histories and logs.
KEY_PARAMETERS = frozenset(
    {"key", "api_key", "apikey", "x_api_key", "x_key", "access_token", "token", "bearer",
     "authorization", "auth", "password"}
)  # fmt: skip
MAX_PARAMETERS = 100  # of a query
MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Access:
    """What one caller sees of others' work."""

    owner: str  # its key's id; empty where no key is asked for
    sees_all: bool

    def sees(self, owner: str) -> bool:
        return self.sees_all or owner == self.owner


# Where no key is asked for, whoever is on this machine is the operator.
EVERYBODY = Access("", True)


class Guard:
    """Decides who a request is from. `monotonic` is in seconds."""

    def __init__(self, keys: Keyring, monotonic: Callable[[], float]) -> None:
        self._keys = keys
        self._rates = Rates(monotonic)

    def admit(self, scope: AsgiScope, headers: Headers) -> Access:
        """Raises Unauthorized, Forbidden, RateLimited; InvalidRequest for a query that nobody reads."""
        if not self._keys.are_needed or is_open(scope):
            return EVERYBODY
        self._refuse_in_url(scope)
        key = self._key(headers)
        # Of websockets only those who may draw are told anything.
        method = scope.get("method", "POST")
        needed = scope_of(method, scope["path"])
        if not key.may(needed):
            has = ", ".join(sorted(key.scopes)) or "none"
            raise Forbidden(
                f"{method} {scope['path'][:200]} needs a key with the scope `{needed}`; this one has {has}"
            )
        wait_seconds = self._rates.take(key)
        if wait_seconds:
            per_minute = key.limits.requests_per_minute
            raise RateLimited(
                f"this key may ask {per_minute} times a minute; try again in {wait_seconds} s",
                retry_after_seconds=wait_seconds,
            )
        self._keys.note_use(key)
        return Access(key.id, Scope.ADMIN in key.scopes)

    def _key(self, headers: Headers) -> Key:
        sent = list(sent_keys(headers))
        if not sent:
            raise Unauthorized(
                "a key is needed: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY` "
                "(`python -m scripts.keys make NAME` makes one)"
            )
        key = self._keys.find(sent)
        if key is None:
            raise Unauthorized("the key is not one of this service's, or it was revoked")
        if self._keys.has_expired(key):
            raise Unauthorized(f"the key expired at {key.expires_at}; ask for a new one")
        return key

    def _refuse_in_url(self, scope: AsgiScope) -> None:
        query = scope.get("query_string", b"")
        if not query:
            return
        try:
            pairs = parse_qsl(
                query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS
            )
        except ValueError as error:
            raise InvalidRequest.of(
                "query", f"has more than {MAX_PARAMETERS} parameters; no route reads so many"
            ) from error
        named = [name for name, _ in pairs if name.lower().replace("-", "_") in KEY_PARAMETERS]
        if named or self._keys.find(value for _, value in pairs) is not None:
            raise Unauthorized(
                "a key in the URL is refused, because URLs are kept in logs and histories; send it as "
                "`Authorization: Bearer KEY` or `X-API-Key: KEY`, and make a new one if this one was real"
            )


class Rates:
    """A token bucket for each key that has a rate: a minute's requests at once, then as they come in again."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._buckets: dict[str, tuple[float, float]] = {}  # by key: tokens left, and when

    def take(self, key: Key) -> int:
        """Take a token; returns 0, or the seconds until there is one."""
        per_minute = key.limits.requests_per_minute
        if per_minute is None:
            return 0
        now = self._monotonic()
        left, at = self._buckets.get(key.id, (float(per_minute), now))
        left = min(float(per_minute), left + (now - at) * per_minute / MINUTE)
        if left < 1:
            self._buckets[key.id] = left, now
            return max(1, math.ceil((1 - left) * MINUTE / per_minute))
        self._buckets[key.id] = left - 1, now
        return 0


def scope_of(method: str, path: str) -> Scope | None:
    """What a route asks of a key; None: any key will do."""
    method = "GET" if method == "HEAD" else method
    for methods, rule, scope in ROUTE_SCOPES:
        fits = path.startswith(rule[:-1]) if rule.endswith("/*") else path == rule
        if fits and (methods == "*" or method in methods.split()):
            return scope
    return None if method in SAFE_METHODS else Scope.GENERATE


def is_open(scope: AsgiScope) -> bool:
    """Whether a request is answered without a key."""
    path = scope["path"]
    if scope.get("method") == "OPTIONS" or path in OPEN_PATHS:
        return True
    return any(path == prefix or path.startswith(prefix + "/") for prefix in OPEN_PREFIXES)


def sent_keys(headers: Headers) -> Iterator[str]:
    """Everything in the headers that may be a key."""
    for name in ("x-api-key", "x-key"):
        if headers.get(name):
            yield headers[name]
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value:
        yield value.strip()
    elif scheme.lower() == "basic":
        try:
            yield base64.b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:  # no base64, or no text
            return


def access_of(connection: HTTPConnection) -> Access:
    """Who a request is from, as the gate found."""
    return connection.scope["state"]["access"]


def owner_of(connection: HTTPConnection) -> str:
    """Whose key a request came with, as digits that do not tell the key; empty where none is asked for."""
    return access_of(connection).owner
