"""The OpenAPI document: the framework's, with our errors in place of its own, and what a route asks of a key."""

from __future__ import annotations

import copy
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from api.auth import is_open, scope_of
from api.dialects.shapes import shape_of
from api.errors import PROBLEM_RESPONSE
from utils.keyring import Keyring

# What any route may answer. 400 is a wrong body or query, also where a route reads neither.
ANYWHERE = (400, 401, 403, 408, 413, 429, 500, 503)
# Where the path or the body names something.
_DRAWS = (402, 404, 409, 415, 422, 499, 502, 504, 507)
_COMMANDS = (404, 409, 499)
_TAKES_A_LORA = (404, 409, 415, 422, 499, 502, 504, 507)
ALSO: dict[str, tuple[int, ...]] = {
    "/generate": _DRAWS,
    "/jobs": _DRAWS,
    "/submit-request": _DRAWS,
    "/upload-image-generate": _DRAWS,
    "/jobs/{job_id}/retry": _DRAWS,
    "/loras": _TAKES_A_LORA,
    "/loras/{name}": _TAKES_A_LORA,
    "/upload-lora": _TAKES_A_LORA,
    "/apply-lora": _TAKES_A_LORA,
    "/remove-lora": (404,),
    "/load-model": (409, 499),
    "/images": (404,),
    "/images/inspect": (415, 422, 499),
}
# The tags of other programs' APIs.
DIALECTS = frozenset({"OpenAI Images", "BFL", "A1111", "ComfyUI", "Fleet router", "ITI"})
_ERROR_OF_A_DIALECT = {"content": {"application/json": {"schema": {"type": "object"}}}}
_SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "x-key": {"type": "apiKey", "in": "header", "name": "x-key"},
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "The key as the password, with any name",
    },
}


def describe(app: FastAPI, keys: Keyring) -> None:
    """Make the application write this document."""
    by_framework = app.openapi
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            document.update(_with_our_errors(by_framework()))
        return _with_keys(document) if keys.are_needed else document

    app.openapi = openapi  # type: ignore[method-assign]


def _with_our_errors(document: dict[str, Any]) -> dict[str, Any]:
    document["paths"] = dict(sorted(document["paths"].items(), key=_is_of_dialects))
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for api in DIALECTS.intersection(operation["tags"]):
                operation["summary"] = f"For clients of {api}"
            answers = operation["responses"]
            answers.pop("422", None)  # the framework's own, for what is a 400 problem here
            for status in sorted({*ANYWHERE, *_statuses_of(method, path, operation)}):
                answers.setdefault(str(status), _error(path, status))
    for name in ("HTTPValidationError", "ValidationError"):
        document.get("components", {}).get("schemas", {}).pop(name, None)
    return document


def _is_of_dialects(path: tuple[str, Any]) -> bool:
    return all(DIALECTS.intersection(operation["tags"]) for operation in path[1].values())


def _statuses_of(method: str, path: str, operation: dict[str, Any]) -> tuple[int, ...]:
    of_dialects: tuple[int, ...] = ()
    if not DIALECTS.isdisjoint(operation["tags"]):
        of_dialects = (
            _DRAWS if "requestBody" in operation else _COMMANDS if method == "post" else (404,)
        )
    named = (404,) if "{" in path else ()
    return (*ALSO.get(path, of_dialects), *named)


def _error(path: str, status: int) -> dict[str, Any]:
    phrase = "Client gone" if status == 499 else HTTPStatus(status).phrase
    if shape_of(path) is None:
        return {**PROBLEM_RESPONSE, "description": phrase}
    return {**_ERROR_OF_A_DIALECT, "description": f"{phrase}, in the words of this API"}


def _with_keys(document: dict[str, Any]) -> dict[str, Any]:
    """The document of a service that asks for keys: any of the four ways to send one will do."""
    document = copy.deepcopy(document)
    document.setdefault("components", {})["securitySchemes"] = _SCHEMES
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if is_open({"path": path, "method": method.upper()}):
                continue
            operation["security"] = [{name: []} for name in _SCHEMES]
            scope = scope_of(method.upper(), path)
            operation["x-key-scope"] = "any" if scope is None else scope.value
    return document
