"""What the OpenAPI document says of bodies that a dialect reads itself: names that its clients send, loosely.

What each means, and which more there are, the API's own documents say. Values of `openapi_extra`.
"""

from __future__ import annotations

from typing import Any

JSON = "application/json"
FORM = "multipart/form-data"


def json_body(required: str = "", *, optional: bool = False, **types: str) -> dict[str, Any]:
    """An object of fields, each with its type or `any`; `required` are names with spaces between.

    The others may be null. With `optional` a request without a body will do.
    """
    return _described({JSON: _schema(required, types)}, optional)


def form_body(required: str, **types: str) -> dict[str, Any]:
    """The same as a form; the type of a file is `file`."""
    return _described({FORM: _schema(required, types)})


def either(*bodies: dict[str, Any]) -> dict[str, Any]:
    """A route that takes several kinds of body."""
    schemas = {
        kind: body["schema"]
        for described in bodies
        for kind, body in described["requestBody"]["content"].items()
    }
    return _described(schemas)


def _described(schemas: dict[str, Any], optional: bool = False) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in schemas.items()}
    return {"requestBody": {"required": not optional, "content": content}}


def _schema(required: str, types: dict[str, str]) -> dict[str, Any]:
    names = required.split()
    named = {"required": names} if names else {}
    properties = {name: _field(kind, name in names) for name, kind in types.items()}
    return {"type": "object", **named, "properties": properties}


def _field(kind: str, is_required: bool) -> dict[str, Any]:
    if kind == "any":
        return {}
    if kind == "file":
        return {"type": "string", "format": "binary"}
    typed = {"type": kind}
    return typed if is_required else {"anyOf": [typed, {"type": "null"}]}
