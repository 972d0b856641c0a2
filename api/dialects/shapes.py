"""Errors in the words of each dialect, by path: also those that are answered before any route is reached.

A shape turns an error into what the dialect's clients read: status, body and headers. Paths without a
shape have the native one, `application/problem+json`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from config.errors import FluxError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaped:
    """An error as an answer."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


Shape = Callable[[FluxError], Shaped]

# Failures that may be gone at the next try; clients of OpenAI try every other 5xx and 409 again too.
_PASSING = frozenset({429, 503})
# A picture, or a request for one, that is not given out: by a cloud, or by the checker here.
BLOCKED = frozenset({"moderated", "nsfw_blocked"})
_OPENAI_CODES = {
    "unauthorized": "invalid_api_key",
    "rate_limited": "rate_limit_exceeded",
    "queue_full": "rate_limit_exceeded",
    **dict.fromkeys(BLOCKED, "moderation_blocked"),
    "provider_credits": "billing_hard_limit_reached",
}


def openai(error: FluxError) -> Shaped:
    """`{"error": {message, type, param, code}}`."""
    is_theirs = error.status == 409 or error.code in BLOCKED
    status = 400 if is_theirs else error.status
    is_model = error.status == 404 and any(fault.field == "model" for fault in error.fields)
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 429:
        kind = "rate_limit_error"
    body = {
        "message": error.message,
        "type": kind,
        "param": error.fields[0].field if error.fields else None,
        "code": "model_not_found" if is_model else _OPENAI_CODES.get(error.code, error.code),
    }
    headers = {} if status in _PASSING else {"x-should-retry": "false"}
    return Shaped(status=status, body={"error": body}, headers=headers)


def bfl(error: FluxError) -> Shaped:
    """`{"detail": …}`: a sentence, or for a wrong body (422) a list with the place of each fault."""
    if error.status == 400 and error.fields:
        faults = [
            {"type": "value_error", "loc": ["body", *fault.field.split(".")], "msg": fault.message}
            for fault in error.fields
        ]
        return Shaped(status=422, body={"detail": faults})
    return Shaped(status=error.status, body={"detail": error.message})


def sdapi(error: FluxError) -> Shaped:
    """`{error, detail, body, errors}`; a missing key is asked for as HTTP Basic."""
    body = {
        "error": error.code,
        "detail": error.message,
        "body": "",
        "errors": error.message,
    }
    headers = {"WWW-Authenticate": 'Basic realm="sdapi"'} if error.status == 401 else {}
    return Shaped(status=error.status, body=body, headers=headers)


def fleet(error: FluxError) -> Shaped:
    """`{"error": "…"}`."""
    return Shaped(status=error.status, body={"error": error.message})


def comfy(error: FluxError) -> Shaped:
    """`{"error": {type, message, details, extra_info}, "node_errors": {}}`."""
    body = {
        "type": error.code,
        "message": error.message,
        "details": "; ".join(fault.message for fault in error.fields),
        "extra_info": {},
    }
    node_errors = getattr(error, "node_errors", {})
    return Shaped(status=error.status, body={"error": body, "node_errors": node_errors})


COMFY_PATHS = (
    "/prompt",
    "/history",
    "/view",
    "/interrupt",
    "/object_info",
    "/system_stats",
    "/upload/image",
    "/upload/mask",
    "/queue",
    "/embeddings",
    "/extensions",
    "/features",
    "/free",
    "/ws",
    "/jobs",  # under /api; see below
)
# The first that fits. OpenAI's other families of routes have their shape too: a client that asks for
# one is told so in its own words.
_SHAPES: tuple[tuple[tuple[str, ...], Shape], ...] = (
    (("/v1/images", "/v1/models", "/v1/chat", "/v1/completions", "/v1/embeddings"), openai),
    (("/v1/responses", "/v1/audio", "/v1/files", "/v1/moderations"), openai),
    (("/v1",), bfl),
    (("/sdapi",), sdapi),
    (("/api/generate-image", "/api/image-models", "/dashboard"), fleet),
    (tuple(f"/api{path}" for path in COMFY_PATHS), comfy),
    # `/queue` and `/jobs` themselves are ours.
    (tuple(path for path in COMFY_PATHS if path not in ("/queue", "/jobs")), comfy),
)


_WITH_PICTURES = frozenset(
    {
        "/v1/images/edits",
        "/sdapi/v1/txt2img",
        "/sdapi/v1/img2img",
        "/sdapi/v1/png-info",
        "/api/txt2img",
        "/api/generate-image",
        "/upload/image",
        "/upload/mask",
        "/api/upload/image",
        "/api/upload/mask",
    }
)
# Graphs and prompts are longer than a few fields, and hold no pictures.
_LONG = frozenset({"/prompt", "/api/prompt", "/v1/images/generations"})
LONG_BODY_BYTES = 2**20


def body_limit(path: str, max_body_bytes: int) -> int | None:
    """How long a body of a dialect's route may be; None where the path has no limit of its own."""
    if path in _WITH_PICTURES:
        return max_body_bytes
    if path in _LONG:
        return min(LONG_BODY_BYTES, max_body_bytes)
    is_bfl = path.startswith("/v1/") and shape_of(path) is bfl
    return max_body_bytes if is_bfl else None


def shape_of(path: str) -> Shape | None:
    """The shape of a path's errors; None for the native one."""
    for prefixes, shape in _SHAPES:
        if any(path == prefix or path.startswith(prefix + "/") for prefix in prefixes):
            return shape
    return None
