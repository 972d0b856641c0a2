"""Errors as answers: every failure leaves as `application/problem+json` (RFC 9457) with a code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api.dialects.shapes import shape_of
from api.schemas import ALIASES, LIMITED_FIELDS, PICTURE_PATHS, why_not_taken
from config.errors import FieldError, FluxError, InvalidRequest, NotFound

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 20  # faults of one body that are named
MAX_NAME_CHARACTERS = 100  # of a field that the client made up
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

_TITLES = {
    "invalid_request": "The request is not valid",
    "unauthorized": "A key is needed",
    "forbidden": "Not allowed",
    "not_found": "Not found",
    "method_not_allowed": "Method not allowed",
    "unsupported_gpu": "The model cannot run here",
    "too_large": "The body is too large",
    "too_slow": "The body did not come in",
    "bad_file": "The file cannot be taken",
    "lora_incompatible": "The LoRA does not fit",
    "idempotency_mismatch": "The key belongs to another request",
    "client_gone": "The client is gone",
    "queue_full": "The queue is full",
    "rate_limited": "The key is over its limit",
    "not_built": "Not built yet",
    "unavailable": "Not available now",
    "model_unavailable": "The model is not available",
    "storage": "The storage is not available",
    "oom": "Out of memory",
    "cancelled": "The job was cancelled",
    "poison": "The job ended its worker",
    "worker_lost": "The service ended while the job ran",
    "timeout": "The job took too long",
    "provider_error": "The cloud failed",
    "provider_key": "The cloud does not know the key",
    "provider_forbidden": "The cloud forbids it",
    "provider_credits": "The cloud's account is empty",
    "provider_refused": "The cloud does not take the request",
    "provider_busy": "The cloud has too much to do",
    "provider_budget": "The cloud's budget is spent",
    "provider_lost": "The cloud has lost the task",
    "nsfw_blocked": "The picture is not given out",
    "moderated": "Blocked by the cloud's moderation",
    "internal": "The service failed",
}


def answer(error: FluxError, request_id: str, path: str) -> JSONResponse:
    """A FluxError as the answer of a path: in the words of its dialect, or as a problem."""
    shape = shape_of(path)
    if shape is None:
        return problem(error, request_id)
    error.message = _printable(error.message)
    error.fields = tuple(
        FieldError(_printable(item.field), _printable(item.message)) for item in error.fields
    )
    shaped = shape(error)
    headers = {**_headers(error, request_id), **shaped.headers}
    return JSONResponse(shaped.body, shaped.status, headers)


def problem(error: FluxError, request_id: str) -> JSONResponse:
    """A FluxError as its native answer."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": _TITLES.get(error.code, "The request failed"),
        "status": error.status,
        "detail": _printable(error.message),
        "code": error.code,
        "request_id": request_id,
    }
    if error.fields:
        body["errors"] = [
            {"field": _printable(item.field), "message": _printable(item.message)}
            for item in error.fields
        ]
    headers = _headers(error, request_id)
    return JSONResponse(body, error.status, headers, media_type=MEDIA_TYPE)


def _headers(error: FluxError, request_id: str) -> dict[str, str]:
    headers = {"X-Request-Id": request_id}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


PROBLEM_RESPONSE = {
    "description": "A problem (RFC 9457) with a `code` for programs",
    "content": {
        MEDIA_TYPE: {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status", "detail", "code", "request_id"],
                "properties": {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                    "code": {"type": "string"},
                    "request_id": {"type": "string"},
                    "errors": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {
                                "field": {"type": "string"},
                                "message": {"type": "string"},
                            },
                        },
                    },
                },
            }
        }
    },
}


def install(app: FastAPI) -> None:
    """The handlers: ours and the framework's own two. `middleware.AnswerFailures` has the rest."""

    @app.exception_handler(FluxError)
    async def flux_error(request: Request, error: FluxError) -> JSONResponse:
        return _answered(request, error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, found: RequestValidationError) -> JSONResponse:
        is_picture = request.scope["path"] in PICTURE_PATHS
        fields = faults_of(found.errors(), is_picture=is_picture)
        if is_picture:
            fields += _faults_of_limits(request, found.body, fields)
        message = "; ".join(f"{item.field}: {item.message}" for item in fields)
        error = InvalidRequest(message, fields=fields)
        return _answered(request, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        answered = _answered(request, _from_http(request, error))
        answered.headers.update(error.headers or {})
        if error.status_code == 405:
            answered.headers["Allow"] = _methods_of_path(request)
        return answered


def _answered(request: Request, error: FluxError) -> JSONResponse:
    if hasattr(request.state, "answer"):  # a socket has none
        request.state.answer.code = error.code  # what is counted
    return answer(error, _request_id(request), request.scope["path"])


def faults_of(items: Sequence[Any], *, is_picture: bool = False) -> list[FieldError]:
    """Pydantic's findings; fields in dotted form without the leading `body` or `query`."""
    fields = [_field_error(item, is_picture) for item in items[:MAX_ERRORS]]
    if len(items) > MAX_ERRORS:
        fields.append(FieldError("body", f"has {len(items) - MAX_ERRORS} more faults"))
    return fields


def _faults_of_limits(request: Request, body: Any, found: list[FieldError]) -> list[FieldError]:
    """What the model's limits have against the fields that are sound, so that one answer names all faults."""
    services = getattr(request.app.state, "services", None)
    if services is None or not isinstance(body, dict):
        return []
    faulty = {error.field.partition(".")[0] for error in found}
    sound = {
        name: body[name].strip() if kind is str else body[name]
        for name, kind in LIMITED_FIELDS.items()
        if name not in faulty and type(body.get(name)) is kind
    }
    if "model" in faulty:
        sound["model"] = ""  # a model that does not exist has no limits
    more = services.plan.resolver.faults(**sound)
    return [error for error in more if error.field not in faulty]


def _field_error(item: Any, is_picture: bool) -> FieldError:
    location = [str(part) for part in item["loc"]]
    if item["type"] == "json_invalid":
        reason = item.get("ctx", {}).get("error", "")
        return FieldError("body", f"is not valid JSON: {reason} at character {location[-1]}")
    if location[:1] in (["body"], ["query"], ["path"], ["header"]) and len(location) > 1:
        location = location[1:]
    field = (".".join(location) or "body")[:MAX_NAME_CHARACTERS]
    match item["type"]:
        case "extra_forbidden":
            return FieldError(
                field, why_not_taken(field) if is_picture else "there is no such field"
            )
        case "missing":
            return FieldError(field, "is missing")
        case "model_attributes_type" | "model_type" | "dict_type" if field == "body":
            return FieldError(
                field,
                "must be a JSON object, sent with `Content-Type: application/json`",
            )
        case "too_long" | "string_too_long":
            context = item["ctx"]
            length = context.get("actual_length") or len(item["input"])
            return FieldError(field, f"is {length} long; at most {context['max_length']} are taken")
        case "too_short" | "string_too_short":
            return FieldError(field, "is empty")
        case "value_error":
            return FieldError(field, item["msg"].removeprefix("Value error, "))
    names = [alias for alias, name in ALIASES.items() if name == field]
    also = f" (this field is also called {names[0]})" if names else ""
    return FieldError(field, f"{item['msg']}{_not(item['input'])}{also}")


def _not(value: Any) -> str:
    """The value at fault, if it is short enough to read."""
    if isinstance(value, str | int | float | bool | None) and len(text := json.dumps(value)) <= 60:
        return f", not {text}"
    return ""


def _from_http(request: Request, error: HTTPException) -> FluxError:
    if isinstance(error.__cause__, FluxError):
        return error.__cause__  # raised while the framework read the body
    if error.status_code == 400 and error.__cause__ is not None:
        return InvalidRequest.of("body", f"cannot be read: {type(error.__cause__).__name__}")
    path = request.scope["path"]
    if error.status_code == 404:
        return NotFound(f"there is no route {path[:200]}; GET /docs lists them")
    if error.status_code == 405:
        converted = FluxError(
            f"{path[:200]} does not answer {request.method}; it answers {_methods_of_path(request)}"
        )
        converted.code, converted.status = "method_not_allowed", 405
        return converted
    converted = FluxError(str(error.detail))
    converted.code = "invalid_request" if error.status_code < 500 else "internal"
    converted.status = error.status_code
    return converted


def _methods_of_path(request: Request) -> str:
    """What a path answers; it may have several routes, and the framework tells the methods of one."""
    # A path that is written down as it is, is not also one with a name in it.
    written_down = request.app.openapi()["paths"].get(request.scope["path"])
    if written_down is not None:
        return ", ".join(method for method in _METHODS if method.lower() in written_down)
    answered = (
        method
        for method in _METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    )
    return ", ".join(answered)


def _request_id(request: Request) -> str:
    return getattr(request.state, "request_id", "-")


def _printable(text: str) -> str:
    """What a client sent may hold lone surrogates, which no encoder takes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
